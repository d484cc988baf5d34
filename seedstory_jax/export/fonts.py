"""Fonts for captions: one that has a caption's characters, out of those that this machine has."""

import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import ImageFont

from seedstory_jax.errors import UserError

# Tried in this order: book faces first, then those with many scripts. A name is a file's, without its suffix.
PREFERRED = (
    "NotoSerif-Regular", "DejaVuSerif", "LiberationSerif-Regular", "Georgia", "Times New Roman", "times",
    "DejaVuSans", "NotoSans-Regular", "Arial Unicode", "arialuni", "NotoSerifCJK-Regular", "NotoSansCJK-Regular",
    "Songti", "PingFang", "msyh", "simsun", "NotoEmoji-Regular", "Symbola",
)  # fmt: skip
UNFIT = ("Bold", "Italic", "Oblique", "Light", "Thin", "Black", "Mono", "Condensed", "Color", "ExtraLight", "Medium")
SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
MISSING = "\ufffd"
# Joiners, variation selectors and marks of direction: nothing is drawn for them, so no glyph is missed.
_INVISIBLE = {0x200B, 0x200C, 0x200D, 0x200E, 0x200F, 0x2060, 0xFEFF, *range(0xFE00, 0xFE10), *range(0x202A, 0x202F)}


def folders() -> list[Path]:
    """Where the system and its user keep fonts."""
    home = Path.home()
    if sys.platform == "darwin":
        return [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    if sys.platform == "win32":
        return [Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts", home / "AppData/Local/Microsoft/Windows/Fonts"]
    return [home / ".local/share/fonts", home / ".fonts", Path("/usr/local/share/fonts"), Path("/usr/share/fonts")]


def carried() -> bytes:
    """The file of the small Latin font that Pillow carries."""
    return ImageFont.load_default(20).path.getvalue()


@dataclass(frozen=True)
class Font:
    """A font file (the first face of a collection); `path` None is the small Latin one that Pillow carries."""

    path: Path | None

    @cached_property
    def characters(self) -> frozenset[int]:
        """Code points that it has a glyph for. Empty for a file that is no usable font."""
        try:
            from fontTools.ttLib import TTFont, TTLibError
        except ImportError:
            raise UserError("captions need fontTools: pip install 'seedstory_jax[book]'") from None
        try:
            data = self.path.open("rb") if self.path else io.BytesIO(carried())
            with data as file, TTFont(file, fontNumber=0, lazy=True) as font:
                outlines = {"glyf", "CFF ", "CFF2"} & set(font.keys())  # colour bitmaps alone cannot be scaled
                return frozenset(font.getBestCmap() or ()) if outlines else frozenset()
        except (TTLibError, OSError, ValueError, KeyError, AssertionError):
            return frozenset()

    def at(self, size: int) -> ImageFont.FreeTypeFont:
        """The font for Pillow, `size` pixels high."""
        return ImageFont.load_default(size) if self.path is None else ImageFont.truetype(str(self.path), size)


class FontChoice:
    """Fonts in the order in which they are tried, and the characters that none of them has."""

    def __init__(self, fonts: Iterable[Font]):
        self._rest: Iterator[Font] = iter(fonts)
        self._fonts: list[Font] = []
        self.missing: set[str] = set()

    def _each(self) -> Iterator[Font]:
        """Every usable font; files are opened only as far as one must look."""
        yield from self._fonts
        for font in self._rest:
            if font.characters:
                self._fonts.append(font)
                yield font

    def runs(self, text: str) -> list[tuple[Font, str]]:
        """`text` as (font, part): one part where a font has all of it, else the first font for each word or character.

        What no font has becomes U+FFFD (or "?") and is kept in `missing`.
        """
        whole = self._first(text)
        if whole is not None:
            return [(whole, text)]
        runs: list[tuple[Font, str]] = []
        for word in _words(text):
            font = self._first(word)
            parts = [(font, word)] if font else [self._one(character) for character in word]
            for font, part in parts:
                if runs and runs[-1][0] is font:
                    runs[-1] = (font, runs[-1][1] + part)
                else:
                    runs.append((font, part))
        return runs

    def _first(self, text: str) -> Font | None:
        wanted = {ord(character) for character in text if not character.isspace()} - _INVISIBLE
        if wanted & {ord(character) for character in self.missing}:
            return None
        return next((font for font in self._each() if wanted <= font.characters), None)

    def _one(self, character: str) -> tuple[Font, str]:
        font = self._first(character)
        if font is not None:
            return font, character
        self.missing.add(character)
        font = self._first(MISSING)
        return (font, MISSING) if font else (next(self._each()), "?")


def find_fonts(own: Sequence[Path] = ()) -> FontChoice:
    """The given font files, then the machine's, then Pillow's own. Raises UserError if a given file is no font."""
    given = []
    for path in own:
        font = Font(Path(path))
        if not font.path.is_file() or not font.characters:
            raise UserError(f"--font={path} is no font that can be read: give a .ttf, .otf or .ttc file")
        given.append(font)
    return FontChoice([*given, *(Font(path) for path in _installed()), Font(None)])


def _installed() -> list[Path]:
    files = [path for folder in folders() for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES]
    upright = [path for path in files if not any(word in path.stem for word in UNFIT)]
    first = sorted((path for path in upright if path.stem in PREFERRED), key=lambda path: PREFERRED.index(path.stem))
    return [*first, *(path for path in upright if path.stem not in PREFERRED)]


def _words(text: str) -> Iterator[str]:
    """Words with the space after them."""
    word = ""
    for character in text:
        word += character
        if character.isspace():
            yield word
            word = ""
    if word:
        yield word
