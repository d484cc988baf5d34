"""The first stories of a StoryStream file, as prompts and as true stories to compare with."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from seedstory_jax.data.images import digest
from seedstory_jax.data.storystream import StoryDataset
from seedstory_jax.errors import UserError
from seedstory_jax.evaluation.stories import StoryFolder
from seedstory_jax.generation.story_files import Request


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
    images = [dataset.picture(story, 0) for story in stories]
    features = system.encode(images)
    return [
        Request(
            name=str(story.id),
            number=number,
            text=story.captions[0],
            image_features=feature,
            image=system.run_data.pixel_transform.pixels(image),
            captions=tuple(story.captions[1:]) if visualize else (),
            image_digest=digest(image),
        )
        for number, (story, feature, image) in enumerate(zip(stories, features, images, strict=True))
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
