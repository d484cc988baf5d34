"""Teacher-forced scores of true stories under every policy of an ablation, kept beside its stories.

`out/teacher_forced/<run>.json` holds each story's scores; what is there is not computed again.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from seedstory_jax.data.storystream import StoryDataset
from seedstory_jax.errors import UserError
from seedstory_jax.evaluation.ablation import Run, Setup
from seedstory_jax.files import read_json, write_json
from seedstory_jax.generation.engine import StoryEngine
from seedstory_jax.generation.teacher_forcing import score_stories

COLUMNS = ("forced_next_token_loss", "forced_feature_distance")


@dataclass(frozen=True)
class TrueStory:
    """A held-out story: its id, its captions, and the features [n q d] of its images."""

    name: str
    texts: tuple[str, ...]
    image_features: Float[np.ndarray, "n q d"]

    @property
    def digest(self) -> str:
        """Of all that its scores depend on."""
        texts = "\n".join(self.texts).encode()
        return hashlib.sha256(texts + np.ascontiguousarray(self.image_features).tobytes()).hexdigest()[:16]


def held_out(system, dataset: StoryDataset, count: int, length: int) -> list[TrueStory]:
    """The first `count` stories (0: all), cut to `length` turns; those of one turn, prompts alone, are left out.

    Raises UserError for a caption that is longer than generation allows, or an image that cannot be read.
    """
    found, limit = [], system.config.sample.max_text_tokens
    for story in dataset.stories[: count or None]:
        turns = range(min(len(story), length))
        for caption in story.captions[: len(turns)]:
            tokens = len(system.tokenizer.next_turn(caption))
            if tokens > limit:
                raise UserError(
                    f"story {story.id}: a caption of {tokens} tokens is longer than sample.max_text_tokens={limit}; "
                    "leave true stories out with --teacher_forced=0"
                )
        if len(turns) > 1:
            features = system.encode([dataset.picture(story, turn) for turn in turns])
            found.append(TrueStory(str(story.id), tuple(story.captions[turn] for turn in turns), features))
    return found


def score_runs(
    setup: Setup,
    runs: Sequence[Run],
    stories: Sequence[TrueStory],
    out: Path,
    *,
    batch: int = 20,
    progress: Callable[[Run, str], None] = lambda run, what: None,
) -> None:
    """Scores what is missing of `stories` under every run's policy, `batch` at a time.

    Raises UserError for a story that is there with other captions or images.
    """
    for run in runs:
        path = _path(out, run)
        known = read_json(path) if path.is_file() else {}
        for story in stories:
            if known.get(story.name, {}).get("digest", story.digest) != story.digest:
                raise UserError(f"{path} holds another story {story.name!r}: give another --out or remove it")
        missing = [story for story in stories if story.name not in known]
        if not missing:
            continue
        config = replace(setup.generation, length=run.length)
        engine = StoryEngine(setup.model, setup.tokenizer, run.policy.make(setup.sample), config)
        path.parent.mkdir(parents=True, exist_ok=True)
        for first in range(0, len(missing), batch):
            progress(run, f"{len(missing) - first} true stories")
            together = missing[first : first + batch]
            filled = [*together, *[together[-1]] * (min(batch, len(stories)) - len(together))]  # one shape, one program
            scores = score_stories(engine, [one.texts for one in filled], [one.image_features for one in filled])
            for story, turns in zip(together, scores):
                values = [None if one is None else [one.next_token_loss, one.feature_distance] for one in turns]
                known[story.name] = {"digest": story.digest, "turns": values}
            write_json(path, known)


def read_scores(run: Run, out: Path, names: Sequence[str]) -> dict[tuple[str, int], Mapping[str, float]]:
    """(story, turn) -> its columns, of the stories named; empty where nothing was scored."""
    path = _path(out, run)
    known = read_json(path) if path.is_file() else {}
    return {
        (name, turn): dict(zip(COLUMNS, values, strict=True))
        for name in names
        for turn, values in enumerate(known.get(name, {}).get("turns", ())[: run.length])
        if values is not None
    }


def _path(out: Path, run: Run) -> Path:
    return out / "teacher_forced" / f"{run.name}.json"
