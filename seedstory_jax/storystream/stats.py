"""A dataset in numbers: the row of the paper's Table 1 for any StoryStream folder, and histograms."""

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from seedstory_jax.data.images import open_header
from seedstory_jax.data.names import path_below, read_regular
from seedstory_jax.data.storystream import jsonl_files
from seedstory_jax.errors import UserError
from seedstory_jax.storystream.lines import stories


def image_size(root: Path, name: str) -> tuple[int, int] | None:
    """(width, height) from a picture's header, or None."""
    try:
        with open_header(read_regular(path_below(root, name)), name) as image:
            return image.size
    except UserError:  # `validate` says what is wrong
        return None


def stats(source: Path, *, image_root: Path | None = None, workers: int = 4) -> dict[str, Any]:
    """Numbers of a dataset, JSON values.

    resolution: the most frequent one as height x width; story_length: images a story; text_length: words a caption
    (the paper's Table 1 has images, resolution, story length and text length). Histograms are lists of
    [from, to (excluded), count].
    """
    root = Path(image_root) if image_root is not None else jsonl_files(Path(source))[0].parent
    lengths, words, story_words, names = [], [], [], {}
    vocabulary: Counter = Counter()
    for story, _ in stories(Path(source)):
        counts = [len(caption.split()) for caption in story.captions]
        lengths.append(len(story))
        words += counts
        story_words.append(sum(counts))
        names |= dict.fromkeys(story.images)
        vocabulary.update(word.strip(".,!?;:\"'()").lower() for caption in story.captions for word in caption.split())
    with ThreadPoolExecutor(workers) as pool:
        sizes = Counter(pool.map(lambda name: image_size(root, name), names))
    unreadable = sizes.pop(None, 0)
    common = sizes.most_common(1)[0][0] if sizes else None
    return {
        "stories": len(lengths),
        "images": len(words),
        "distinct_images": len(names),
        "unreadable_images": unreadable,
        "resolution": f"{common[1]} x {common[0]}" if common else None,
        "resolutions": [[f"{h} x {w}", count] for (w, h), count in sizes.most_common(10)],
        "story_length": _mean(lengths),
        "text_length": _mean(words),
        "words_per_story": _mean(story_words),
        "vocabulary": len(vocabulary),
        "histograms": {
            "story length (images)": histogram(lengths),
            "text length (words a caption)": histogram(words),
        },
    }


def _mean(values: Sequence[int]) -> float | None:
    return round(float(np.mean(values)), 2) if values else None


def histogram(values: Sequence[int], bins: int = 12) -> list[list[int]]:
    """[from, to (excluded), count] of whole numbers, in at most `bins` bins of equal whole width."""
    if not values:
        return []
    low, high = min(values), max(values)
    width = max(1, -(-(high - low + 1) // bins))
    counts = Counter((value - low) // width for value in values)
    return [[low + k * width, low + (k + 1) * width, counts[k]] for k in range((high - low) // width + 1)]


def as_text(numbers: dict[str, Any]) -> str:
    """The row and the histograms to read."""
    row = ("images", "resolution", "story_length", "text_length")
    titles = ("images", "resolution", "story length", "text length")
    lines = ["  ".join(f"{title:>12}" for title in titles), "  ".join(f"{_show(numbers[key]):>12}" for key in row), ""]
    lines.append(
        f"{numbers['stories']:,} stories, {numbers['distinct_images']:,} different images "
        f"({numbers['unreadable_images']:,} unreadable), {_show(numbers['words_per_story'])} words a story, "
        f"{numbers['vocabulary']:,} different words"
    )
    for name, bins in numbers["histograms"].items():
        lines += ["", name]
        most = max((count for *_, count in bins), default=0)
        for first, end, count in bins:
            label = f"{first}" if end == first + 1 else f"{first}-{end - 1}"
            lines.append(f"{label:>12}  {count:>9,}  {'█' * round(40 * count / most) if most else ''}")
    return "\n".join(lines)


def _show(value: Any) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def as_json(numbers: dict[str, Any]) -> str:
    """The numbers as JSON."""
    return json.dumps(numbers, indent=1)
