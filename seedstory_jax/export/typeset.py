"""Captions set into a box of a Pillow picture: broken into lines, shrunk until they fit, in fonts that have them."""

import unicodedata
from collections.abc import Callable, Iterator
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

    def draw(
        self,
        canvas: ImageDraw.ImageDraw,
        left: float | int,
        top: float | int,
        width: float | int,
        fill: str | tuple | int,
    ) -> None:
        """Draw the lines, centred, into a column `width` pixels wide."""
        for number, line in enumerate(self.lines):
            x = left + (width - _width(line, self.size)) / 2
            baseline = top + self.size * (number * LEADING + 1.02)
            for font, text in line:
                canvas.text((x, baseline), text, font=_sized(font, self.size), fill=fill, anchor="ls")
                x += _sized(font, self.size).getlength(text)


def largest_size(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest size in [low, high] that `fits`, found by halving; `low` if none does."""
    if fits(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def fit_text(fonts: FontChoice, text: str, width: float | int, height: float | int, size: int) -> Setting:
    """`text` in the largest size up to `size` at which it fits `width` by `height` pixels; cut if none does."""
    set_in: dict[int, list[Line]] = {}

    def room(size: int) -> int:
        return max(1, int(height / (size * LEADING)))

    def fits(size: int) -> bool:
        set_in[size] = wrap(fonts, text, width, size)
        return len(set_in[size]) <= room(size)

    size = largest_size(fits, min(size, SMALLEST), size)
    lines = set_in[size] if size in set_in else wrap(fonts, text, width, size)
    if len(lines) > room(size):
        *line, (font, last) = lines[room(size) - 1]
        lines = [*lines[: room(size) - 1], [*line, (font, last.rstrip()[:-1] + "…")]]
    return Setting(lines, size)


def wrap(fonts: FontChoice, text: str, width: float | int, size: int) -> list[Line]:
    """`text` broken into lines of at most `width` pixels, each as runs of one font."""
    lines, current, used = [], "", 0.0
    for piece in _pieces(text):
        too_wide = _width(fonts.runs(piece.rstrip()), size) > width
        for part in piece if too_wide else [piece]:  # a piece wider than a line is broken anywhere
            if current and used + _width(fonts.runs(part.rstrip()), size) > width:
                lines.append(current)
                current, used = "", 0.0
            current, used = current + part, used + _width(fonts.runs(part), size)
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


def _width(line: Line, size: int) -> float | int:
    return sum(_sized(font, size).getlength(text) for font, text in line)


@lru_cache(maxsize=256)
def _sized(font: Font, size: int) -> ImageFont.FreeTypeFont:
    return font.at(size)
