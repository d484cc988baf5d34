"""Export of a story folder, in the format that the target's suffix names."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from seedstory_jax.config import nearest
from seedstory_jax.errors import UserError
from seedstory_jax.export import pdf, video, voices
from seedstory_jax.export.animation import write_animation
from seedstory_jax.export.cbz import write_cbz
from seedstory_jax.export.epub import write_epub
from seedstory_jax.export.fonts import find_fonts
from seedstory_jax.export.output import refuse_existing, replacing
from seedstory_jax.export.pdf import write_pdf
from seedstory_jax.export.reader import Book, read_book
from seedstory_jax.export.single_page import write_single_page
from seedstory_jax.export.video import write_video
from seedstory_jax.export.voices import choose_voice

FORMATS = ("pdf", "epub", "cbz", "html", "gif", "webp", "mp4")
PICTURES_ONLY = ("cbz", "gif", "webp", "mp4")  # of a story without pictures these make no sense
MAX_SIDE = 4096


@dataclass(frozen=True)
class ExportSettings:
    """How a book looks and sounds.

    Attributes:
        title: of the book; by default the story's, or its first caption.
        language: of the captions, a BCP 47 tag; it chooses the voice and is written into the files.
        fonts: font files that are tried before the machine's.
        layout: of a PDF: "page" (a turn a page) or "grid" (panels).
        paper: of a PDF: a4, a5, letter or square.
        voice: of a film: auto, flite, espeak, piper or none.
        voice_command: a command line that speaks, see `voices.Command`; goes before `voice`.
        voice_model: piper's .onnx file.
        subtitles: of a film: burn, soft or none.
        size: of a film, (width, height) in pixels, both even.
    """

    title: str | None = None
    language: str = "en"
    fonts: Sequence[Path] = ()
    layout: str = "page"
    paper: str = "a4"
    voice: str = "auto"
    voice_command: str | None = None
    voice_model: Path | None = None
    subtitles: str = "burn"
    size: tuple[int, int] = (1280, 720)

    def __post_init__(self):
        choices = {
            "layout": pdf.LAYOUTS,
            "paper": tuple(pdf.PAPERS),
            "voice": voices.NAMES,
            "subtitles": video.SUBTITLES,
        }
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                raise UserError(f"unknown {name} {value!r}: {nearest(str(value), known)}")
        if not all(128 <= side <= MAX_SIDE and side % 2 == 0 for side in self.size):
            width, height = self.size
            raise UserError(f"size {width}x{height}: both sides must be even, and from 128 to {MAX_SIDE}")
        if self.voice_model is not None and not Path(self.voice_model).is_file():
            raise UserError(f"--voice_model={self.voice_model} does not exist: give piper's .onnx file")


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: where it lies.
        beside: files that belong to it (a film's subtitles).
        notes: what a reader of it should know, a line each.
        duration: a film's playing time in seconds; None for other formats.
        seconds: that it took to write.
    """

    path: Path
    beside: tuple[Path, ...]
    notes: tuple[str, ...]
    duration: float | None
    seconds: float


def export(
    story_dir: Path | str,
    target: Path | str,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **settings,
) -> Exported:
    """Write the story in `story_dir` to `target`, in the format of its suffix (see `FORMATS`).

    The target appears whole or not at all. Text-only stories become PDF, EPUB and HTML of text alone.

    Args:
        story_dir: a folder that `sample.py` wrote.
        target: the file to write.
        overwrite: whether it may replace an older file.
        progress: called with (done, total) frames of a film.
        settings: fields of `ExportSettings`.

    Raises:
        UserError: in one line, for a damaged story, an unknown format or setting, a target that exists, a story without
            pictures for a format of pictures, or a program or library that is not installed.
    """
    start, target = time.perf_counter(), Path(target)
    kind = format_of(target)
    known = [field.name for field in dataclasses.fields(ExportSettings)]
    for name in settings:
        if name not in known:
            raise UserError(f"unknown setting {name!r}: {nearest(name, known)}")
    chosen = ExportSettings(**settings)
    outputs = outputs_of(target, chosen)
    for output in outputs:
        refuse_existing(output, overwrite=overwrite)
    book = read_book(story_dir, title=chosen.title, language=chosen.language)
    if kind in PICTURES_ONLY and not book.has_pictures:
        raise UserError(f"{story_dir} is a story of text only, .{kind} needs pictures: export to .pdf, .epub or .html")
    notes, duration = _write(book, target, kind, chosen, progress)
    if not book.has_pictures:
        notes.append("the story has no pictures: the book is text only")
    return Exported(target, tuple(outputs[1:]), tuple(notes), duration, time.perf_counter() - start)


def format_of(target: Path) -> str:
    """The format that a target's suffix names; UserError for one that is not known."""
    kind = target.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise UserError(f"{target} names no known format: end it in .{', .'.join(FORMATS)}")
    return kind


def outputs_of(target: Path, settings: ExportSettings) -> list[Path]:
    """The files that an export writes: the target, and a film's subtitles beside it."""
    beside = (".srt", ".vtt") if format_of(target) == "mp4" and settings.subtitles != "none" else ()
    return [target, *(target.with_suffix(suffix) for suffix in beside)]


def _write(book: Book, target: Path, kind: str, settings: ExportSettings, progress) -> tuple[list[str], float | None]:
    """Writes the file; (notes, a film's seconds)."""
    if kind in ("epub", "html"):
        with replacing(target) as path:
            write_epub(book, path) if kind == "epub" else write_single_page(book, path)
        return [], None
    fonts, notes, duration = find_fonts(settings.fonts), [], None
    if kind == "mp4":
        notes, duration = _write_film(book, target, fonts, settings, progress)
    else:
        with replacing(target) as path:
            if kind == "pdf":
                notes = write_pdf(book, path, fonts, layout=settings.layout, paper=settings.paper)
            elif kind == "cbz":
                write_cbz(book, path, fonts)
            else:
                write_animation(book, path, fonts)
    if fonts.missing:
        shown = " ".join(f"{character} (U+{ord(character):04X})" for character in sorted(fonts.missing)[:5])
        notes.append(
            f"without a glyph in any font here, shown as \ufffd: {shown}{' ...' * (len(fonts.missing) > 5)}; "
            "add a font that has them with --font=FILE"
        )
    return notes, duration


def _write_film(book: Book, target: Path, fonts, settings: ExportSettings, progress) -> tuple[list[str], float]:
    texts = [page.text for page in book.pages]
    speaks = {"language": book.language, "command": settings.voice_command, "model": settings.voice_model}
    voice = choose_voice(settings.voice, texts, **speaks)
    with replacing(target) as path:
        narration, sidecars = write_video(
            book, path, fonts, voice=voice, subtitles=settings.subtitles, size=settings.size, progress=progress
        )
        for suffix, content in sidecars.items():
            with replacing(target.with_suffix(suffix)) as beside:
                beside.write_text(content, encoding="utf-8")
    if voice is not None:
        return [f"spoken by {voice.name}"], narration.seconds
    why = "" if settings.voice == "none" else f"no voice here speaks these captions as {book.language!r} (--language): "
    return [f"{why}silent, timed by reading speed"], narration.seconds
