"""The toy world's pictures: 64-pixel art drawn from a few shapes, one place for everything.

Every character of a series has a column of its own (16 pixels, the width of a ViT patch), every prop its own place and
the treasure the middle of the sky. A small model that regresses features would average free positions into ghosts.
"""

from functools import cache

import numpy as np

SIZE = 64
SPRITE_WIDTH, SPRITE_HEIGHT = 20, 38
COLUMNS = (8, 24, 40, 56)  # x of each character's middle, in cast order
FEET = 57  # y of the first row under the feet
JUMP = 6  # how far a jump lifts

INK = (52, 38, 50)
SKIN = (248, 206, 164)
WHITE = (255, 255, 255)

POSES = ("stand", "wave", "jump", "sleep")


class Canvas:
    """A small RGBA picture to draw flat shapes on."""

    def __init__(self, width: int = SPRITE_WIDTH, height: int = SPRITE_HEIGHT):
        self.pixels = np.zeros((height, width, 4), np.uint8)
        self.y, self.x = np.mgrid[:height, :width] + 0.5

    def fill(self, mask, color) -> None:
        """Colour where the mask is True."""
        self.pixels[mask] = (*color, 255)

    def ellipse(self, cx, cy, rx, ry, color) -> None:
        """A filled ellipse about (cx, cy)."""
        self.fill(((self.x - cx) / rx) ** 2 + ((self.y - cy) / ry) ** 2 <= 1, color)

    def rect(self, x0, y0, x1, y1, color) -> None:
        """A filled rectangle."""
        self.fill((self.x > x0) & (self.x < x1) & (self.y > y0) & (self.y < y1), color)

    def line(self, x0, y0, x1, y1, width, color) -> None:
        """A line with round ends."""
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((self.x - x0) * dx + (self.y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        distance = np.hypot(self.x - x0 - along * dx, self.y - y0 - along * dy)
        self.fill(distance <= width / 2, color)

    def polygon(self, points, color) -> None:
        """A filled polygon (even-odd rule)."""
        inside = np.zeros(self.x.shape, bool)
        for (x0, y0), (x1, y1) in zip(points, (*points[1:], points[0])):
            if y0 != y1:
                crosses = (self.y > min(y0, y1)) & (self.y <= max(y0, y1))
                inside ^= crosses & (self.x < x0 + (self.y - y0) * (x1 - x0) / (y1 - y0))
        self.fill(inside, color)

    def outline(self, color=INK) -> None:
        """Put a dark line around what is drawn: it keeps a figure apart from any background."""
        solid = np.pad(self.pixels[..., 3] > 0, 1)
        near = solid[:-2, 1:-1] | solid[2:, 1:-1] | solid[1:-1, :-2] | solid[1:-1, 2:]
        self.fill(near & ~solid[1:-1, 1:-1], color)

    def dots(self, points, color) -> None:
        """Single pixels."""
        for x, y in points:
            if 0 <= y < self.pixels.shape[0] and 0 <= x < self.pixels.shape[1]:
                self.pixels[y, x] = (*color, 255)


def _eyes(c: Canvas, cx: int, cy: int, asleep: bool) -> None:
    """Two eyes and a mouth about (cx, cy); lines for eyes when asleep."""
    if asleep:
        c.dots([(cx - 4, cy), (cx - 3, cy), (cx + 2, cy), (cx + 3, cy)], INK)
        c.dots([(cx - 1, cy + 4), (cx, cy + 4)], INK)
    else:
        c.dots([(cx - 3, cy), (cx - 3, cy + 1), (cx + 2, cy), (cx + 2, cy + 1)], INK)
        c.dots([(cx - 2, cy + 3), (cx - 1, cy + 4), (cx, cy + 4), (cx + 1, cy + 3)], INK)


def _snore(c: Canvas, x: int, y: int) -> None:
    """A letter Z in the air over a sleeper."""
    ink, paper = (70, 90, 200), WHITE
    c.ellipse(x + 2.5, y + 2.5, 4.2, 4.2, paper)
    z = (
        [(x + i, y) for i in range(5)]
        + [(x + i, y + 4) for i in range(5)]
        + [(x + 3, y + 1), (x + 2, y + 2), (x + 1, y + 3)]
    )
    c.dots(z, ink)


def _person(pose, *, skin, top, legs, shoes, head, face=None, body=None, before=None, sleeves=None) -> np.ndarray:
    """A two-legged figure. `head(c, cx, cy)` draws what is special about the head, `body(c, cy)` a dress or a belly."""
    c = Canvas()
    sleeves = sleeves or top
    asleep = pose == "sleep"
    cy = 22 if asleep else 12  # middle of the head
    if before:
        before(c, cy)
    if asleep:  # sitting on the ground, legs stretched out
        c.ellipse(10, 32, 6.5, 5.5, top)
        c.rect(3, 34, 17, 37, legs)
        c.rect(2, 34, 4, 37, shoes)
        c.rect(16, 34, 18, 37, shoes)
    elif pose == "jump":
        c.line(8, 27, 5, 33, 3.2, legs)
        c.line(12, 27, 15, 33, 3.2, legs)
        c.ellipse(4.5, 34, 2.2, 1.8, shoes)
        c.ellipse(15.5, 34, 2.2, 1.8, shoes)
    else:
        c.rect(6.5, 28, 9.5, 36, legs)
        c.rect(10.5, 28, 13.5, 36, legs)
        c.rect(5.5, 35, 9.5, 37, shoes)
        c.rect(10.5, 35, 14.5, 37, shoes)
    raised = {"wave": (1,), "jump": (-1, 1)}.get(pose, ())
    if not asleep:
        c.rect(6, 18, 14, 29, top)
        for side in (-1, 1):
            x = 10 + side * 4.5
            if side not in raised:
                c.line(x, 20, x + side * 1.2, 26, 2.6, sleeves)
                c.ellipse(10 + side * 5.8, 27, 1.7, 1.7, skin)
    if body:
        body(c, asleep)
    c.ellipse(10, cy, 6, 6, face or skin)
    head(c, 10, cy)
    for side in raised:
        c.line(10 + side * 5, 20, 10 + side * 7.6, 13, 2.6, sleeves)
        c.ellipse(10 + side * 7.6, 10.5, 1.9, 2.2, skin)
    c.outline()
    _eyes(c, 10, cy, asleep)
    if asleep:
        _snore(c, 11, 4)
    return c.pixels


def _monkey(pose: str) -> np.ndarray:
    fur, pale = (150, 88, 42), (244, 204, 150)

    def before(c, cy):
        c.line(6, 30, 2, 27, 2, fur)
        c.line(2, 27, 2, 23, 2, fur)
        for side in (-1, 1):
            c.ellipse(10 + side * 6, cy, 3, 3.2, fur)
            c.ellipse(10 + side * 6, cy, 1.5, 1.8, pale)

    def head(c, cx, cy):
        c.ellipse(cx - 2.2, cy + 0.5, 2.8, 3, pale)
        c.ellipse(cx + 2.2, cy + 0.5, 2.8, 3, pale)
        c.ellipse(cx, cy + 3.2, 4, 2.6, pale)

    def body(c, asleep):
        c.ellipse(10, 31 if asleep else 24, 2.8, 4 if not asleep else 3, pale)

    return _person(pose, skin=pale, top=fur, legs=fur, shoes=fur, face=fur, head=head, body=body, before=before)


def _man_in_yellow(pose: str) -> np.ndarray:
    yellow, band = (250, 208, 40), (110, 74, 40)

    def head(c, cx, cy):
        c.rect(cx - 5, cy - 10, cx + 5, cy - 4, yellow)
        c.rect(cx - 5, cy - 6, cx + 5, cy - 4, band)
        c.rect(cx - 8, cy - 4, cx + 8, cy - 2, yellow)

    def body(c, asleep):
        y = 29 if asleep else 19
        c.polygon([(9, y), (11, y), (11.6, y + 5), (10, y + 7), (8.4, y + 5)], (190, 60, 40))

    return _person(pose, skin=SKIN, top=yellow, legs=(214, 160, 20), shoes=band, head=head, body=body)


def _girl_in_red(pose: str) -> np.ndarray:
    red, hair = (226, 44, 56), (74, 44, 30)

    def before(c, cy):
        c.ellipse(10, cy + 1, 7.6, 7.6, hair)
        c.rect(2.6, cy + 1, 17.4, cy + 7, hair)

    def head(c, cx, cy):
        c.fill((((c.x - cx) / 6.2) ** 2 + ((c.y - cy) / 6.2) ** 2 <= 1) & (c.y < cy - 2), hair)
        c.polygon([(cx, cy - 6), (cx - 5, cy - 9), (cx - 5, cy - 3)], red)
        c.polygon([(cx, cy - 6), (cx + 5, cy - 9), (cx + 5, cy - 3)], red)

    def body(c, asleep):
        if not asleep:
            c.polygon([(7.5, 18), (12.5, 18), (17, 31), (3, 31)], red)

    return _person(pose, skin=SKIN, top=red, legs=SKIN, shoes=(120, 20, 40), head=head, body=body, before=before)


def _spotted_dog(pose: str) -> np.ndarray:
    c = Canvas()
    coat, spot, collar = (250, 246, 238), (66, 60, 70), (40, 140, 220)
    asleep = pose == "sleep"
    cx, cy = (8, 29) if asleep else (8, 17)
    if asleep:
        c.line(16, 33, 18, 29, 2.2, coat)
        c.ellipse(11, 32, 7.5, 5, coat)
        c.ellipse(14, 30, 2.4, 1.9, spot)
    else:
        tail = {"stand": (18.5, 22), "wave": (18.5, 18), "jump": (18.5, 16)}[pose]
        c.line(15, 27, *tail, 2.4, coat)
        if pose == "jump":
            c.line(7, 29, 3, 33, 3, coat)
            c.line(14, 29, 18, 33, 3, coat)
            c.line(9, 29, 7, 34, 3, coat)
            c.line(12, 29, 14, 34, 3, coat)
        else:
            for x in (6, 9.4, 12.8, 16):
                if not (pose == "wave" and x == 6):
                    c.rect(x - 1.2, 28, x + 1.2, 37, coat)
            if pose == "wave":
                c.line(5, 28, 2, 24, 3, coat)
        c.ellipse(11, 27, 6.5, 4.6, coat)
        c.ellipse(14, 26, 2.2, 2, spot)
        c.ellipse(10, 29, 1.5, 1.4, spot)
        c.rect(4, 22, 12, 24.5, collar)
    c.ellipse(cx, cy, 6, 5.8, coat)
    c.ellipse(cx + 2.8, cy - 1.2, 2.6, 2.6, spot)
    c.ellipse(cx - 6, cy + 0.5, 2.2, 4.4, spot)
    c.ellipse(cx + 6, cy + 0.5, 2.2, 4.4, spot)
    c.outline()
    _eyes(c, cx, cy - 1, asleep)
    c.dots([(cx - 3, cy - 1), (cx + 2, cy - 1)], INK)
    c.dots([(cx + 2, cy - 2)], WHITE)
    c.dots([(cx - 1, cy + 1), (cx, cy + 1), (cx - 1, cy + 2), (cx, cy + 2)], INK)
    if asleep:
        _snore(c, 11, 12)
    return c.pixels


def _robot(pose: str) -> np.ndarray:
    steel, dark, light = (120, 190, 200), (70, 120, 140), (255, 120, 60)

    def before(c, cy):
        c.line(10, cy - 6, 10, cy - 10, 1.6, dark)
        c.ellipse(10, cy - 10, 2, 2, light)

    def head(c, cx, cy):
        c.rect(cx - 7, cy - 6, cx + 7, cy + 6, steel)
        c.rect(cx - 5, cy - 3, cx + 5, cy + 6, (214, 240, 240))

    def body(c, asleep):
        y = 28 if asleep else 19
        c.rect(4, y, 16, y + (7 if asleep else 11), steel)
        c.rect(7, y + 2, 13, y + 6, light)

    return _person(pose, skin=dark, top=steel, legs=dark, shoes=dark, head=head, body=body, before=before, sleeves=dark)


def _purple_wizard(pose: str) -> np.ndarray:
    purple, gold, beard = (126, 66, 190), (250, 208, 40), (236, 236, 240)

    def head(c, cx, cy):
        c.ellipse(cx, cy + 5, 4.5, 4, beard)
        c.polygon([(cx - 6, cy - 3), (cx + 6, cy - 3), (cx + 2, cy - 12)], purple)
        c.rect(cx - 8, cy - 4, cx + 8, cy - 2, purple)
        c.rect(cx - 1, cy - 7, cx + 1, cy - 5, gold)

    def body(c, asleep):
        if not asleep:
            c.polygon([(6, 18), (14, 18), (17, 35), (3, 35)], purple)
            c.rect(5, 26, 15, 28, gold)

    return _person(pose, skin=SKIN, top=purple, legs=purple, shoes=(80, 50, 40), head=head, body=body)


def _green_frog(pose: str) -> np.ndarray:
    green, belly = (80, 180, 60), (226, 240, 150)

    def before(c, cy):
        c.ellipse(10, cy + 1, 8, 5.5, green)

    def head(c, cx, cy):
        for side in (-1, 1):
            c.ellipse(cx + side * 4, cy - 5, 3, 3, green)
            c.ellipse(cx + side * 4, cy - 5, 1.6, 1.6, WHITE)
        c.ellipse(cx, cy + 3, 5.5, 2.6, belly)

    def body(c, asleep):
        c.ellipse(10, 31 if asleep else 25, 7, 5.5, green)
        c.ellipse(10, 32 if asleep else 26, 4, 3.8, belly)

    return _person(pose, skin=green, top=green, legs=green, shoes=green, head=head, body=body, before=before)


def _white_rabbit(pose: str) -> np.ndarray:
    white, pink, vest = (250, 248, 250), (255, 160, 180), (50, 110, 210)

    def before(c, cy):
        for side in (-1, 1):
            c.ellipse(10 + side * 3.4, cy - 6.5, 2.5, 5, white)
            c.ellipse(10 + side * 3.4, cy - 6.5, 1.1, 3.4, pink)

    def head(c, cx, cy):
        c.dots([(cx - 1, cy + 2), (cx, cy + 2)], pink)

    return _person(pose, skin=white, top=vest, legs=white, shoes=white, head=head, before=before)


DRAW = {
    "monkey": _monkey,
    "man in yellow": _man_in_yellow,
    "girl in red": _girl_in_red,
    "spotted dog": _spotted_dog,
    "robot": _robot,
    "purple wizard": _purple_wizard,
    "green frog": _green_frog,
    "white rabbit": _white_rabbit,
}


@cache
def character(name: str, pose: str) -> np.ndarray:
    """RGBA sprite, uint8[38 20 4]; the feet stand on its last row."""
    return DRAW[name](pose)


# Props and treasures: RGBA sprite and the place of its top left corner.


def _kite() -> Canvas:
    c = Canvas(16, 18)
    c.line(8, 13, 5, 17, 1.2, INK)
    c.polygon([(8, 0.8), (14.6, 6.5), (8, 14), (1.4, 6.5)], (240, 120, 30))
    c.fill((c.pixels[..., 3] > 0) & (c.x > 8) & (c.y < 6.5), (60, 170, 230))
    c.fill((c.pixels[..., 3] > 0) & (c.x < 8) & (c.y > 6.5) & (c.y < 13), (60, 170, 230))
    return c


def _balloon() -> Canvas:
    c = Canvas(16, 18)
    c.line(8, 12, 9, 17.5, 1.2, INK)
    c.ellipse(8, 7, 6, 6.2, (236, 60, 150))
    c.ellipse(6, 5, 1.4, 1.8, (255, 190, 220))
    return c


def _ball() -> Canvas:
    c = Canvas(14, 14)
    c.ellipse(7, 7, 6, 6, (245, 245, 245))
    round_part = c.pixels[..., 3] > 0
    c.fill(round_part & (abs(c.x - 7) < 2.2), (30, 90, 220))
    c.fill(round_part & (c.x < 2.6), (30, 90, 220))
    c.fill(round_part & (c.x > 11.4), (30, 90, 220))
    return c


def _basket() -> Canvas:
    c = Canvas(16, 14)
    c.ellipse(8, 6, 6.2, 5.4, (150, 90, 40))
    c.pixels[(((c.x - 8) / 4.4) ** 2 + ((c.y - 6) / 3.6) ** 2 <= 1) & (c.y < 7)] = 0
    for x, color in ((4.5, (220, 40, 40)), (8, (90, 190, 60)), (11.5, (220, 40, 40))):
        c.ellipse(x, 6.2, 2, 2, color)
    c.polygon([(1.2, 7), (14.8, 7), (13, 13.2), (3, 13.2)], (206, 144, 70))
    for y in (8, 10, 12):
        c.dots([(x, y) for x in range(2 + (y % 4) // 2, 14, 2)], (150, 90, 40))
    return c


PROPS = {"kite": (_kite, 0, 0), "balloon": (_balloon, 48, 0), "ball": (_ball, 9, 50), "basket": (_basket, 40, 50)}
COLORS = {"red": (226, 40, 48), "blue": (48, 96, 226), "golden": (255, 200, 30), "white": (252, 252, 252)}


def _star(c: Canvas, color) -> None:
    turn = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    radius = np.where(np.arange(10) % 2 == 0, 7, 3)
    c.polygon([(8 + r * np.sin(t), 8.2 - r * np.cos(t)) for r, t in zip(radius, turn)], color)


def _heart(c: Canvas, color) -> None:
    c.ellipse(4.8, 5.2, 3.6, 3.6, color)
    c.ellipse(11.2, 5.2, 3.6, 3.6, color)
    c.polygon([(1.4, 6.6), (14.6, 6.6), (8, 14.5)], color)


def _crown(c: Canvas, color) -> None:
    c.polygon([(1.5, 3), (5, 7.5), (8, 1.5), (11, 7.5), (14.5, 3), (13.5, 13.5), (2.5, 13.5)], color)


def _gem(c: Canvas, color) -> None:
    c.polygon([(4.5, 2), (11.5, 2), (14.8, 6.2), (8, 14.8), (1.2, 6.2)], color)
    pale = tuple((v + 2 * 255) // 3 for v in color)
    c.polygon([(6, 2), (10, 2), (11, 6), (5, 6)], pale)


TREASURES = {"star": _star, "heart": _heart, "crown": _crown, "gem": _gem}
TREASURE_PLACE = (24, 0)


@cache
def prop(name: str) -> tuple[np.ndarray, int, int]:
    """(RGBA sprite, x, y) of a prop: each has one place of its own."""
    draw, x, y = PROPS[name]
    canvas = draw()
    canvas.outline()
    return canvas.pixels, x, y


@cache
def treasure(color: str, kind: str) -> tuple[np.ndarray, int, int]:
    """(RGBA sprite, x, y) of the treasure that the opening names."""
    canvas = Canvas(16, 16)
    TREASURES[kind](canvas, COLORS[color])
    canvas.outline()
    return canvas.pixels, *TREASURE_PLACE


def paste(picture: np.ndarray, sprite: np.ndarray, x: int, y: int) -> None:
    """Draw an RGBA sprite into uint8[64 64 3] at (x, y), cut at the borders; alpha is 0 or 255."""
    height, width = sprite.shape[:2]
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + width, SIZE), min(y + height, SIZE)
    part = sprite[y0 - y : y1 - y, x0 - x : x1 - x]
    target = picture[y0:y1, x0:x1]
    solid = part[..., 3] > 0
    target[solid] = part[solid][:, :3]


def paste_character(picture: np.ndarray, column: int, name: str, pose: str) -> None:
    """Draw a character at the column (0-3) of its place in the cast."""
    y = FEET - SPRITE_HEIGHT - (JUMP if pose == "jump" else 0)
    paste(picture, character(name, pose), COLUMNS[column] - SPRITE_WIDTH // 2, y)
