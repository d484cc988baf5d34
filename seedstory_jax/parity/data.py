"""Parity of the data path: stories and images to the published training batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seedstory_jax.data.images import ImageTransform, crop_offset, shape_fault, short_side_to
from seedstory_jax.data.storystream import StoryFault, iter_lines, parse_story
from seedstory_jax.data.text_tokenizer import StoryTokenizer
from seedstory_jax.data.token_rows import IGNORE
from seedstory_jax.models.sdxl.detokenizer import training_time_ids
from seedstory_jax.parity.fixture import Arrays, Fixture, read_outputs

POOL = 8  # side of the blocks of pixels whose means the fixture keeps


@dataclass(frozen=True)
class ReleasedRow:
    """A training sample in the published layout: labels in place, not shifted."""

    ids: np.ndarray  # int32[max_length]
    labels: np.ndarray
    attention_mask: np.ndarray
    ids_cmp_mask: np.ndarray  # image tokens that the input resampler replaces
    ids_gen_mask: np.ndarray  # image tokens whose hidden states are regressed
    embeds_cmp_mask: np.ndarray  # bool[images]
    embeds_gen_mask: np.ndarray


def released_row(
    tokenizer: StoryTokenizer, captions: Sequence[str], *, input_tokens: int, output_tokens: int, max_length: int
) -> ReleasedRow | None:
    """The published row of a story's turns; None if it has max_length tokens or more (never cut).

    Instruction and response are tokenised apart, as the published code does. `input_tokens` stand for an image that is
    read, `output_tokens` for the last one, which is predicted.
    """
    image = tokenizer.image_text(input_tokens)
    instruction = captions[0] + image + "".join(f"[INST]{caption}{image}" for caption in captions[1:-1])
    response = f"[INST]{captions[-1]}{tokenizer.image_text(output_tokens)}"
    before = [tokenizer.bos, *tokenizer.encode(instruction)]
    last = tokenizer.encode(response)
    ids = [*before, *last, tokenizer.eos]
    if len(ids) >= max_length:
        return None
    labels = [IGNORE] * len(before) + last + [tokenizer.eos]
    for place in range(len(ids) - 2 - output_tokens, len(ids) - 1):  # the last image and its </img>
        labels[place] = IGNORE
    arrays = {name: np.full(max_length, fill, np.int32) for name, fill in (("ids", tokenizer.pad), ("labels", IGNORE))}
    arrays["ids"][: len(ids)] = ids
    arrays["labels"][: len(ids)] = labels
    places = np.arange(max_length)
    image_tokens = np.isin(arrays["ids"], tokenizer.image_ids) & (places < len(ids))
    images = np.arange(len(captions))
    return ReleasedRow(
        **arrays,
        attention_mask=(places < len(ids)).astype(np.int32),
        ids_cmp_mask=image_tokens & (places < len(before)),
        ids_gen_mask=image_tokens & (places >= len(before)),
        embeds_cmp_mask=images < len(captions) - 1,
        embeds_gen_mask=images == len(captions) - 1,
    )


def released_time_ids(width: int, height: int, size: int) -> np.ndarray:
    """SD-XL's six size numbers of a training image, the crop's offset on the other axis, as the published code does."""
    new_width, new_height = short_side_to(width, height, size)
    return training_time_ids(height, width, crop_offset(new_width, size), crop_offset(new_height, size), size)


def story_sample(fixture: Fixture) -> Arrays:
    """Every array of the fixture, from its stories.jsonl, images and tokenizer, by the released behaviours."""
    folder, config = fixture.folder, fixture.config
    tokenizer = StoryTokenizer(folder / "tokenizer")
    lines = [line for _, line in iter_lines(folder / "stories.jsonl")]
    samples = [_sample(line, given, folder, config, tokenizer) for line, given in zip(lines, config["num_image_given"])]
    kept = [number for number, sample in enumerate(samples) if sample]
    rows, stories, time_ids, targets = zip(*(samples[number] for number in kept))
    transform = _transform(config["image_transform"])
    images = np.stack([transform(image) for story in stories for image in story]).transpose(0, 3, 1, 2)
    count, channels, side, _ = images.shape
    shown = read_outputs(folder)["images_rows_index"]  # rows of pixels that the fixture has chosen to keep
    blocks = images.reshape(count, channels, side // POOL, POOL, side // POOL, POOL)
    flat = images.reshape(count, channels, -1).astype(np.float64)
    return {
        "input_ids": np.stack([row.ids for row in rows]),
        "labels": np.stack([row.labels for row in rows]),
        "attention_mask": np.stack([row.attention_mask for row in rows]),
        "ids_cmp_mask": np.stack([row.ids_cmp_mask for row in rows]),
        "ids_gen_mask": np.stack([row.ids_gen_mask for row in rows]),
        "embeds_cmp_mask": np.concatenate([row.embeds_cmp_mask for row in rows]),
        "embeds_gen_mask": np.concatenate([row.embeds_gen_mask for row in rows]),
        "time_ids": np.stack(time_ids),
        "sd_images": np.stack(targets).transpose(0, 3, 1, 2),
        "images_rows": images[:, :, shown],
        "images_rows_index": shown,
        "images_pool8": blocks.mean((3, 5)),
        "images_mean": flat.mean(-1).astype(np.float32),
        "images_std": flat.std(-1, ddof=1).astype(np.float32),
        "num_images_per_story": np.array([len(story) for story in stories], np.int32),
        "kept_lines": np.array(kept, np.int32),
    }


def _sample(line: bytes, given: int, folder: Path, config: Mapping[str, Any], tokenizer: StoryTokenizer):
    """(row, turns' images, time ids, target image) of one line, or None where the published code drops it."""
    try:
        story = parse_story(line, min_images=2)
    except StoryFault:
        return None
    turns = min(given + 2, len(story))
    row = released_row(
        tokenizer,
        story.captions[:turns],
        input_tokens=config["num_img_in_tokens"],
        output_tokens=config["num_img_out_tokens"],
        max_length=config["max_length"],
    )
    last = _open(folder / "images" / story.images[-1])  # of the story: as published, not the target
    limits = {"min_side": config["min_resolution"], "min_aspect": config["min_aspect_ratio"]}
    if row is None or shape_fault(*last.size, **limits):
        return None
    images = [_open(folder / "images" / name) for name in story.images[:turns]]
    detokenizer = _transform(config["sd_image_transform"])
    return row, images, released_time_ids(*last.size, detokenizer.size), detokenizer(images[-1])


def _open(path: Path) -> Image.Image:
    """An image as the published code opens it; `data.images` shows some as a viewer does, e.g. over white."""
    with Image.open(path) as image:
        return image.convert("RGB")


def _transform(config: Mapping[str, Any]) -> ImageTransform:
    return ImageTransform(config["type"], config["image_size"], keep_ratio=config["keep_ratio"])


KINDS = {"story_sample": story_sample}
