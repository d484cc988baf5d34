"""Pictures of turns, and what can be read back from their pixels."""

import numpy as np

from seedstory_jax.toy.tales.animals import SCARF_Y, paint_animal
from seedstory_jax.toy.tales.brush import UNITS, Brush, Units, tinted
from seedstory_jax.toy.tales.facts import COLOURS, SERIES, Tale, Turn
from seedstory_jax.toy.tales.scenes import FRONT_LIGHT, SAIL_AT, SKIES, paint_scene

PLACES_OF = {1: (44.0,), 2: (36.0, 86.0), 3: (24.0, 64.0, 104.0)}  # columns of one, two or three figures, in units
THING_DX = 20.0  # of what was lost, from the hero's column


def paint(tale: Tale, turn: Turn, size: int = UNITS) -> np.ndarray:
    """The picture of a turn, uint8[size size 3], anti-aliased; the same facts give the same pixels."""
    brush = Brush(size)
    paint_scene(brush, turn.place, turn.time, COLOURS[turn.sail] if turn.sail else None)
    brush.light = FRONT_LIGHT[turn.time]
    columns = PLACES_OF[len(turn.cast)]
    for x, (name, pose) in zip(columns, turn.cast, strict=True):
        scarf = tale.scarf(name)
        paint_animal(brush, SERIES[tale.series].animal(name), x, pose, COLOURS[scarf] if scarf else None)
    if turn.shows_thing:
        _paint_thing(brush, tale.thing, columns[turn.names.index(tale.hero)] + THING_DX, 104)
    return brush.finished()


def read_scarf(picture: np.ndarray, figure: int, figures: int, time: str) -> str:
    """The colour, the nearest of `COLOURS`, of one scarf among `figures` awake figures, counted from the left."""
    x = PLACES_OF[figures][figure]
    return _nearest(picture, [(x + dx, SCARF_Y + dy) for dx in (-5, 0, 5) for dy in (-0.5, 1)], time)


def read_sail(picture: np.ndarray, time: str) -> str:
    """The colour of the boat's sail."""
    x, y = SAIL_AT
    return _nearest(picture, [(x + dx, y + dy) for dx in (1, 3) for dy in (2, 6, 10)], time)


def read_time(picture: np.ndarray) -> str:
    """The time of day, by the sky at the upper edge."""
    top = picture[0].astype(float).mean(0)
    return min(SKIES, key=lambda time: float(np.abs(top - SKIES[time][0]).sum()))


def _nearest(picture: np.ndarray, points, time: str) -> str:
    scale = picture.shape[0] / UNITS
    seen = np.median([picture[int(y * scale), int(x * scale)] for x, y in points], axis=0)
    distance = {name: np.abs(seen - tinted(rgb, FRONT_LIGHT[time])).sum() for name, rgb in COLOURS.items()}
    return min(distance, key=distance.__getitem__)


def _paint_thing(brush: Brush, thing: str, x: Units, y: Units) -> None:
    gold, paper, dark = (228, 182, 72), (250, 240, 214), (120, 84, 56)
    if thing == "bell":
        brush.polygon([(x - 3, y - 7), (x + 3, y - 7), (x + 7, y + 5), (x - 7, y + 5)], gold, outline=True)
        brush.ellipse(x, y + 6, 2, 2, dark)
    elif thing == "kite":
        brush.line([(x, y + 8), (x + 4, y + 13), (x, y + 15)], dark, 0.9)
        brush.polygon([(x, y - 12), (x + 8, y - 2), (x, y + 9), (x - 8, y - 2)], (110, 196, 196), outline=True)
        brush.line([(x, y - 12), (x, y + 9)], dark, 0.7)
    elif thing == "lantern":
        brush.rectangle(x - 5, y - 6, x + 5, y + 7, (255, 224, 130), outline=True, lit=False)
        brush.polygon([(x - 6, y - 6), (x + 6, y - 6), (x, y - 12)], dark, outline=True)
    elif thing == "drum":
        brush.rectangle(x - 8, y - 4, x + 8, y + 7, (178, 96, 72), outline=True)
        brush.ellipse(x, y - 4, 8, 3, paper, outline=True)
    elif thing == "crown":
        points = [(x - 8, y + 5), (x - 8, y - 6), (x - 4, y), (x, y - 8), (x + 4, y), (x + 8, y - 6), (x + 8, y + 5)]
        brush.polygon(points, gold, outline=True)
    else:
        brush.rectangle(x - 8, y - 6, x + 8, y + 6, (96, 128, 120), outline=True)
        brush.rectangle(x - 6, y - 4, x + 6, y + 4, paper)
        brush.line([(x, y - 6), (x, y + 6)], dark, 1)
