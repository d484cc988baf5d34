"""Make a book or a film of a story: seedstory book out/story --to=book.pdf --to=film.mp4."""

import sys
from collections.abc import Sequence
from pathlib import Path

from seedstory_jax import cli
from seedstory_jax.errors import UserError
from seedstory_jax.export import FORMATS, ExportSettings, export
from seedstory_jax.export.book import format_of, outputs_of
from seedstory_jax.export.output import refuse_existing

OF_PDF, OF_MP4 = ("layout", "paper"), ("voice", "voice_command", "voice_model", "subtitles", "size")


def main(arguments: Sequence[str]) -> int:
    """Parses the flags and writes every target."""
    parser = cli.Parser(prog="seedstory book", description=__doc__)
    parser.add_argument("story", type=Path, metavar="STORYDIR", help="folder of a story: story.json and its pictures")
    parser.add_argument(
        "--to", type=Path, action="append", required=True, help=f"a file ending in .{', .'.join(FORMATS)}"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace targets that exist")
    parser.add_argument("--title", help="of the book; by default the first caption")
    parser.add_argument("--language", help="of the captions, as en, de or zh; default en")
    parser.add_argument("--font", type=Path, action="append", help="a font file to try before the machine's")
    parser.add_argument("--layout", help="of a PDF: page (a turn a page) or grid")
    parser.add_argument("--paper", help="of a PDF: a4, a5, letter or square")
    parser.add_argument("--voice", help="of a film: auto, flite, espeak, piper or none")
    parser.add_argument("--voice_command", help="a command that reads the file {text} and writes the sound {wav}")
    parser.add_argument("--voice_model", type=Path, help="piper's .onnx file")
    parser.add_argument("--subtitles", help="of a film: burn, soft or none")
    parser.add_argument("--size", help="of a film, in pixels: 1280x720 (default), 720x1280 for a phone")
    flags, overrides = parser.parse_strictly(arguments)
    if overrides:
        raise UserError(f"--config.{next(iter(overrides))}: a book has no config; see --help")
    settings = settings_of(flags)
    for target in flags.to:
        for output in outputs_of(target, ExportSettings(**settings)):
            refuse_existing(output, overwrite=flags.overwrite)
    for target in flags.to:
        written = export(flags.story, target, overwrite=flags.overwrite, progress=_bar(target), **settings)
        length = f", plays {written.duration:.1f} s" if written.duration else ""
        names = ", ".join(map(str, (written.path, *written.beside)))
        print(f"{names}: {written.path.stat().st_size / 1e6:.1f} MB in {written.seconds:.1f} s{length}")
        for note in written.notes:
            print(f"  {note}")
    return 0


def settings_of(flags) -> dict:
    """The fields of `ExportSettings` that were given. Raises UserError for one that no target has a use for."""
    kinds = [format_of(target) for target in flags.to]
    names = ("title", "language", *OF_PDF, *OF_MP4)
    settings = {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}
    for kind, own in (("pdf", OF_PDF), ("mp4", OF_MP4)):
        unused = [name for name in own if name in settings and kind not in kinds]
        if unused:
            raise UserError(f"--{unused[0]} is for .{kind}, which --to does not name")
    if flags.font:
        settings["fonts"] = tuple(flags.font)
    if "size" in settings:
        width, times, height = settings["size"].partition("x")
        if not times or not width.isdecimal() or not height.isdecimal():
            raise UserError(f"--size={flags.size} is no size: write WIDTHxHEIGHT, as 1280x720")
        settings["size"] = (int(width), int(height))
    return settings


def _bar(target: Path):
    """A progress line for a film on a terminal; nothing elsewhere."""

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty() and (done % 25 == 0 or done == total):
            print(f"\r{target}: {100 * done // total} %", end="\n" if done == total else "", file=sys.stderr)

    return show


if __name__ == "__main__":
    cli.run(main)
