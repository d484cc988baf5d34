"""The first stories of a StoryStream file, as beginnings to tell on from and as true stories to compare with."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from seedstory_jax.data.images import open_image
from seedstory_jax.data.storystream import StoryDataset
from seedstory_jax.errors import UserError
from seedstory_jax.evaluation.stories import StoryFolder
from seedstory_jax.generation.sample import GivenTurn, Request


def open_dataset(system, path: Path | None, image_root: Path | None = None) -> StoryDataset:
    """The dataset of `path`; without one, the validation stories of the system's workdir."""
    return system.workspace.validation if path is None else StoryDataset(path, image_root)


def beginnings(system, dataset: StoryDataset, count: int, *, visualize: bool = False) -> list[Request]:
    """Requests of the first `count` stories (0: all); with `visualize` their own captions are drawn.

    Raises UserError if there are fewer, or a picture cannot be read.
    """
    if count > len(dataset):
        raise UserError(f"--num_stories={count}: there are only {len(dataset)} stories")
    stories = list(dataset.stories[: count or None])
    given = [(story, turn) for story in stories for turn in range(story.given)]
    pictures = [open_image(dataset.image_path(story, turn)) for story, turn in given]
    shown = map(system.workspace.pixel_transform.pixels, pictures)
    texts = [story.captions[turn] for story, turn in given]
    turns = iter([GivenTurn(*turn) for turn in zip(texts, system.encode(pictures), shown, strict=True)])
    return [
        Request.of(
            str(story.id),
            number,
            list(islice(turns, story.given)),
            (*story.captions[story.given :], *story.continuation) if visualize else (),
        )
        for number, story in enumerate(stories)
    ]


def true_stories(dataset: StoryDataset, count: int = 0, length: int = 0) -> list[StoryFolder]:
    """The dataset's own stories, cut to `length` frames (0: whole)."""
    found = []
    for story in dataset.stories[: count or None]:
        turns = range(len(story))[: length or None]
        images = tuple(Path(str(dataset.image_path(story, turn))) for turn in turns)
        found.append(StoryFolder(str(story.id), tuple(story.captions[turn] for turn in turns), images))
    return found


def whole_numbers(text: str, flag: str) -> Sequence[int]:
    """ "25,50" as numbers; UserError for anything else."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdigit() for part in parts):
        raise UserError(f"--{flag}={text}: write whole numbers, {flag}=25,50")
    return [int(part) for part in parts]
