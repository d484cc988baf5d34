"""The cast as figures of a picture book: upright animals whose species shows in ears, tail and face."""

from seedstory_jax.toy.tales.brush import Brush, Colour, Units, tinted
from seedstory_jax.toy.tales.facts import Animal

EYE, CHEEK, NOSE, BEAK = (38, 30, 34), (240, 150, 140), (60, 44, 44), (240, 158, 48)
STRAW, BAND = (236, 206, 130), (126, 84, 52)
GROUND = 119.0  # where feet stand, in units
SCARF_Y = 84.5


def paint_animal(brush: Brush, animal: Animal, x: Units, pose: str, scarf: Colour | None) -> None:
    """A figure of some 56 units around column `x`; without a scarf it wears the hero's straw hat."""
    fur, dark = animal.fur, tinted(animal.fur, (0.78, 0.78, 0.78))
    down = 5.0 if pose == "sleep" else 0.0
    brush.ellipse(x, GROUND, 15, 2.6, (20, 30, 30), alpha=80)
    _tail(brush, animal, x, down)
    for side in (-1, 1):
        brush.ellipse(x + side * 6.5, GROUND - 1.8, 5.2, 2.8, BEAK if animal.face == "beak" else dark, outline=True)
    if animal.ears == "spines":
        _spines(brush, x, down, dark)
    brush.ellipse(x, 101 + down / 2, 12.5, 17 - down / 2, fur, outline=True)
    brush.ellipse(x, 104 + down / 2, 8.2, 11.5 - down / 2, animal.belly)
    _arms(brush, x, pose, fur, down)
    _ears(brush, animal, x, down)
    brush.ellipse(x, 71 + down, 14.2, 13, fur, outline=True)
    _face(brush, animal, x, pose, down)
    if scarf is not None:
        y = SCARF_Y + down
        brush.polygon([(x + 3, y), (x + 9, y), (x + 11, y + 16), (x + 5, y + 17)], scarf, outline=True)
        brush.polygon([(x - 11, y - 3), (x + 11, y - 3), (x + 10, y + 4), (x - 10, y + 4)], scarf, outline=True)
    else:
        brush.ellipse(x, 61 + down, 17, 3.6, STRAW, outline=True)
        brush.ellipse(x, 56.5 + down, 9.5, 6, STRAW, outline=True)
        brush.rectangle(x - 9.3, 57.5 + down, x + 9.3, 60 + down, BAND)


def _tail(brush: Brush, animal: Animal, x: Units, down: Units) -> None:
    fur, y = animal.fur, 106 + down / 2
    if animal.tail == "bushy":
        brush.polygon(
            [(x - 8, y + 6), (x - 22, y + 2), (x - 27, y - 14), (x - 16, y - 8), (x - 8, y - 4)], fur, outline=True
        )
        brush.polygon([(x - 27, y - 14), (x - 25.5, y - 6), (x - 19.5, y - 10)], animal.belly)
    elif animal.tail == "puff":
        brush.ellipse(x - 13, y + 4, 5, 5, animal.belly, outline=True)
    elif animal.tail == "stub":
        brush.ellipse(x - 13, y + 3, 4, 3, fur, outline=True)
    elif animal.tail == "thin":
        brush.limb([(x - 9, y + 6), (x - 18, y + 5), (x - 23, y - 3), (x - 21, y - 12)], fur, 1.8)
    elif animal.tail == "thick":
        brush.limb([(x - 8, y + 6), (x - 17, y + 8), (x - 24, y + 4)], fur, 5)
    elif animal.tail == "shell":
        brush.ellipse(x, 100 + down / 2, 17, 17, (124, 92, 60), outline=True)
        for dx, dy in ((-14, -3), (14, -3), (-13, 6), (13, 6)):
            brush.ellipse(x + dx, 100 + dy, 2, 2.6, (160, 124, 84))


def _spines(brush: Brush, x: Units, down: Units, colour: Colour) -> None:
    for number in range(13):
        across = -1 + number / 6
        tall = 22 * (1 - across * across) ** 0.5
        brush.polygon(
            [(x + across * 15 - 3, 84 + down), (x + across * 21, 78 - tall + down), (x + across * 15 + 3, 84 + down)],
            colour,
        )
        brush.polygon(
            [(x + across * 13 - 3, 104), (x + across * 20, 96 + 6 * abs(across)), (x + across * 13 + 3, 110)], colour
        )


def _ears(brush: Brush, animal: Animal, x: Units, down: Units) -> None:
    fur, inside, y = animal.fur, tinted(CHEEK, (0.98, 0.92, 0.92)), 60 + down
    for side in (-1, 1):
        if animal.ears == "pointed":
            brush.polygon([(x + side * 3, y), (x + side * 13, y - 12), (x + side * 14, y + 7)], fur, outline=True)
            brush.polygon([(x + side * 7, y), (x + side * 11.8, y - 7), (x + side * 12, y + 3)], inside)
        elif animal.ears == "round":
            brush.ellipse(x + side * 10.5, y - 0.5, 5, 5, fur, outline=True)
            brush.ellipse(x + side * 10.5, y - 0.5, 2.6, 2.6, animal.belly)
        elif animal.ears == "disks":
            brush.ellipse(x + side * 12.5, y - 1, 8.5, 8.5, fur, outline=True)
            brush.ellipse(x + side * 12.5, y - 1, 5.4, 5.4, inside)
        elif animal.ears == "long":
            brush.ellipse(x + side * 6.5, y - 11, 3.9, 15, fur, outline=True)
            brush.ellipse(x + side * 6.5, y - 11, 1.9, 11, inside)
        elif animal.ears == "floppy":
            brush.ellipse(x + side * 14, y + 10, 4.6, 10, tinted(fur, (0.72, 0.68, 0.66)), outline=True)
        elif animal.ears == "tufts":
            brush.polygon([(x + side * 3, y), (x + side * 14, y - 9), (x + side * 12, y + 5)], fur, outline=True)


def _face(brush: Brush, animal: Animal, x: Units, pose: str, down: Units) -> None:
    y = 71 + down
    if animal.face == "beak":
        for side in (-1, 1):
            brush.ellipse(x + side * 5.3, y - 1, 5.2, 5.6, animal.belly)
    elif animal.face == "muzzle":
        brush.ellipse(x, y + 5.5, 7.6, 5.6, animal.belly)
    elif animal.face == "snout":
        brush.ellipse(x, y + 4.5, 9, 7, animal.belly)
    for side in (-1, 1):
        if pose == "sleep":
            brush.line([(x + side * 3.4, y - 1), (x + side * 5.3, y), (x + side * 7.2, y - 1)], EYE, 1)
        else:
            brush.ellipse(x + side * 5.3, y - 1.2, 2.1, 2.6, EYE)
            brush.ellipse(x + side * 5.3 + 0.7, y - 2.2, 0.8, 0.8, (255, 255, 255))
        brush.ellipse(x + side * 9.4, y + 4.2, 2.2, 1.5, CHEEK, alpha=170)
    if animal.face == "beak":
        brush.polygon([(x - 3.6, y + 2), (x + 3.6, y + 2), (x, y + 7.5)], BEAK, outline=True)
        return
    brush.ellipse(x, y + 2.4, 2.1, 1.5, NOSE)
    smile = -1.2 if pose == "sad" else 1.4
    brush.line([(x - 3, y + 6.4), (x, y + 6.4 + smile), (x + 3, y + 6.4)], NOSE, 0.9)


def _arms(brush: Brush, x: Units, pose: str, fur: Colour, down: Units) -> None:
    hands = {
        "wave": ((-15, 104), (21, 74)),
        "cheer": ((-21, 74), (21, 74)),
        "point": ((-15, 104), (24, 90)),
        "walk": ((-16, 101), (14, 99)),
        "sad": ((-11, 108), (11, 108)),
        "sleep": ((-8, 103), (8, 103)),
    }.get(pose, ((-15, 104), (15, 104)))
    for side, (dx, y) in zip((-1, 1), hands, strict=True):
        brush.limb([(x + side * 9.5, 91 + down), (x + dx, y + down)], fur, 4.4)
