"""Pictures as the bytes that a book carries: photographs as JPEG, pixel art as PNG, without their metadata."""

import io
from dataclasses import dataclass

from PIL import Image

from seedstory_jax.report.page import PIXEL_ART_LIMIT

CRISP_SIDE = 1024  # readers smooth what they enlarge, so pixel art is stored enlarged, with hard edges


@dataclass(frozen=True)
class Encoded:
    """A picture's bytes, its suffix and media type."""

    data: bytes
    suffix: str
    media_type: str


def encode(picture: Image.Image, *, crisp: bool = True, quality: int = 92) -> Encoded:
    """The picture for a book; `crisp` stores pixel art enlarged to about a thousand pixels."""
    data = io.BytesIO()
    if max(picture.size) <= PIXEL_ART_LIMIT:
        times = max(1, CRISP_SIDE // max(picture.size)) if crisp else 1
        enlarged = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
        enlarged.save(data, "PNG")
        return Encoded(data.getvalue(), ".png", "image/png")
    picture.save(data, "JPEG", quality=quality, subsampling=0)
    return Encoded(data.getvalue(), ".jpg", "image/jpeg")
