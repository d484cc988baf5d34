"""Batches of story rows for the stages that train on them: plan, captions, images; a function of the step alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from seedstory_jax.config import Config
from seedstory_jax.data.packing import PackedRows
from seedstory_jax.data.pipeline import ALL_ROWS, ExampleSource, Plan, Row, stack
from seedstory_jax.data.sources import JoinedSource
from seedstory_jax.data.text_tokenizer import StoryTokenizer
from seedstory_jax.data.token_rows import SequenceConfig

SHOWN_ROWS = 2000  # whose lengths are counted before training


class ExampleBatches:
    """step -> the fields of a StoryBatch, of rows as the story stage's config describes them.

    Beside them what `images` reads (`features.cache.ImageEncodings`, or Places), by field name, and what ExampleSource
    says of replaced stories. A class, so that worker processes can be handed it.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: StoryTokenizer,
        source: JoinedSource,
        images: Mapping[str, Any],
        *,
        seed: int,
        batch_size: int,
        packed: bool = False,
    ):
        stage = config.story
        weighted = len(config.data.weights) == len(source.sources)
        plan = Plan(
            lengths=tuple(map(len, source.stories)),
            batch_size=batch_size,
            seed=seed,
            max_turns=stage.max_turns,
            turns=dict.fromkeys(stage.turns.split("+"), 1.0),
            max_position_offset=stage.position_offset,
            groups=tuple(np.diff(source.first_story).tolist()),
            weights=config.data.weights if weighted or len(source.sources) > 1 else (),
        )
        queries = config.model.story.num_image_tokens
        layout = SequenceConfig(
            num_image_tokens=queries,
            max_tokens=stage.max_length,
            max_images=max(stage.max_turns, stage.max_length // (queries + 3)) if packed else stage.max_turns,
            supervise=stage.supervise,
            response_apart=stage.response_apart,
        )
        readers = {name: _AtTurns(source.offsets, rows) for name, rows in images.items()}
        self.rows = ExampleSource(source.stories, tokenizer, plan, layout, readers, max_bad=config.data.max_bad)
        self.source: Any = PackedRows(self.rows) if packed else self.rows
        self.batch_size = batch_size

    def __call__(self, step: int, here: Any = ALL_ROWS) -> Row:
        """The batch of one step, or those of its rows that are wanted."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)[here]
        return stack([self.source[place] for place in places.tolist()])

    def lengths(self) -> str:
        """What the first rows need, for a person: how long they are, and how many are too long and get replaced."""
        plan, limit = self.rows.plan, self.rows.config.max_tokens
        rows = min(SHOWN_ROWS, sum(map(len, plan.usable)))
        lengths = np.array([self.rows.length_of(plan.row(place)) for place in range(rows)])
        over = int((lengths > limit).sum())
        text = f"rows of {lengths.min()} to {lengths.max()} tokens (mean {lengths.mean():.0f}), max_length {limit}"
        return f"{text}; {over} of the first {rows} are longer and will be replaced" if over else text


class _AtTurns:
    """An image reader over what is read by place."""

    def __init__(self, offsets: np.ndarray, rows: Any):
        self.offsets, self.rows = offsets, rows

    def __call__(self, story: int, turns: Sequence[int]) -> np.ndarray:
        return self.rows.read(self.offsets[story] + np.asarray(turns))


class Places:
    """Reads nothing: the places themselves, for a stage that wants to know which pictures its rows show."""

    def read(self, places: np.ndarray) -> np.ndarray:
        """int32, as given."""
        return np.asarray(places, np.int32)
