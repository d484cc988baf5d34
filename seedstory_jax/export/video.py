"""MP4: every turn's picture slowly drawing near while its caption is read, and a cross-fade to the next.

Frames are made here and piped into ffmpeg as pixels, so no caption ever becomes part of a command or a filter.
"""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from seedstory_jax.errors import UserError
from seedstory_jax.export.cards import scaled
from seedstory_jax.export.fonts import FontChoice
from seedstory_jax.export.narration import Narration, narrate
from seedstory_jax.export.processes import last_line, need_program
from seedstory_jax.export.reader import Book, Page
from seedstory_jax.export.subtitles import Cue, srt, vtt
from seedstory_jax.export.typeset import fit_text
from seedstory_jax.export.voices import Voice

FPS = 25
FADE = 15  # frames of a cross-fade, the first of a turn
ZOOM = 0.08  # share of the picture that a turn draws nearer by
SUBTITLES = ("burn", "soft", "none")
BACKDROP, WORDS, SOFT = (18, 17, 16), (245, 240, 230), (170, 163, 152)


def write_video(
    book: Book,
    path: Path,
    fonts: FontChoice,
    *,
    voice: Voice | None = None,
    subtitles: str = "burn",
    size: tuple[int, int] = (1280, 720),
    progress=lambda done, total: None,
) -> tuple[Narration, dict[str, str]]:
    """Write the book as a film of `size` pixels; `subtitles` are drawn in ("burn"), a stream ("soft") or left out.

    `progress(done, total)` hears of frames. Returns the narration, and the subtitle files to lie beside, by suffix.
    """
    ffmpeg = need_program("ffmpeg", "MP4 is written by it: apt-get install ffmpeg, or export to .webp")
    with tempfile.TemporaryDirectory(prefix="film-") as name:
        folder = Path(name)
        narration = narrate([page.text for page in book.pages], voice, folder, fps=FPS)
        shown = [Cue(cue.start, cue.end, cue.text or "…") for cue in narration.cues]
        sidecars = {} if subtitles == "none" else {".srt": srt(shown), ".vtt": vtt(shown)}
        command = [ffmpeg, "-v", "error", "-nostdin", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
        command += ["-s", f"{size[0]}x{size[1]}", "-r", str(FPS), "-i", "pipe:0", "-i", str(folder / "narration.wav")]
        tracks = ["-map", "0:v", "-map", "1:a"]
        if subtitles == "soft":
            (folder / "captions.vtt").write_text(sidecars[".vtt"], encoding="utf-8")
            command += ["-i", str(folder / "captions.vtt")]
            tracks += ["-map", "2:s", "-c:s", "mov_text", "-metadata:s:s:0", f"language={book.language}"]
        command += [*tracks, "-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-pix_fmt", "yuv420p"]
        command += ["-c:a", "aac", "-b:a", "96k", "-t", f"{narration.seconds:.3f}", "-movflags", "+faststart"]
        command += [
            "-metadata",
            f"title={book.title}",
            "-metadata",
            f"comment={book.byline}",
            "-f",
            "mp4",
            str(path.absolute()),
        ]
        _pipe(
            command, _film(book, fonts, narration, size, subtitles == "burn"), sum(narration.frames), folder, progress
        )
    return narration, sidecars


def _pipe(command: list[str], frames: Iterator[Image.Image], total: int, folder: Path, progress) -> None:
    with (folder / "said").open("w+b") as said:
        try:
            film = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said)
        except OSError as error:
            raise UserError(f"ffmpeg cannot be started ({error})") from None
        try:
            with contextlib.suppress(BrokenPipeError):  # its exit code says why
                for number, frame in enumerate(frames, 1):
                    film.stdin.write(frame.tobytes())
                    progress(number, total)
        except BaseException:
            film.kill()
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):
                film.stdin.close()
            film.wait()
        if film.returncode:
            said.seek(0)
            raise UserError(f"ffmpeg failed with {film.returncode}{last_line(said.read())}")


def _film(
    book: Book, fonts: FontChoice, narration: Narration, size: tuple[int, int], burn: bool
) -> Iterator[Image.Image]:
    """Every frame of the film."""
    before, length = None, 0
    for page, count in zip(book.pages, narration.frames, strict=True):
        scene = _scene(page, fonts, size, burn, len(book.pages))
        for number in range(count):
            frame = scene.at(number / (count + FADE))
            if before is not None and number < FADE:
                old = before.at((length + number) / (length + FADE))
                frame = Image.blend(old, frame, (number + 1) / (FADE + 1))
            yield frame
        before, length = scene, count


@dataclass(frozen=True)
class _Scene:
    """One turn: what stands still, and the picture that comes nearer inside it."""

    still: Image.Image
    art: Image.Image | None
    corner: tuple[int, int]
    size: tuple[int, int]
    outwards: bool

    def at(self, moment: float | int) -> Image.Image:
        """The frame at `moment`, 0 to 1 through the turn."""
        if self.art is None:
            return self.still
        nearer = ZOOM * ((1 - moment) if self.outwards else moment) / 2
        width, height = self.art.size
        box = (width * nearer, height * nearer, width * (1 - nearer), height * (1 - nearer))
        frame = self.still.copy()
        frame.paste(self.art.resize(self.size, Image.Resampling.BICUBIC, box=box), self.corner)
        return frame


def _scene(page: Page, fonts: FontChoice, size: tuple[int, int], burn: bool, total: int) -> _Scene:
    width, height = size
    margin = round(min(size) * 0.04)
    letters = round(min(size) * 0.046)
    if page.image is None:
        still = Image.new("RGB", size, BACKDROP)
        if burn:
            _words(still, page, fonts, (margin, margin, width - margin, height - margin), round(letters * 1.5), total)
        return _Scene(still, None, (0, 0), (0, 0), False)
    picture = page.picture()
    still = _backdrop(picture, size)
    band = round(letters * 3.6) if burn else 0  # two lines of captions; longer ones get smaller letters
    art = scaled(picture, width - 2 * margin, height - 2 * margin - band)
    if burn:  # what an upright film leaves free lets longer captions keep their size
        band = min(height - 2 * margin - art.height, letters * 8)
    top = (height - art.height - band) // 2
    corner = ((width - art.width) // 2, top)
    if burn:
        below = top + art.height
        _words(
            still,
            page,
            fonts,
            (margin, below + margin // 3, width - margin, below + band + margin // 2),
            letters,
            total,
        )
    # Enlarged a little beyond its place, so that drawing near never shows less than the picture has.
    sharp = scaled(picture, round(art.width * (1 + ZOOM)), round(art.height * (1 + ZOOM)))
    return _Scene(still, sharp, corner, art.size, page.number % 2 == 0)


def _backdrop(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture itself, blurred and dark, over the whole frame."""
    factor = max(size[0] / picture.width, size[1] / picture.height)
    small = picture.resize((max(1, round(picture.width * factor / 16)), max(1, round(picture.height * factor / 16))))
    left, top = (small.width - size[0] // 16) // 2, (small.height - size[1] // 16) // 2
    small = small.crop((left, top, left + size[0] // 16, top + size[1] // 16)).filter(ImageFilter.GaussianBlur(3))
    return ImageEnhance.Brightness(small).enhance(0.3).resize(size, Image.Resampling.BICUBIC)


def _words(still: Image.Image, page: Page, fonts: FontChoice, box: tuple[int, int, int, int], letters: int, total: int):
    """The caption in the middle of `box`, and below it which turn this is."""
    canvas = ImageDraw.Draw(still)
    left, top, right, bottom = box
    foot = max(9, round(letters * 0.5))
    setting = fit_text(fonts, page.text, right - left, bottom - top - foot * 1.5, letters)
    setting.draw(canvas, left, top + (bottom - top - foot * 1.5 - setting.height) / 2, right - left, WORDS)
    small = fit_text(
        fonts, f"{page.number} / {total}" + (f" · {page.given}" if page.given else ""), right - left, foot * 2, foot
    )
    small.draw(canvas, left, bottom - foot * 1.4, right - left, SOFT)
