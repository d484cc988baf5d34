"""A brush for anti-aliased pictures: shapes in units of 1/128 of a picture's side, painted large and scaled down."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

UNITS = 128
SUPERSAMPLING = 4
Colour = tuple[int, int, int]
Units = float | int  # 128 of them are a picture's side


def tinted(colour: Colour, factors: Sequence[Units]) -> Colour:
    """A colour under a light: each channel times its factor."""
    return tuple(min(255, round(value * factor)) for value, factor in zip(colour, factors, strict=True))


class Brush:
    """Shapes in units on one canvas; `light` multiplies all colours but those given with `lit=False`."""

    def __init__(self, size: int, light: Sequence[Units] = (1, 1, 1)):
        """A square canvas for a picture of `size` pixels."""
        self.size, self.light = size, light
        self._scale = size * SUPERSAMPLING / UNITS
        self._image = Image.new("RGB", (size * SUPERSAMPLING,) * 2)
        self._draw = ImageDraw.Draw(self._image, "RGBA")

    def _points(self, points):
        return [(x * self._scale, y * self._scale) for x, y in points]

    def _fill(self, colour: Colour, alpha: int, lit: bool):
        return (*(tinted(colour, self.light) if lit else colour), alpha)

    def gradient(self, top: Colour, bottom: Colour, until: Units) -> None:
        """Fills rows from the top down to `until` units, from one colour to the other; no light falls on it."""
        rows = round(until * self._scale)
        share = np.linspace(0, 1, max(rows, 1))[:, None]
        column = np.round(np.asarray(top) * (1 - share) + np.asarray(bottom) * share).astype(np.uint8)
        strip = np.repeat(column[:, None], self._image.width, axis=1)
        self._image.paste(Image.fromarray(strip), (0, 0))

    def polygon(self, points, colour: Colour, *, alpha: int = 255, outline: bool = False, lit: bool = True) -> None:
        """A filled polygon, on request with a darker edge."""
        fill = self._fill(colour, alpha, lit)
        self._draw.polygon(self._points(points), fill=fill)
        if outline:
            edge = (*tinted(fill[:3], (0.6, 0.6, 0.6)), alpha)
            closed = self._points([*points, points[0]])
            self._draw.line(closed, fill=edge, width=round(0.9 * self._scale), joint="curve")

    def ellipse(
        self, x: Units, y: Units, rx: Units, ry: Units, colour: Colour, *, alpha=255, outline=False, lit=True
    ) -> None:
        """A filled ellipse around (x, y)."""
        fill = self._fill(colour, alpha, lit)
        box = [(x - rx) * self._scale, (y - ry) * self._scale, (x + rx) * self._scale, (y + ry) * self._scale]
        edge = (*tinted(fill[:3], (0.6, 0.6, 0.6)), alpha) if outline else None
        self._draw.ellipse(box, fill=fill, outline=edge, width=round(0.9 * self._scale) if outline else 0)

    def rectangle(self, x0: Units, y0: Units, x1: Units, y1: Units, colour: Colour, **more) -> None:
        """A filled upright rectangle."""
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour, **more)

    def line(self, points, colour: Colour, width: Units, *, lit: bool = True) -> None:
        """A line with round ends."""
        fill = self._fill(colour, 255, lit)
        self._draw.line(self._points(points), fill=fill, width=max(1, round(width * self._scale)), joint="curve")
        for x, y in points:
            r = width / 2
            self._draw.ellipse(
                [(x - r) * self._scale, (y - r) * self._scale, (x + r) * self._scale, (y + r) * self._scale], fill=fill
            )

    def limb(self, points, colour: Colour, width: Units) -> None:
        """A line with a darker edge."""
        self.line(points, tinted(colour, (0.6, 0.6, 0.6)), width + 1.6)
        self.line(points, colour, width)

    def finished(self) -> np.ndarray:
        """The picture, uint8[size size 3]."""
        return np.asarray(self._image.resize((self.size, self.size), Image.Resampling.BOX))
