"""Pictures from files to arrays: opened with care, squashed for the ViT or cropped for SD-XL.

Two transforms, as published: `"clip"` squashes to a square (bilinear with antialiasing, CLIP's mean and deviation);
`"sd"` keeps the ratio (short side to size, bicubic, centre crop) and scales to [-1, 1]. In the `adapt` stage the ViT,
too, sees a keep-ratio crop: `ImageTransform("clip", keep_ratio=True)`.
"""

import io
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from seedstory_jax.errors import UserError

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
MAX_PIXELS = 64_000_000
MIN_SIDE = 128
MIN_ASPECT = 0.2  # and its inverse

FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "PPM",
)  # Pillow's others may start programs (EPS) or are obscure

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

# Pillow warns of sizes (the limit here is max_pixels) and of metadata nobody reads. Once for all, since threads decode:
# `catch_warnings` around each picture would leave the filters of whichever thread came last.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class ImageTransform:
    """How a picture becomes an array.

    kind: "clip" (squash, bilinear, CLIP mean and deviation) or "sd" (keep ratio, bicubic, [-1, 1]); the other fields
    override what the kind implies. `resample="box"` gives back pixel art that was stored enlarged exactly.
    """

    kind: str = "clip"
    size: int = 448
    keep_ratio: bool | None = None
    resample: str | None = None

    def __post_init__(self):
        if self.kind not in ("clip", "sd"):
            raise ValueError(f"unknown image transform {self.kind!r}: choose clip or sd")
        if self.resample is not None and self.resample not in RESAMPLING:
            raise ValueError(f"unknown resampling {self.resample!r}: choose from {', '.join(RESAMPLING)}")

    @property
    def geometry(self) -> tuple[int, bool, str]:
        """All that `pixels` depends on: size, whether the ratio is kept, how pixels are resampled."""
        keep_ratio = self.kind == "sd" if self.keep_ratio is None else self.keep_ratio
        return self.size, keep_ratio, self.resample or ("bicubic" if self.kind == "sd" else "bilinear")

    def pixels(self, image: Image.Image) -> np.ndarray:
        """The picture at its final size, uint8[size size 3]: what is shown, or kept in memory."""
        _, keep_ratio, name = self.geometry
        resample = RESAMPLING[name]
        image = image if image.mode == "RGB" else image.convert("RGB")
        if not keep_ratio:
            return np.asarray(image.resize((self.size, self.size), resample))
        width, height = short_side_to(image.width, image.height, self.size)
        left, top = crop_offset(width, self.size), crop_offset(height, self.size)
        if width > self.size and height != image.height:
            # Pillow resizes columns first, then rows: the same in two calls, and the rows only of what is kept.
            image = image.resize((width, image.height), resample).crop((left, 0, left + self.size, image.height))
            return np.asarray(image.resize((self.size, height), resample))
        image = image.resize((width, height), resample) if (width, height) != image.size else image
        return np.asarray(image.crop((left, top, left + self.size, top + self.size)))

    def normalise(self, pixels: Any) -> Any:
        """uint8[... H W 3] to the float32 that the model takes; numpy's or jax's, as it was given."""
        scaled = pixels.astype(np.float32) / np.float32(255)
        if self.kind == "sd":
            return (scaled - np.float32(0.5)) / np.float32(0.5)
        return (scaled - CLIP_MEAN) / CLIP_STD

    def __call__(self, image: Image.Image) -> np.ndarray:
        """float32[size size 3] of one picture."""
        return self.normalise(self.pixels(image))


def short_side_to(width: int, height: int, size: int) -> tuple[int, int]:
    """(width, height) after a resize of the short side to `size` with the ratio kept."""
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size


def crop_offset(length: int, size: int) -> int:
    """Where a centre crop of `size` begins; round half to even, as published."""
    return round((length - size) / 2)


def open_image(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open and decode a picture file, RGB. An alpha channel is dropped, not blended.

    Raises UserError, one line, if it is missing, empty, not an image, damaged or larger than `max_pixels`.
    """
    path = Path(path)
    try:
        if not path.is_file():  # a pipe or a device would block
            raise FileNotFoundError if not path.exists() else UserError(f"{path} is no file: give a picture file")
        return decode_image(path.read_bytes(), path, max_pixels=max_pixels)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the path of a picture") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read as a picture ({error})") from error


def decode_image(data: bytes, name: object, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The RGB picture of an encoded file's bytes; errors as in `open_image`, which say `name`."""
    try:
        return _decode(data, name, max_pixels)
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{name} is not a picture that can be read: give a PNG or JPEG") from None
    except Image.DecompressionBombError:
        raise UserError(f"{name} has far more than {max_pixels:,} pixels: make it smaller") from None
    except Exception as error:  # Pillow's decoders raise whatever damaged data makes them stumble over
        raise UserError(f"{name} cannot be read as a picture ({error})") from error


def _decode(data: bytes, name: object, max_pixels: int) -> Image.Image:
    if not data:
        raise UserError(f"{name} is empty: give a picture file")
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > max_pixels:
            raise UserError(
                f"{name} has {image.width} x {image.height} pixels, more than {max_pixels:,}: make it smaller"
            )
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")


def shape_fault(width: int, height: int, *, min_side: int = MIN_SIDE, min_aspect: float = MIN_ASPECT) -> str | None:
    """Why a picture is not fit for training (side < 128, ratio outside [.2, 5]), or None."""
    if min(width, height) < min_side:
        return f"{width} x {height}: a side is shorter than {min_side}"
    ratio, max_aspect = width / height, 1 / min_aspect
    if not min_aspect <= ratio <= max_aspect:
        return f"{width} x {height}: the ratio {ratio:.2f} is outside [{min_aspect}, {max_aspect}]"
    return None


def read_images(paths: Sequence[Path | str], transform: ImageTransform, *, threads: int = 2) -> np.ndarray:
    """Read many pictures into uint8[n size size 3]; `transform.normalise` makes them floats.

    Decoding runs in threads (Pillow lets go of the lock). Raises UserError for the first that cannot be read.
    """
    pictures = np.empty((len(paths), transform.size, transform.size, 3), np.uint8)

    def read(number: int) -> None:
        pictures[number] = transform.pixels(open_image(paths[number]))

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        list(pool.map(read, range(len(paths))))
    return pictures
