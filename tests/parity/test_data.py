import json

import numpy as np
import pytest
from PIL import Image

from seedstory_jax.data.images import CLIP_MEAN, CLIP_STD
from seedstory_jax.data.text_tokenizer import train_tokenizer
from seedstory_jax.data.token_rows import IGNORE, SequenceConfig, encode_turns, story_row
from seedstory_jax.parity.data import released_row, released_time_ids, story_sample
from seedstory_jax.parity.fixture import read_fixture
from seedstory_jax.parity.runner import run_fixture, table_row


def test_published_numbers_come_out(fixtures_dir):
    folder = fixtures_dir / "story_sample"
    result = run_fixture(folder)
    assert result.ok and result.max_abs < 1e-6, table_row(result)
    fixture, reference = read_fixture(folder), np.load(folder / "outputs.npz")
    ours = story_sample(fixture)
    assert {name: array.dtype for name, array in ours.items()} == {name: reference[name].dtype for name in reference}
    dropped = set(range(len(fixture.config["num_image_given"]))) - set(ours["kept_lines"].tolist())
    assert sorted(dropped) == json.loads((folder / "outputs_text.json").read_text())["dropped_lines"]


def test_samples_of_other_sizes(write_fixture, tmp_path):
    """Images of 9 tokens that are read and of 4 that are predicted; a caption that fits, a story that does not."""
    tokenizer = train_tokenizer(["a b c d"] * 4, tmp_path / "story_sample" / "tokenizer", image_tokens=9)
    folder = tmp_path / "story_sample"
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for name, size in {"0": (40, 50), "1": (48, 64), "2": (60, 40), "long": (90, 30), "small": (31, 40)}.items():
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)).save(folder / "images" / f"{name}.png")
    stories = [("0", "1", "2"), ("1", "0"), ("0", "long"), ("0", "small"), ("0", "1", "2")]
    captions = [("a b", "c", "d a"), ("c d a", "b"), ("a", "b"), ("a", "b"), ("a b c d " * 20, "c", "d")]
    lines = [
        {"id": n, "images": [f"{name}.png" for name in names], "captions": texts}
        for n, (names, texts) in enumerate(zip(stories, captions))
    ]
    (folder / "stories.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {"max_length": 56, "num_img_in_tokens": 9, "num_img_out_tokens": 4, "min_resolution": 32}
    config |= {"min_aspect_ratio": 0.4, "num_image_given": [1, 0, 0, 0, 1]}
    config["image_transform"] = {"type": "clip", "keep_ratio": False, "image_size": 24}
    config["sd_image_transform"] = {"type": "sd", "keep_ratio": True, "image_size": 16}

    read = [tokenizer.boi, *tokenizer.image_ids, tokenizer.eoi]
    predicted = [tokenizer.boi, *tokenizer.image_ids[:4], tokenizer.eoi]
    a, b, c, d = (tokenizer.encode(letter)[0] for letter in "abcd")
    rows = [
        [tokenizer.bos, a, b, *read, *tokenizer.inst_ids, c, *read, *tokenizer.inst_ids, d, a, *predicted],
        [tokenizer.bos, c, d, a, *read, *tokenizer.inst_ids, b, *predicted],
    ]
    labelled = [[*tokenizer.inst_ids, d, a, tokenizer.boi], [*tokenizer.inst_ids, b, tokenizer.boi]]
    outputs = {
        name: np.full((2, 56), fill, np.int32)
        for name, fill in (("input_ids", tokenizer.pad), ("labels", IGNORE), ("attention_mask", 0))
    }
    outputs |= {name: np.zeros((2, 56), bool) for name in ("ids_cmp_mask", "ids_gen_mask")}
    for number, (row, labels) in enumerate(zip(rows, labelled)):
        end = len(row)
        outputs["input_ids"][number, : end + 1] = [*row, tokenizer.eos]
        outputs["attention_mask"][number, : end + 1] = 1
        outputs["labels"][number, end - 5 - len(labels) : end - 5] = labels
        outputs["labels"][number, end] = tokenizer.eos
        outputs["ids_gen_mask"][number, end - 5 : end - 1] = True
        outputs["ids_cmp_mask"][number, : end - 6] = np.isin(row[: end - 6], tokenizer.image_ids)
    shown = [Image.open(folder / "images" / f"{name}.png") for name in "01210"]
    squashed = [np.asarray(image.resize((24, 24), Image.Resampling.BILINEAR), np.float32) / 255 for image in shown]
    pixels = np.stack([(image - CLIP_MEAN) / CLIP_STD for image in squashed]).transpose(0, 3, 1, 2)
    outputs |= {
        "embeds_cmp_mask": np.array([True, True, False, True, False]),
        "embeds_gen_mask": np.array([False, False, True, False, True]),
        "time_ids": np.array([[40, 60, 4, 0, 16, 16], [50, 40, 0, 2, 16, 16]]),
        "images_rows": pixels[:, :, [0, 7]],
        "images_rows_index": np.array([0, 7]),
        "images_pool8": pixels.reshape(5, 3, 3, 8, 3, 8).mean((3, 5)),
        "images_mean": pixels.mean((2, 3)),
        "images_std": pixels.reshape(5, 3, -1).std(-1, ddof=1),
        "num_images_per_story": np.array([3, 2]),
        "kept_lines": np.array([0, 1]),
    }
    result = run_fixture(write_fixture("story_sample", outputs, config))
    assert result.ok, table_row(result)
    assert story_sample(read_fixture(folder))["sd_images"].shape == (2, 3, 16, 16)


def test_the_published_row_is_ours_but_for_the_labels_place(tmp_path):
    tokenizer = train_tokenizer(["a b c d"] * 4, tmp_path / "tokenizer", image_tokens=2)
    captions = ["a b", "c", "d a"]
    sizes = {"input_tokens": 2, "output_tokens": 2}
    released = released_row(tokenizer, captions, **sizes, max_length=24)
    config = SequenceConfig(num_image_tokens=2, max_tokens=24, max_images=3)
    first, later = encode_turns(tokenizer, captions, config).row([0, 1, 2])
    ours = story_row(tokenizer, first, later, config)
    assert released.ids.tolist() == ours["ids"].tolist()
    assert released.labels[1:].tolist() == ours["labels"][:-1].tolist()
    assert (released.ids_cmp_mask == (ours["image_slot"] >= 0)).all()
    assert (released.ids_gen_mask == (ours["target_slot"] >= 0)).all()
    assert released_row(tokenizer, captions, **sizes, max_length=21) is None


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(427, 240, [240, 427, 24, 0, 64, 64]), (240, 300, [300, 240, 0, 8, 64, 64]), (64, 64, [64, 64, 0, 0, 64, 64])],
)
def test_released_time_ids_have_the_crop_on_the_other_axis(width, height, expected):
    assert released_time_ids(width, height, 64).tolist() == expected
