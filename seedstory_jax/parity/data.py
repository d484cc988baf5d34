"""Parity of the data path: stories and pictures to the published training batch."""

from pathlib import Path

import numpy as np

from seedstory_jax.data.images import ImageTransform, open_image, shape_fault, time_ids
from seedstory_jax.data.storystream import StoryFault, iter_lines, parse_story
from seedstory_jax.data.text_tokenizer import StoryTokenizer
from seedstory_jax.data.token_rows import released_row


def _transform(config: dict) -> ImageTransform:
    return ImageTransform(config["type"], config["image_size"], keep_ratio=config["keep_ratio"])


def _sample(line: bytes, given: int, folder: Path, config: dict, tokenizer: StoryTokenizer):
    """(row, turns' pictures, time ids, target picture) of one line, or None where the published code drops it."""
    try:
        story = parse_story(line, min_images=2)
    except StoryFault:
        return None
    turns = min(given + 2, len(story))
    row = released_row(
        tokenizer,
        story.captions[:turns],
        num_image_tokens=config["num_img_in_tokens"],
        max_length=config["max_length"],
    )
    last = open_image(folder / "images" / story.images[-1])  # of the story: as published, not the target
    if row is None or shape_fault(*last.size):
        return None
    pictures = [open_image(folder / "images" / name) for name in story.images[:turns]]
    detokenizer = _transform(config["sd_image_transform"])
    sizes = time_ids(*last.size, detokenizer.size, released=True)
    return row, pictures, sizes, detokenizer(pictures[-1])


def story_sample(folder: Path, config: dict, inputs: dict, weights: dict) -> dict[str, np.ndarray]:
    """Every array of the fixture, from its stories.jsonl, pictures and tokenizer, by the released behaviours."""
    tokenizer = StoryTokenizer(folder / "tokenizer")
    lines = [line for _, line in iter_lines(folder / "stories.jsonl")]
    samples = [_sample(line, given, folder, config, tokenizer) for line, given in zip(lines, config["num_image_given"])]
    kept = [number for number, sample in enumerate(samples) if sample]
    rows, pictures, sizes, targets = zip(*(samples[number] for number in kept))
    transform = _transform(config["image_transform"])
    images = np.stack([transform(picture) for story in pictures for picture in story]).transpose(0, 3, 1, 2)
    count, channels, side, _ = images.shape
    index = np.array([0, side // 5, side // 2, side - 1], np.int32)
    flat = images.reshape(count, channels, -1).astype(np.float64)
    return {
        "input_ids": np.stack([row.ids for row in rows]),
        "labels": np.stack([row.labels for row in rows]),
        "attention_mask": np.stack([row.attention_mask for row in rows]),
        "ids_cmp_mask": np.stack([row.ids_cmp_mask for row in rows]),
        "ids_gen_mask": np.stack([row.ids_gen_mask for row in rows]),
        "embeds_cmp_mask": np.concatenate([row.embeds_cmp_mask for row in rows]),
        "embeds_gen_mask": np.concatenate([row.embeds_gen_mask for row in rows]),
        "time_ids": np.stack(sizes),
        "sd_images": np.stack(targets).transpose(0, 3, 1, 2),
        "images_rows": images[:, :, index],
        "images_rows_index": index,
        "images_pool8": images.reshape(count, channels, side // 8, 8, side // 8, 8).mean((3, 5)),
        "images_mean": flat.mean(-1).astype(np.float32),
        "images_std": flat.std(-1, ddof=1).astype(np.float32),
        "num_images_per_story": np.array([len(story) for story in pictures], np.int32),
        "kept_lines": np.array(kept, np.int32),
    }


KINDS = {"story_sample": story_sample}
