"""Keyframes of a video by ffmpeg, or of a folder of frames; near-duplicates out."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from seedstory_jax.data.images import open_image, shape_fault
from seedstory_jax.errors import UserError

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv")
HASH_SIDE = 16


@dataclass(frozen=True)
class Frame:
    """A picture file and its time in seconds (None: not known)."""

    path: Path
    time: float | None


def extract_keyframes(
    video: Path, folder: Path, *, scene: float = 0.3, least_gap: float | int = 1, longest_gap: float | int = 10
) -> list[Frame]:
    """Write a video's keyframes into a folder as JPEG: where the picture changes by more than `scene` (0 to 1).

    Two are at least `least_gap` seconds apart, and at the latest every `longest_gap` seconds there is one.
    Raises UserError if ffmpeg is not installed or cannot read the video.
    """
    if not shutil.which("ffmpeg"):
        raise UserError("ffmpeg is not installed, and videos are read with it: install it, or give a folder of frames")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wanted = (
        f"isnan(prev_selected_t)+gte(t-prev_selected_t,{longest_gap})"
        f"+gte(t-prev_selected_t,{least_gap})*gt(scene,{scene})"
    )
    filters = f"select='{wanted}',metadata=mode=print:file=times.txt"
    command = ["ffmpeg", "-hide_banner", "-loglevel", "error", "-nostdin", "-i", str(video.resolve()), "-vf", filters]
    command += ["-an", "-sn", "-fps_mode", "vfr", "-q:v", "2", "%06d.jpg"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    files = sorted(folder.glob("*.jpg"))
    if done.returncode or not files:
        reason = (done.stderr.strip().splitlines() or ["it holds no picture"])[-1]
        raise UserError(f"{video} cannot be read as a video: {reason}")
    times = [float(time) for time in re.findall(r"pts_time:\s*(-?[\d.]+)", (folder / "times.txt").read_text())]
    return [Frame(path, time) for path, time in zip(files, [*times, *[None] * len(files)])]


def folder_frames(folder: Path) -> list[Frame]:
    """The pictures of a folder in natural order; a name like keyframe_0-19-49-688 tells the time."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGES and path.is_file()]
    if not files:
        raise UserError(f"{folder} holds no picture ({', '.join(IMAGES)})")
    files.sort(key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)])
    return [Frame(path, _time_in(path.stem)) for path in files]


def _time_in(name: str) -> float | None:
    match = re.search(r"(\d+)-(\d{1,2})-(\d{1,2})-(\d{1,3})$", name)
    if not match:
        return None
    hours, minutes, whole, thousandths = map(int, match.groups())
    return hours * 3600 + minutes * 60 + whole + thousandths / 1000


def difference_hash(image: Image.Image) -> np.ndarray:
    """bool[256]: whether each of 16 x 16 cells is brighter than its right neighbour."""
    small = image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    cells = np.asarray(small).astype(int)
    return (cells[:, :-1] > cells[:, 1:]).ravel()


def drop_near_duplicates(frames: Sequence[Frame], *, distance: int = 12, memory: int = 8) -> list[Frame]:
    """Frames that differ by more than `distance` of 256 hash bits from each of the last `memory` kept ones.

    Frames that cannot be read or are too small or too elongated to train on are left out, too.
    """
    kept: list[Frame] = []
    hashes: list[np.ndarray] = []
    for frame in frames:
        try:
            image = open_image(frame.path)
        except UserError:
            continue
        if shape_fault(*image.size):
            continue
        own = difference_hash(image)
        if all((own != other).sum() > distance for other in hashes[-memory:]):
            kept.append(frame)
            hashes.append(own)
    return kept
