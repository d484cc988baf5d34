import numpy as np
import pytest
from PIL import Image

from seedstory_jax.data.images import (
    CLIP_MEAN,
    CLIP_STD,
    RESAMPLING,
    ImageTransform,
    crop_offset,
    open_image,
    read_images,
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
        "cut.png": "cannot be read",
    }
    for name, words in cases.items():
        with pytest.raises(UserError, match=words) as error:
            open_image(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="more than 1,000"):
        open_image(good, max_pixels=1000)
    with pytest.raises(UserError):
        open_image(tmp_path)


def test_read_images(tmp_path):
    for number in range(5):
        Image.new("RGB", (130, 130), (number, 0, 0)).save(tmp_path / f"{number}.png")
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    pictures = read_images(paths, ImageTransform("clip", 8))
    assert pictures.shape == (5, 8, 8, 3) and pictures[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="does not exist"):
        read_images([*paths, tmp_path / "none.png"], ImageTransform("clip", 8))


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
