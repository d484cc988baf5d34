"""Places of the tales in three planes, by day, at dusk and at night."""

from collections.abc import Callable

import numpy as np

from seedstory_jax.toy.tales.brush import Brush, Colour, Units, tinted

HORIZON = 66
SKIES = {
    "day": ((104, 176, 236), (222, 241, 250)),
    "dusk": ((96, 74, 150), (255, 178, 116)),
    "night": ((14, 20, 54), (58, 74, 128)),
}
# Light on the land, and on the figures in front, who must stay readable.
LIGHT = {"day": (1, 1, 1), "dusk": (0.98, 0.80, 0.74), "night": (0.42, 0.48, 0.68)}
FRONT_LIGHT = {"day": (1, 1, 1), "dusk": (1, 0.92, 0.88), "night": (0.76, 0.80, 0.94)}
GRASS, SAND, SEA, ROCK, WOOD, SNOW = (
    (126, 186, 88),
    (238, 216, 164),
    (66, 148, 190),
    (140, 136, 142),
    (152, 110, 72),
    (246, 250, 252),
)
LEAF, PINE, WALL, ROOF, LAMP = (94, 158, 78), (46, 110, 82), (246, 232, 206), (176, 88, 66), (255, 224, 140)
SAIL_AT = (101.0, 44.0)  # a point inside the sail, in units


def paint_scene(brush: Brush, place: str, time: str, sail: Colour | None) -> None:
    """Sky, far, middle and near ground; with `sail` a boat on the water."""
    top, bottom = SKIES[time]
    brush.gradient(top, bottom, 128)
    _sky(brush, time)
    brush.light = LIGHT[time]
    _PAINTERS[place](brush, time)
    if sail is not None:
        brush.light = FRONT_LIGHT[time]
        brush.polygon([(82, 70), (122, 70), (114, 80), (90, 80)], WOOD, outline=True)
        brush.line([(98, 70), (98, 22)], (96, 68, 46), 1.6)
        brush.polygon([(99.5, 24), (99.5, 64), (121, 64)], sail, outline=True)
        brush.polygon([(96.5, 32), (96.5, 64), (84, 64)], sail, outline=True)


def _sky(brush: Brush, time: str) -> None:
    if time == "night":
        for x, y in np.random.default_rng(7).uniform((2, 2), (126, 56), (34, 2)):
            brush.ellipse(x, y, 0.55, 0.55, (255, 250, 226), lit=False)
        brush.ellipse(106, 19, 9, 9, (250, 244, 214), lit=False)
        brush.ellipse(102, 17, 8, 8, (22, 29, 66), lit=False)
        return
    sun = (20, 18, 8, (255, 236, 150)) if time == "day" else (22, 54, 12, (255, 216, 130))
    x, y, r, colour = sun
    for ring in (2.2, 1.6):
        brush.ellipse(x, y, r * ring, r * ring, colour, alpha=50, lit=False)
    brush.ellipse(x, y, r, r, colour, lit=False)
    cloud = (255, 255, 255) if time == "day" else (255, 206, 178)
    for x, y in ((58, 16), (108, 28)):
        for dx, dy, r in ((0, 0, 5), (6, -2, 6.5), (13, 0, 5), (6, 2, 5)):
            brush.ellipse(x + dx - 6, y + dy, r * 1.25, r * 0.8, cloud, alpha=225, lit=False)


def _ridge(brush: Brush, y: Units, height: Units, waves: Units, phase: Units, colour: Colour) -> None:
    x = np.linspace(0, 128, 65)
    line = y - height * (0.5 + 0.5 * np.sin(x / 128 * waves * 2 * np.pi + phase))
    brush.polygon([*zip(x, line, strict=True), (128, 128), (0, 128)], colour)


def _land(brush: Brush, far: Colour = (150, 186, 170), middle: Colour = (118, 176, 108), near: Colour = GRASS) -> None:
    _ridge(brush, HORIZON, 14, 1.3, 0.4, far)
    _ridge(brush, HORIZON + 14, 9, 1.1, 2.6, middle)
    _ridge(brush, 100, 5, 0.9, 5.0, near)
    for x, y in np.random.default_rng(3).uniform((0, 102), (128, 127), (42, 2)):
        brush.line([(x, y), (x + 0.8, y - 2.4)], tinted(near, (0.82, 0.86, 0.8)), 0.6)


def _sea(brush: Brush) -> None:
    brush.rectangle(0, HORIZON, 128, 128, SEA)
    for number, (x, y) in enumerate(np.random.default_rng(5).uniform((0, HORIZON + 3), (118, 100), (24, 2))):
        brush.line([(x, y), (x + 5 + number % 4, y)], tinted(SEA, (1.5, 1.22, 1.16)), 0.7)


def _shore(brush: Brush, colour: Colour = SAND) -> None:
    _ridge(brush, 96, 4, 0.8, 1.2, tinted(SEA, (1.7, 1.36, 1.2)))
    _ridge(brush, 98, 4, 0.8, 1.2, colour)
    for x, y in np.random.default_rng(9).uniform((0, 102), (128, 127), (26, 2)):
        brush.ellipse(x, y, 0.7, 0.5, tinted(colour, (0.86, 0.84, 0.8)))


def _tree(brush: Brush, x: Units, y: Units, size: Units, leaf: Colour = LEAF) -> None:
    brush.polygon(
        [(x - 1.6 * size, y), (x + 1.6 * size, y), (x + size, y - 12 * size), (x - size, y - 12 * size)], WOOD
    )
    for dx, dy, r in ((-5, -14, 6), (5, -14, 6), (0, -20, 7.5), (0, -14, 6)):
        shade = 1.0 if dx <= 0 else 0.9
        brush.ellipse(x + dx * size, y + dy * size, r * size, r * size, tinted(leaf, (shade,) * 3))


def _pine(brush: Brush, x: Units, y: Units, size: Units, colour: Colour = PINE) -> None:
    brush.rectangle(x - size, y - 6 * size, x + size, y, WOOD)
    for level in range(3):
        base, wide = y - (5 + 8 * level) * size, (11 - 2.6 * level) * size
        shade = 1 + 0.1 * level
        brush.polygon([(x - wide, base), (x + wide, base), (x, base - 15 * size)], tinted(colour, (shade,) * 3))


def _flowers(brush: Brush, count: int) -> None:
    for number, (x, y) in enumerate(np.random.default_rng(11).uniform((2, 104), (126, 126), (count, 2))):
        petal = ((250, 244, 236), (246, 206, 220), (252, 232, 170))[number % 3]
        for dx, dy in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            brush.ellipse(x + dx, y + dy, 0.9, 0.9, petal)
        brush.ellipse(x, y, 0.7, 0.7, (236, 184, 70))


def _house(brush: Brush, time: str, x: Units, y: Units, wall: Colour, roof: Colour) -> None:
    brush.rectangle(x + 20, y - 44, x + 26, y - 26, tinted(ROCK, (0.9,) * 3))
    brush.rectangle(x, y - 26, x + 36, y, wall, outline=True)
    brush.polygon([(x - 5, y - 25), (x + 41, y - 25), (x + 30, y - 43), (x + 6, y - 43)], roof, outline=True)
    brush.rectangle(x + 6, y - 17, x + 15, y, WOOD, outline=True)
    window = LAMP if time != "day" else (176, 212, 232)
    brush.rectangle(x + 20, y - 18, x + 31, y - 8, window, outline=True, lit=time == "day")
    brush.line([(x + 25.5, y - 18), (x + 25.5, y - 8)], WOOD, 0.8)


def _cottage(brush: Brush, time: str) -> None:
    _land(brush)
    _tree(brush, 20, 88, 1.2)
    _house(brush, time, 72, 94, WALL, ROOF)
    _flowers(brush, 12)


def _meadow(brush: Brush, time: str) -> None:
    _land(brush, near=(146, 200, 92))
    for x in range(4, 128, 15):
        brush.rectangle(x, 84, x + 2.4, 98, (228, 214, 190))
    brush.rectangle(0, 87, 128, 89, (228, 214, 190))
    _flowers(brush, 46)


def _forest(brush: Brush, time: str) -> None:
    _land(brush, (120, 168, 150), (84, 146, 104), (98, 154, 82))
    for x, size in ((8, 0.9), (26, 1.0), (46, 0.8), (66, 0.95), (88, 0.85), (106, 1.0), (122, 0.9)):
        _pine(brush, x, 84, size, (92, 146, 122))
    for x, size in ((2, 1.7), (60, 1.35), (124, 1.75)):
        _pine(brush, x, 98, size)


def _river(brush: Brush, time: str) -> None:
    _land(brush)
    brush.polygon([(128, 74), (70, 80), (30, 88), (0, 92), (0, 106), (60, 99), (128, 96)], SEA)
    for x, y in ((20, 97), (56, 92), (84, 88), (104, 84), (40, 96)):
        brush.line([(x, y), (x + 8, y - 1)], tinted(SEA, (1.5, 1.22, 1.16)), 0.7)
    _tree(brush, 12, 86, 1.0)


def _hill(brush: Brush, time: str) -> None:
    _land(brush, (164, 196, 190), (140, 184, 130))
    x = np.linspace(0, 128, 65)
    brush.polygon([*zip(x, 104 - 44 * np.exp(-(((x - 82) / 34) ** 2)), strict=True), (128, 128), (0, 128)], GRASS)
    _tree(brush, 84, 63, 1.3)
    _flowers(brush, 10)


def _cave(brush: Brush, time: str) -> None:
    _land(brush, near=(132, 170, 100))
    brush.polygon([(58, 98), (64, 52), (80, 34), (102, 28), (128, 40), (128, 100)], ROCK, outline=True)
    brush.polygon([(102, 28), (128, 40), (128, 100), (110, 98)], tinted(ROCK, (0.86,) * 3))
    brush.ellipse(94, 84, 15, 22, (44, 38, 52))
    brush.rectangle(79, 84, 109, 98, (44, 38, 52))
    _pine(brush, 14, 92, 1.1)


def _mountain(brush: Brush, time: str) -> None:
    for x, y, wide, shade in ((26, 30, 40, 1.12), (98, 22, 50, 1.0), (64, 40, 36, 0.92)):
        rock = tinted((132, 140, 160), (shade,) * 3)
        brush.polygon([(x - wide, 90), (x, y), (x + wide, 90)], rock)
        part = 0.32
        left, right = x - wide * part, x + wide * part
        low = y + (90 - y) * part
        brush.polygon([(left, low), (x - 3, low - 5), (x + 3, low + 1), (right, low), (x, y)], SNOW)
    _ridge(brush, 98, 6, 0.9, 2.0, (146, 178, 120))
    _pine(brush, 8, 98, 1.0)
    _pine(brush, 120, 99, 1.1)


def _house_by_the_sea(brush: Brush, time: str) -> None:
    _sea(brush)
    _ridge(brush, 92, 6, 0.7, 2.4, (150, 190, 110))
    _house(brush, time, 74, 94, (250, 250, 246), (84, 116, 150))
    _flowers(brush, 10)


def _beach(brush: Brush, time: str) -> None:
    _sea(brush)
    _shore(brush)
    for x, y in ((12, 114), (58, 124), (118, 110)):
        brush.ellipse(x, y, 2.6, 1.8, (250, 236, 226), outline=True)


def _pier(brush: Brush, time: str) -> None:
    _sea(brush)
    for x in (8, 34, 60, 86, 112):
        brush.rectangle(x, 92, x + 4, 128, tinted(WOOD, (0.7,) * 3))
    for row in range(5):
        y = 96 + row * 6.4
        brush.rectangle(0, y, 128, y + 6, tinted(WOOD, (1.16 - 0.04 * row,) * 3), outline=True)


def _lighthouse(brush: Brush, time: str) -> None:
    _sea(brush)
    _ridge(brush, 94, 10, 0.6, 4.2, tinted(ROCK, (1.05,) * 3))
    brush.polygon([(84, 92), (90, 28), (104, 28), (110, 92)], (248, 246, 240), outline=True)
    for low in (40, 62, 82):
        wide = (low - 28) / 64 * 6
        brush.rectangle(90.4 - wide, low - 8, 103.6 + wide, low, (178, 74, 66))
    brush.rectangle(91, 18, 103, 28, LAMP if time != "day" else (206, 226, 236), outline=True, lit=time == "day")
    brush.polygon([(88, 18), (106, 18), (97, 10)], (120, 62, 58), outline=True)
    if time != "day":
        brush.polygon([(91, 20), (91, 26), (0, 44), (0, 8)], LAMP, alpha=60, lit=False)
    _ridge(brush, 104, 4, 0.8, 1.0, (150, 178, 112))


def _market(brush: Brush, time: str) -> None:
    _land(brush, (176, 186, 196), (198, 178, 154), (220, 200, 166))
    for x, colour in ((4, (196, 108, 92)), (48, (98, 150, 152)), (90, (206, 170, 92))):
        brush.rectangle(x + 2, 58, x + 4, 94, WOOD)
        brush.rectangle(x + 30, 58, x + 32, 94, WOOD)
        brush.rectangle(x, 80, x + 34, 94, tinted(WOOD, (1.2,) * 3), outline=True)
        for stripe in range(4):
            tone = colour if stripe % 2 == 0 else (248, 240, 226)
            left = x - 2 + stripe * 9.5
            brush.polygon([(left + 2, 50), (left + 9.5, 50), (left + 9.5, 62), (left, 62)], tone)
        for fruit in range(5):
            brush.ellipse(x + 5 + fruit * 6, 78, 2.8, 2.8, ((206, 96, 74), (228, 176, 84), (134, 172, 90))[fruit % 3])


def _cliff(brush: Brush, time: str) -> None:
    _sea(brush)
    brush.polygon([(128, 58), (92, 60), (84, 76), (88, 100), (128, 104)], tinted(ROCK, (1.1, 1.02, 0.94)), outline=True)
    brush.polygon([(128, 56), (90, 58), (92, 62), (128, 63)], GRASS)
    _ridge(brush, 98, 3, 0.7, 0.6, tinted(GRASS, (0.98,) * 3))
    _flowers(brush, 8)


def _island(brush: Brush, time: str) -> None:
    _sea(brush)
    _shore(brush)
    brush.limb([(16, 102), (18, 80), (24, 58), (32, 44)], WOOD, 3.2)
    for dx, dy in ((-20, 4), (-16, -9), (-2, -14), (14, -10), (20, 4)):
        brush.polygon(
            [(32, 44), (32 + dx * 0.5, 40 + dy), (32 + dx, 46 + dy), (32 + dx * 0.5, 44 + dy)], LEAF, outline=True
        )


_PAINTERS: dict[str, Callable[[Brush, str], None]] = {
    "cottage": _cottage,
    "meadow": _meadow,
    "forest": _forest,
    "river": _river,
    "hill": _hill,
    "cave": _cave,
    "mountain": _mountain,
    "house": _house_by_the_sea,
    "beach": _beach,
    "pier": _pier,
    "lighthouse": _lighthouse,
    "market": _market,
    "cliff": _cliff,
    "island": _island,
}
