"""Captions set into a box of a Pillow picture: broken into lines, shrunk until they fit, in fonts that have them."""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from PIL import ImageDraw, ImageFont

from seedstory_jax.export.fonts import Font, FontChoice

LEADING = 1.36  # line height in font sizes
SMALLEST = 9  # pixels; a caption that does not fit even so ends in an ellipsis
Line = list[tuple[Font, str]]


@dataclass(frozen=True)
class Setting:
    """Lines of text at a font size in pixels."""

    lines: list[Line]
    size: int

    @property
    def height(self) -> int:
        """Pixels from the first line's top to the last line's bottom."""
        return round(len(self.lines) * self.size * LEADING)

    def draw(self, canvas: ImageDraw.ImageDraw, left: float, top: float, width: float, fill, *, align="center") -> None:
        """Draw the lines into a column `width` pixels wide."""
        for number, line in enumerate(self.lines):
            free = width - _width(line, self.size)
            x = left + (free / 2 if align == "center" else 0)
            baseline = top + self.size * (number * LEADING + 1.02)
            for font, text in line:
                canvas.text((x, baseline), text, font=_sized(font, self.size), fill=fill, anchor="ls")
                x += _sized(font, self.size).getlength(text)


def fit_text(fonts: FontChoice, text: str, width: float, height: float, size: int) -> Setting:
    """`text` in the largest size up to `size` at which it fits `width` by `height` pixels; cut if none does."""
    smallest = min(size, SMALLEST)
    while True:
        lines = wrap(fonts, text, width, size)
        room = max(1, int(height / (size * LEADING)))
        if len(lines) <= room:
            return Setting(lines, size)
        if size <= smallest:
            font, last = lines[room - 1][-1]
            return Setting([*lines[: room - 1], [*lines[room - 1][:-1], (font, last.rstrip()[:-1] + "…")]], size)
        size = max(smallest, int(size * 0.94))


def wrap(fonts: FontChoice, text: str, width: float, size: int) -> list[Line]:
    """`text` broken into lines of at most `width` pixels, each as runs of one font."""
    lines, current = [], ""
    for piece in _pieces(text):
        if _width(fonts.runs((current + piece).rstrip()), size) <= width:
            current += piece
            continue
        if current.strip():
            lines.append(current)
        current = ""
        for character in piece:  # a piece wider than the whole line is broken anywhere
            if current and _width(fonts.runs((current + character).rstrip()), size) > width:
                lines.append(current)
                current = ""
            current += character
    return [fonts.runs(line.strip()) for line in (*lines, current) if line.strip()]


def _pieces(text: str) -> Iterator[str]:
    """What stays together in a line: words with their spaces; in scripts without spaces, single characters."""
    piece = ""
    for character in text:
        wide = unicodedata.east_asian_width(character) in "WF"
        closes = unicodedata.category(character) in ("Pe", "Pf", "Po", "Mn", "Mc")
        if piece and (piece[-1].isspace() or wide or _is_wide(piece[-1])) and not character.isspace() and not closes:
            yield piece
            piece = ""
        piece += character
    if piece:
        yield piece


def _is_wide(character: str) -> bool:
    opens = unicodedata.category(character) in ("Ps", "Pi")
    return unicodedata.east_asian_width(character) in "WF" and not opens


def _width(line: Line, size: int) -> float:
    return sum(_sized(font, size).getlength(text) for font, text in line)


@lru_cache(maxsize=256)
def _sized(font: Font, size: int) -> ImageFont.FreeTypeFont:
    return font.at(size)
