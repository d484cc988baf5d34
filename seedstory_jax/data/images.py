"""Pictures from files to arrays: opened as a viewer shows them, squashed for the ViT or cropped for SD-XL.

One function, `examine`, decodes a picture for training, sampling, evaluation and `validate` alike: turned as its EXIF
says, 16-bit greys scaled to 8, transparent parts over white, the first frame of an animation. What has no one look
(floating-point or LAB pixels, damaged data) is refused.

Two transforms, as published: `"clip"` squashes to a square (bilinear with antialiasing, CLIP's mean and deviation);
`"sd"` keeps the ratio (short side to size, bicubic, centre crop) and scales to [-1, 1]. In the `adapt` stage the ViT,
too, sees a keep-ratio crop: `ImageTransform("clip", keep_ratio=True)`.
"""

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from seedstory_jax.data.names import FileFault, read_regular
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

USUAL_MODES = ("RGB", "L")

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF's orientation

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
    """The picture in a file as a viewer shows it, RGB.

    Raises FileFault, one line, if it is missing, no regular file, empty, not an image, damaged or larger than
    `max_pixels`.
    """
    path = Path(path)
    return decode_image(read_regular(path), path, max_pixels=max_pixels)


def decode_image(data: bytes, name: object, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The RGB picture of an encoded file's bytes; errors as in `open_image`, which say `name`."""
    return examine(data, name, max_pixels=max_pixels)[0]


def examine(data: bytes, name: object, *, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, tuple[str, ...]]:
    """The RGB picture of an encoded file's bytes, and what is unusual about the file. Errors as in `open_image`."""
    image = open_header(data, name, max_pixels=max_pixels)
    try:
        with image:
            odd = [] if image.mode in USUAL_MODES else [f"unusual mode {image.mode}"]
            if image.mode in USUAL_MODES and "transparency" in image.info:
                odd.append("unusual mode: transparency")
            if getattr(image, "is_animated", False):
                odd.append("animated")
            image.load()
            turn = TURNS.get(_orientation(image))
            shown = _as_shown(image, name)
            if turn is None:
                return shown, tuple(odd)
            return shown.transpose(turn), (*odd, "turned by its EXIF")
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever damaged data makes them stumble over
        raise FileFault(name, f"is truncated or damaged ({_short(error)})") from error


def open_header(data: bytes, name: object, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture of which only the header was read; errors as in `open_image`."""
    if not data:
        raise FileFault(name, "is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise FileFault(name, f"is not a picture that can be read ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise FileFault(name, f"has far more than {max_pixels:,} pixels: make it smaller") from None
    except Exception as error:
        raise FileFault(name, f"is truncated or damaged ({_short(error)})") from error
    if image.width * image.height > max_pixels:
        raise FileFault(name, f"has {image.width} x {image.height} pixels, more than {max_pixels:,}: make it smaller")
    return image


def _orientation(image: Image.Image) -> int | None:
    """How the file asks to be turned; None where it says nothing that can be understood, as viewers take it."""
    try:
        return image.getexif().get(0x0112)  # TIFF is turned by Pillow itself, which then drops the tag
    except Exception:
        return None


def _as_shown(image: Image.Image, name: object) -> Image.Image:
    """A loaded picture as RGB, transparent parts over white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()  # without the file's metadata and its open handle
    if image.mode.startswith("I"):
        return _scaled_grey(image, name)
    if image.mode in ("F", "LAB", "HSV"):
        words = "floating-point" if image.mode == "F" else image.mode
        raise FileFault(name, f"holds {words} pixels, which have no one look: save it with 8 bits a channel in RGB")
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", shown.size, (255, 255, 255, 255)), shown).convert("RGB")
    return image.convert("RGB")


def _scaled_grey(image: Image.Image, name: object) -> Image.Image:
    """Greys of more than 8 bits, scaled so that the brightest they can say is white."""
    values = np.asarray(image).astype(np.int64)
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(258, (16,))[0] if tags else 16
    white = 2**bits - 1
    if bits > 16 or values.min(initial=0) < 0 or values.max(initial=0) > white:
        raise FileFault(name, "holds 32-bit pixels, whose white is not known: save it with 8 or 16 bits")
    if tags.get(262) == 0:  # TIFF's WhiteIsZero
        values = white - values
    grey = ((values * 255 + white // 2) // white).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[values == clear] = 255
    return Image.fromarray(grey).convert("RGB")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def digest(image: Image.Image) -> str:
    """A picture's identity: of its size and its RGB pixels."""
    return hashlib.sha256(repr(image.size).encode() + image.convert("RGB").tobytes()).hexdigest()


def shape_fault(width: int, height: int, *, min_side: int = MIN_SIDE, min_aspect: float = MIN_ASPECT) -> str | None:
    """Why a picture is not fit for training (side < 128, ratio outside [.2, 5]), or None."""
    if min(width, height) < min_side:
        return f"{width} x {height}: a side is shorter than {min_side}"
    ratio, max_aspect = width / height, 1 / min_aspect
    if not min_aspect <= ratio <= max_aspect:
        return f"{width} x {height}: the ratio {ratio:.2f} is outside [{min_aspect}, {max_aspect}]"
    return None
