"""Subtitles: .srt and .vtt files to cues in seconds."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seedstory_jax.errors import UserError

_TIME = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2})(?:[.,](\d{1,3}))?")
_ARROW = re.compile(rf"^\s*({_TIME.pattern})\s*-->\s*({_TIME.pattern})")
_MARKUP = re.compile(r"<[^>]*>|\{\\[^}]*\}")
SUFFIXES = (".srt", ".vtt")


@dataclass(frozen=True)
class Cue:
    """What is said from `start` to `end`, in seconds."""

    start: float | int
    end: float | int
    text: str


def seconds(stamp: str) -> float:
    """A time like 01:02:03,456 or 02:03.4 in seconds."""
    hours, minutes, whole, part = _TIME.fullmatch(stamp).groups()
    return int(hours or 0) * 3600.0 + int(minutes) * 60 + int(whole) + float(f"0.{part or 0}")


def parse_subtitles(text: str) -> list[Cue]:
    """The cues of an .srt or .vtt text in order of time; blocks that are none are passed over."""
    cues = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")):
        lines = block.strip("\n").split("\n")
        for place, line in enumerate(lines):
            match = _ARROW.match(line)
            if match:
                words = " ".join(lines[place + 1 :])
                words = " ".join(html.unescape(_MARKUP.sub("", words)).split())
                start, end = seconds(match[1]), seconds(match[6])
                if words and end > start:
                    cues.append(Cue(start, end, words))
                break
    return sorted(cues, key=lambda cue: cue.start)


def read_subtitles(path: Path) -> list[Cue]:
    """The cues of a file, UTF-8 or Latin-1. Raises UserError if it holds none."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    cues = parse_subtitles(text)
    if not cues:
        raise UserError(f"{path} holds no subtitle: expected lines like 00:01:02,500 --> 00:01:04,000")
    return cues


def find_subtitles(video: Path) -> Path | None:
    """The subtitle file beside a video or a folder of frames: same name, or name.<language>."""
    stem = video.name if video.is_dir() else video.stem
    for suffix in SUFFIXES:
        for path in [video.parent / f"{stem}{suffix}", *sorted(video.parent.glob(f"{stem}.*{suffix}"))]:
            if path.is_file():
                return path
    return None


def said_between(cues: Sequence[Cue], start: float | int, end: float | int) -> str:
    """What is said from `start` up to `end`; a cue belongs to the stretch that holds its middle."""
    return " ".join(cue.text for cue in cues if start <= (cue.start + cue.end) / 2 < end)
