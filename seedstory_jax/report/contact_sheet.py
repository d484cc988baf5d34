"""A contact sheet: some stories as rows, frames evenly spread as columns (Figure 8 of the paper)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seedstory_jax import outputs
from seedstory_jax.evaluation.stories import StoryFolder, read_picture

ROWS, COLUMNS, GAP = 4, 10, 4


def write_contact_sheet(
    path: Path, stories: Sequence[StoryFolder], *, rows: int = ROWS, columns: int = COLUMNS, side: int = 128
) -> Path | None:
    """Write a PNG of the first `rows` stories that have pictures; None (and no file) if none has.

    Every picture is `side` pixels; pixel art keeps its edges.
    """
    from PIL import Image

    drawn = [story for story in stories if story.images and all(story.images)][:rows]
    if not drawn:
        return None
    wide = min(columns, max(map(len, drawn)))
    size = (wide * (side + GAP) - GAP, len(drawn) * (side + GAP) - GAP)
    sheet = Image.new("RGB", size, (255, 255, 255))
    for row, story in enumerate(drawn):
        for column, frame in enumerate(spread(len(story), wide)):
            picture = Image.fromarray(read_picture(story.images[frame]))
            small = max(picture.size) <= side
            how = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
            sheet.paste(picture.resize((side, side), how), (column * (side + GAP), row * (side + GAP)))
    with outputs.written_whole(path, by="report") as beside:
        sheet.save(beside, "PNG")
    return path


def spread(length: int, count: int) -> list[int]:
    """`count` frames of `length`, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, length - 1, min(count, length))})
