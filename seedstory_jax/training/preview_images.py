"""Images to look at while a stage trains."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from seedstory_jax.files import atomic_path

PREVIEW_IMAGES = 8


def write_grid(folder: Path, step: int, rows: Sequence[np.ndarray], enlarge: int = 2) -> Path:
    """folder/step_<n>.png from rows of pictures [n h w 3], uint8 or floats in [-1, 1]; small ones are enlarged.

    Of several processes that draw the same pictures, one writes.
    """
    lines = [np.concatenate(list(_pixels(row)), axis=1) for row in rows]
    image = Image.fromarray(np.concatenate(lines, axis=0))
    side = rows[0].shape[1]
    scale = max(1, enlarge * 64 // side)
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    path = folder / f"step_{step:06d}.png"
    if jax.process_index():
        return path
    with atomic_path(path) as beside:
        image.save(beside)
    return path


def _pixels(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    return np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
