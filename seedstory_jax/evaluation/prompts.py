"""The first stories of a StoryStream file, as prompts and as true stories to compare with."""

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from seedstory_jax.data.images import digest
from seedstory_jax.data.storystream import StoryDataset
from seedstory_jax.errors import UserError
from seedstory_jax.evaluation.stories import StoryFolder
from seedstory_jax.generation.story_files import GivenTurn, Request


def open_dataset(system, path: Path | None, image_root: Path | None = None) -> StoryDataset:
    """The dataset of `path`; without one, the validation stories of the system's workdir."""
    return system.run_data.validation if path is None else StoryDataset(path, image_root)


def prompts_of(system, dataset: StoryDataset, count: int, *, visualize: bool = False) -> list[Request]:
    """Requests of the first `count` stories (0: all); with `visualize` their own captions are rendered.

    Raises UserError if there are fewer, or an image cannot be read.
    """
    if count > len(dataset):
        raise UserError(f"--num_stories={count}: there are only {len(dataset)} stories")
    stories = list(dataset.stories[: count or None])
    twice = [name for name, count in Counter(str(story.id) for story in stories).items() if count > 1]
    if twice:
        raise UserError(f"the id {twice[0]!r} stands more than once: a story is generated and found by its id")
    given = [(story, turn) for story in stories for turn in range(story.given)]
    images = [dataset.picture(story, turn) for story, turn in given]
    shown = map(system.run_data.pixel_transform.pixels, images)
    texts = [story.captions[turn] for story, turn in given]
    turns = iter(
        [GivenTurn(*turn) for turn in zip(texts, system.encode(images), shown, map(digest, images), strict=True)]
    )
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
    """The dataset's own stories, cut to `length` turns (0: whole)."""
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
