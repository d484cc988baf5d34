import io
import os

import numpy as np
import pytest
from PIL import Image

from seedstory_jax.data.images import (
    CLIP_MEAN,
    CLIP_STD,
    RESAMPLING,
    ImageTransform,
    crop_offset,
    decode_image,
    examine,
    open_image,
    shape_fault,
    short_side_to,
)
from seedstory_jax.errors import UserError
from seedstory_jax.toy.world import draw


def test_clip_squashes_and_normalises():
    transform = ImageTransform("clip", 32)
    image = Image.new("RGB", (200, 100), (255, 128, 0))
    array = transform(image)
    assert array.shape == (32, 32, 3) and array.dtype == np.float32
    np.testing.assert_allclose(array[5, 5], (np.array([1, 128 / 255, 0]) - CLIP_MEAN) / CLIP_STD, atol=1e-6)


def test_sd_keeps_the_ratio_and_crops_the_middle():
    pixels = np.zeros((60, 120, 3), np.uint8)
    pixels[:, 30:90] = 255  # the middle square is white
    array = ImageTransform("sd", 60)(Image.fromarray(pixels))
    assert array.shape == (60, 60, 3) and (array == 1).all()


@pytest.mark.parametrize("side", [(85, 48), (480, 300), (48, 85), (200, 64), (64, 200), (64, 64), (130, 97)])
@pytest.mark.parametrize("resample", ["bicubic", "bilinear", "box"])
def test_resizing_what_is_kept_is_resizing_all_and_cropping(side, resample):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side[1], side[0], 3), np.uint8))
    width, height = short_side_to(*side, 64)
    left, top = crop_offset(width, 64), crop_offset(height, 64)
    whole = np.asarray(image.resize((width, height), RESAMPLING[resample]))
    pixels = ImageTransform("sd", 64, resample=resample).pixels(image)
    assert (pixels == whole[top : top + 64, left : left + 64]).all()


def test_the_adapt_stage_crops_for_the_vit_too():
    pixels = np.zeros((60, 120, 3), np.uint8)
    pixels[:, 30:90] = 255
    transform = ImageTransform("clip", 60, keep_ratio=True)
    assert (transform.pixels(Image.fromarray(pixels)) == 255).all()


def test_enlarged_pixel_art_comes_back_exactly():
    art = draw("park", {0: ("monkey", "wave")}, ["kite"])
    stored = Image.fromarray(art.repeat(2, 0).repeat(2, 1))
    assert (ImageTransform("clip", 64, resample="box").pixels(stored) == art).all()
    assert (ImageTransform("sd", 64, resample="box").pixels(stored) == art).all()


@pytest.mark.parametrize(("length", "size", "offset"), [(64, 64, 0), (113, 64, 24), (67, 64, 2), (65, 64, 0)])
def test_crop_offset_rounds_half_to_even(length, size, offset):
    assert crop_offset(length, size) == offset


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I;16") else "a.png")
    Image.new(mode, (130, 140)).save(path)
    image = open_image(path)
    assert image.mode == "RGB" and image.size == (130, 140)


def test_bad_files_are_one_line_errors(tmp_path):
    good = tmp_path / "good.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (200, 200, 3), np.uint8)).save(good)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:5000])
    cases = {
        "missing.png": "does not exist",
        "empty.png": "is empty",
        "text.png": "not a picture",
        "cut.png": "is truncated or damaged",
    }
    for name, words in cases.items():
        with pytest.raises(UserError, match=words) as error:
            open_image(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="more than 1,000"):
        open_image(good, max_pixels=1000)
    with pytest.raises(UserError):
        open_image(tmp_path)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((128, 128), None),
        ((127, 500), "side is shorter"),
        ((128, 640), None),
        ((128, 641), "ratio"),
        ((641, 128), "ratio"),
    ],
)
def test_shape_filter(size, words):
    fault = shape_fault(*size)
    assert fault is None if words is None else words in fault


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="choose clip or sd"):
        ImageTransform("vit")
    with pytest.raises(ValueError, match="unknown resampling"):
        ImageTransform("sd", resample="cubic")


# What a viewer shows.

CORNERS = np.zeros((140, 200, 3), np.uint8)
CORNERS[:70, :100], CORNERS[:70, 100:], CORNERS[70:, :100] = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(0, 10))
def test_turned_as_exif_says(format, orientation):
    """Orientation n by its definition: where row 0 and column 0 of the stored picture are in the one shown."""
    turned = {
        2: CORNERS[:, ::-1],
        3: CORNERS[::-1, ::-1],
        4: CORNERS[::-1],
        5: CORNERS.swapaxes(0, 1),
        6: CORNERS.swapaxes(0, 1)[:, ::-1],
        7: CORNERS.swapaxes(0, 1)[::-1, ::-1],
        8: CORNERS.swapaxes(0, 1)[::-1],
    }
    exif, data = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(CORNERS).save(data, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    shown = np.asarray(decode_image(data.getvalue(), "it")).astype(int)
    expected = turned.get(orientation, CORNERS).astype(int)
    assert shown.shape == expected.shape and np.abs(shown - expected).mean() < 2  # JPEG is not exact


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_greys_are_scaled(format):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(140, 0)
    shown = np.asarray(decode_image(encoded(Image.fromarray(ramp), format), "it"))
    assert (shown == np.arange(256, dtype=np.uint8)[None, :, None]).all()


def test_transparent_parts_lie_over_white():
    pixels = np.zeros((130, 130, 4), np.uint8)
    pixels[..., 1], pixels[:, 65:, 3] = 200, 128
    shown = np.asarray(decode_image(encoded(Image.fromarray(pixels)), "it"))
    assert (shown[:, :65] == 255).all() and shown[0, 70].tolist() == [127, 227, 127]
    palette = Image.fromarray(np.eye(130, dtype=np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    for transparency in (0, bytes([0, 255])):
        shown = np.asarray(decode_image(encoded(palette, transparency=transparency), "it"))
        assert shown[0, 0].tolist() == [40, 50, 60] and shown[0, 1].tolist() == [255, 255, 255]
    grey = np.asarray(decode_image(encoded(Image.new("L", (130, 130), 7), transparency=7), "it"))
    assert (grey == 255).all()
    deep = Image.fromarray(np.full((130, 130), 300, np.uint16))
    assert (np.asarray(decode_image(encoded(deep, transparency=300), "it")) == 255).all()


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (130, 130), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    for format in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
        image, odd = examine(data, "it")
        assert np.abs(np.asarray(image).astype(int) - (250, 0, 0)).max() < 6 and "animated" in odd


def test_cmyk_and_palettes_keep_their_colours():
    red = Image.new("RGB", (130, 130), (254, 0, 0))
    for data in (encoded(red.convert("CMYK"), "JPEG"), encoded(red.convert("CMYK"), "TIFF"), encoded(red.quantize(4))):
        assert np.abs(np.asarray(decode_image(data, "it")).astype(int) - (254, 0, 0)).max() < 6


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (Image.fromarray(np.full((130, 130), 0.5, np.float32)), "floating-point pixels"),
        (Image.fromarray(np.full((130, 130), 2**20, np.int32)), "32-bit pixels"),
        (Image.new("LAB", (130, 130)), "LAB pixels"),
    ],
)
def test_what_has_no_one_look_is_refused(image, words):
    with pytest.raises(UserError, match=words):
        decode_image(encoded(image, "TIFF"), "it")


@pytest.mark.parametrize("options", [{"format": "JPEG"}, {"format": "JPEG", "progressive": True}, {"format": "WEBP"}])
def test_a_picture_cut_short_is_refused_wherever_it_is_cut(options):
    rng = np.random.default_rng(0)
    data = encoded(Image.fromarray(rng.integers(0, 256, (14, 14, 3), np.uint8)).resize((140, 140)), **options)
    for cut in range(0, len(data) - 2, max(1, len(data) // 100)):
        with pytest.raises(UserError):
            decode_image(data[:cut], "it")


def test_what_is_no_regular_file_neither_blocks_nor_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for path in (tmp_path, tmp_path / "pipe.png", tmp_path / "loop.png", "/dev/zero"):
        with pytest.raises(UserError, match=r"is no regular file|cannot be opened") as error:
            open_image(path)
        assert "\n" not in str(error.value)
