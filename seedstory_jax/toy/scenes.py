"""The toy world's six backgrounds: a few flat colours each, so that a small VAE has nothing to fear."""

from functools import cache

import numpy as np

from seedstory_jax.toy.sprites import SIZE, Canvas

HORIZON = 44


def _ground(sky, ground, edge=None) -> Canvas:
    c = Canvas(SIZE, SIZE)
    c.rect(0, 0, SIZE, SIZE, sky)
    c.rect(0, HORIZON, SIZE, SIZE, ground)
    if edge:
        c.rect(0, HORIZON, SIZE, HORIZON + 2, edge)
    return c


def _farm() -> Canvas:
    c = _ground((150, 214, 250), (214, 186, 92), (186, 152, 64))
    c.rect(15, 24, 49, 44, (184, 64, 52))
    c.polygon([(12, 25), (32, 15), (52, 25)], (120, 54, 50))
    c.rect(26, 30, 38, 44, (236, 224, 206))
    c.line(26, 30, 38, 44, 1.5, (184, 64, 52))
    c.line(38, 30, 26, 44, 1.5, (184, 64, 52))
    return c


def _city() -> Canvas:
    c = _ground((196, 204, 228), (132, 134, 146), (98, 100, 112))
    for x, top, color in (
        (0, 20, (112, 124, 168)),
        (16, 10, (146, 116, 150)),
        (40, 22, (112, 124, 168)),
        (52, 14, (146, 116, 150)),
    ):
        width = 16 if x != 16 else 24
        c.rect(x, top, x + width, HORIZON, color)
        for wy in range(top + 3, HORIZON - 4, 7):
            for wx in range(x + 3, x + width - 3, 7):
                c.rect(wx, wy, wx + 3, wy + 4, (250, 236, 150))
    c.rect(0, 58, 64, 60, (226, 226, 230))
    return c


def _snow() -> Canvas:
    c = _ground((136, 166, 214), (238, 246, 255), (206, 222, 244))
    c.polygon([(-8, 44), (18, 14), (44, 44)], (178, 192, 222))
    c.polygon([(11, 22.2), (18, 14), (25, 22.2)], (250, 252, 255))
    c.polygon([(28, 44), (50, 20), (72, 44)], (160, 178, 214))
    c.polygon([(44, 26.6), (50, 20), (56, 26.6)], (250, 252, 255))
    return c


def _park() -> Canvas:
    c = _ground((142, 220, 244), (112, 192, 84), (88, 164, 68))
    for x in (0, 32, 64):
        c.rect(x - 2.5, 28, x + 2.5, 44, (134, 92, 58))
        c.ellipse(x, 22, 12, 9, (66, 150, 74))
        c.ellipse(x - 3, 19, 6, 4, (98, 178, 92))
    return c


def _room() -> Canvas:
    c = _ground((250, 222, 178), (176, 120, 78), (128, 82, 56))
    c.rect(0, HORIZON - 1, 64, HORIZON + 2, (128, 82, 56))
    c.rect(21, 17, 43, 37, (128, 82, 56))
    c.rect(23, 19, 41, 35, (150, 206, 240))
    c.rect(31, 19, 33, 35, (128, 82, 56))
    c.rect(23, 26, 41, 28, (128, 82, 56))
    c.rect(2, 52, 62, 62, (200, 92, 86))
    c.rect(4, 54, 60, 60, (226, 150, 120))
    return c


def _beach() -> Canvas:
    c = _ground((170, 228, 250), (250, 228, 160), (230, 204, 130))
    c.rect(0, 30, 64, HORIZON, (40, 150, 206))
    c.rect(0, 35, 64, 36.4, (130, 204, 234))
    c.rect(0, 41, 64, HORIZON, (130, 204, 234))
    c.polygon([(26, 28), (38, 28), (38, 14)], (255, 255, 255))
    c.polygon([(22, 29), (44, 29), (40, 34), (26, 34)], (150, 84, 60))
    return c


SCENES = {"farm": _farm, "city": _city, "snow": _snow, "park": _park, "room": _room, "beach": _beach}


@cache
def background(scene: str) -> np.ndarray:
    """The empty scene, uint8[64 64 3]; do not write into it."""
    picture = SCENES[scene]().pixels[..., :3].copy()
    picture.flags.writeable = False
    return picture
