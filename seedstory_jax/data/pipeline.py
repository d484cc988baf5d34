"""Batches of story rows: one global plan from (seed, epoch, lengths), read by grain.

The plan decides, for every step there will ever be, which stories and which of their turns make each row. It depends on
nothing but its arguments, so the state of the data is the step: a run that goes on at step s gets what an unbroken run
got, with any number of workers and hosts.
"""

import gc
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from seedstory_jax.data.storystream import Story, StoryDataset
from seedstory_jax.data.text_tokenizer import StoryTokenizer
from seedstory_jax.data.token_rows import (
    SequenceConfig,
    TurnIds,
    check_tokens,
    choose_turns,
    encode_turns,
    row_length,
    story_row,
)
from seedstory_jax.errors import UserError

Row = dict[str, np.ndarray]
ImageReader = Callable[[int, Sequence[int]], np.ndarray]  # (story, turns) -> [turns ...]: features, or pictures
MAX_SUBSTITUTES = 100
MAX_ATTEMPTS = 1000  # at one row; only ends a search that has nothing left to find
PERIOD = 1000  # rows after which the mixture of datasets repeats
HOST_FIELDS = ("unreadable", "over_length")  # of a row: for the host to tell, not for a device
PREFETCH = 2  # batches made ahead, by each worker
NOTE = "<U200"  # why a story could not be read; of one size, so that rows stack


@dataclass(frozen=True)
class RowChoice:
    """What one row shows: turns of a story, and how far its positions are moved."""

    story: int
    turns: tuple[int, ...]
    position_offset: int = 0


@dataclass(frozen=True)
class Plan:
    """Which rows make up the batch of each step.

    lengths: turns of each story. turns: weights of the ways to choose turns (`choose_turns`). max_position_offset:
    rows begin at a random position up to this one. groups, weights: how many of the stories belong to each of several
    datasets, and in which proportion rows are taken from them; every dataset has epochs of its own. Without weights
    they are one.
    """

    lengths: tuple[int, ...]
    batch_size: int
    seed: int = 0
    max_turns: int = 10
    min_turns: int = 2
    turns: Mapping[str, float] = field(default_factory=lambda: {"prefix": 1.0})
    max_position_offset: int = 0
    groups: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()

    def __post_init__(self):
        if self.weights and (len(self.weights) != len(self.groups) or min(self.weights) <= 0):
            raise UserError(f"data.weights {self.weights}: give one above 0 for each of {len(self.groups)} folders")
        if not all(self.usable):
            raise UserError(f"no story has {self.min_turns} turns or more: nothing to train on")
        if self.batch_size < 1:
            raise UserError(f"a batch of {self.batch_size} stories is none: give 1 or more")

    @cached_property
    def usable(self) -> tuple[tuple[int, ...], ...]:
        """Stories long enough for a row, by dataset."""
        ends = np.cumsum(self.groups if self.weights else [len(self.lengths)])
        return tuple(
            tuple(number for number in range(begin, end) if self.lengths[number] >= self.min_turns)
            for begin, end in zip([0, *ends], ends)
        )

    @cached_property
    def _pattern(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of PERIOD places in turn: the dataset, how many of it came before; and how many of each there are."""
        if not self.weights:
            return np.zeros(1, int), np.zeros(1, int), np.ones(1, int)
        share = np.array(self.weights) / sum(self.weights)
        count, groups, before = np.zeros(len(share), int), [], []
        for place in range(PERIOD):
            group = int(np.argmax((place + 1) * share - count))  # who is furthest behind its share
            groups.append(group)
            before.append(count[group])
            count[group] += 1
        if not count.all():
            raise UserError(f"data.weights {self.weights}: a dataset gets less than one row in {PERIOD}")
        return np.array(groups), np.array(before), count

    def story_at(self, place: int, attempt: int = 0) -> int:
        """The story of the place-th row since the beginning; later attempts are substitutes for an unreadable one."""
        groups, before, count = self._pattern
        block, slot = divmod(place, len(groups))
        group = int(groups[slot])
        usable = self.usable[group]
        if attempt:
            return usable[int(np.random.default_rng([self.seed, 2, place, attempt]).integers(len(usable)))]
        epoch, inside = divmod(block * int(count[group]) + int(before[slot]), len(usable))
        return usable[int(_permutation(self.seed, epoch, len(usable), group)[inside])]

    def row(self, place: int, attempt: int = 0) -> RowChoice:
        """What the place-th row since the beginning shows."""
        story = self.story_at(place, attempt)
        rng = np.random.default_rng([self.seed, 1, place, attempt])
        modes, weights = zip(*self.turns.items())
        mode = str(rng.choice(modes, p=np.array(weights) / sum(weights)))
        turns = choose_turns(rng, self.lengths[story], self.max_turns, mode=mode, min_turns=self.min_turns)
        offset = int(rng.integers(self.max_position_offset + 1)) if self.max_position_offset else 0
        return RowChoice(story, tuple(turns), offset)


@lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, count: int, group: int) -> np.ndarray:
    """The order of an epoch of one dataset."""
    return np.random.default_rng([seed, 0, epoch, *([group] if group else [])]).permutation(count)


class ExampleSource:
    """A random-access source of training rows: `source[place]` is a dict of numpy arrays.

    images: by the name of a row's field, what reads that of a row's turns: cached features [turns q d], or pictures
    [turns H W 3]; padded with zeros to max_images. A story that cannot be read (UserError, OSError) is replaced by the
    plan's next attempt, with a warning; more than `max_bad` of them is an error. So is a row that is too long, but that
    is no fault of the story: it is only counted. A row says both: `unreadable` (text, empty if there is nothing to say)
    and `over_length` (attempts that were too long).
    """

    def __init__(
        self,
        stories: Sequence[Story],
        tokenizer: StoryTokenizer,
        plan: Plan,
        config: SequenceConfig,
        images: Mapping[str, ImageReader] | None = None,
        *,
        max_bad: int = MAX_SUBSTITUTES,
    ):
        self.stories, self.tokenizer, self.plan, self.config = stories, tokenizer, plan, config
        self.images, self.max_bad = dict(images or {}), max_bad
        self.bad: dict[int, str] = {}
        self._ids: dict[int, TurnIds] = {}
        check_tokens(config, tokenizer)

    def turns_of(self, story: int) -> TurnIds:
        """Token ids of a story's captions, encoded once."""
        if story not in self._ids:
            self._ids[story] = encode_turns(self.tokenizer, self.stories[story].captions, self.config)
        return self._ids[story]

    def length_of(self, choice: RowChoice) -> int:
        """Tokens of the row of one choice, before anything is read."""
        ids = self.turns_of(choice.story)
        first, later = ids.row(choice.turns)
        counts = [len(first), *map(len, later)]
        return row_length(counts, self.config, ends_story=choice.turns[-1] == len(ids.first) - 1)

    def __getitem__(self, place: int) -> Row:
        return self.row(place)

    def row(self, place: int, within: RowChoice | None = None) -> Row:
        """The place-th row; a substitute needs no more tokens and images than `within` does, if that is given.

        What takes whose place depends on the place alone: a story that failed before is tried again.
        """
        room = self.config.max_tokens if within is None else self.length_of(within)
        images = self.config.max_images if within is None else len(within.turns)
        unreadable, over_length = "", 0
        for attempt in range(MAX_ATTEMPTS):
            choice = self.plan.row(place, attempt)
            if self.length_of(choice) > room or len(choice.turns) > images:
                over_length += within is None
                continue
            try:
                row = self.read(choice)
            except (UserError, OSError, ValueError) as error:
                unreadable = f"story {self.stories[choice.story].id}: {error}"
                self._count_bad(choice.story, unreadable, error)
                continue
            row["unreadable"], row["over_length"] = np.array(unreadable, NOTE), np.array(over_length, np.int32)
            return row
        raise UserError(
            f"no usable story found in {MAX_ATTEMPTS} attempts at row {place}, {over_length} of them too long for "
            f"{self.config.max_tokens} tokens"
        )

    def _count_bad(self, story: int, reason: str, error: Exception) -> None:
        if story in self.bad:
            return
        self.bad[story] = reason
        if len(self.bad) > self.max_bad:
            raise UserError(
                f"{len(self.bad)} stories cannot be read, {self.max_bad} are allowed; last: {reason}"
            ) from error
        warnings.warn(f"a story cannot be read and is replaced ({len(self.bad)} so far): {reason}", stacklevel=3)

    def read(self, choice: RowChoice) -> Row:
        """The row of one choice."""
        ids = self.turns_of(choice.story)
        row = story_row(
            self.tokenizer,
            *ids.row(choice.turns),
            self.config,
            ends_story=choice.turns[-1] == len(ids.first) - 1,
            position_offset=choice.position_offset,
        )
        for name, read in self.images.items():
            images = read(choice.story, choice.turns)
            padded = np.zeros((self.config.max_images, *images.shape[1:]), images.dtype)
            padded[: len(images)] = images
            row[name] = padded
        return row


def cached_features(dataset: StoryDataset, features: np.ndarray) -> ImageReader:
    """An image reader over features [n q d] kept in the order of `dataset.image_paths()` (an array or a memory map)."""
    return _CachedFeatures(features, dataset.offsets)


class _CachedFeatures:
    """Reads rows of one big array; a worker process opens a memory map anew instead of getting a copy."""

    def __init__(self, features: np.ndarray, offsets: np.ndarray):
        self.features, self.offsets = features, offsets

    def __call__(self, story: int, turns: Sequence[int]) -> np.ndarray:
        return np.asarray(self.features[self.offsets[story] + np.asarray(turns)])

    def __getstate__(self):
        mapped = isinstance(self.features, np.memmap) and str(self.features.filename).endswith(".npy")
        return (str(self.features.filename) if mapped else self.features), self.offsets

    def __setstate__(self, state):
        features, self.offsets = state
        self.features = np.load(features, mmap_mode="r") if isinstance(features, str) else features


ALL_ROWS = slice(None)


def stack(rows: Sequence[Mapping[str, Any]]) -> Row:
    """Rows to a batch: every array gets a leading axis."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def batches(
    source: ExampleSource,
    *,
    start_step: int = 0,
    steps: int | None = None,
    workers: int = 0,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[Row]:
    """Batches from `start_step` on, read by grain; the data's whole state is the step.

    workers: processes that read ahead (0: threads of this one). On several hosts each reads its own slice of every
    batch. `steps` ends it; None goes on for ever.
    Raises UserError if hosts do not divide the batch.
    """
    import grain

    size = source.plan.batch_size
    if size % hosts:
        raise UserError(f"{hosts} hosts do not divide a batch of {size} stories: change the batch size")
    share = size // hosts
    last = 2**40 // size if steps is None else start_step + steps

    data = grain.MapDataset.range(start_step, last).map(_HostBatch(source, size, host * share, share))
    return read_ahead(data, workers)


def read_ahead(data: Any, workers: int) -> Iterator[Any]:
    """A grain MapDataset's items in order, made ahead by that many processes (0: by threads of this one)."""
    import grain
    from absl import flags

    if not workers:
        return iter(data.to_iter_dataset(grain.ReadOptions(num_threads=PREFETCH, prefetch_buffer_size=PREFETCH)))
    if not flags.FLAGS.is_parsed():  # grain's workers read absl's flags
        flags.FLAGS.mark_as_parsed()
    # What earlier workers left goes now: Python 3.12 complains of semaphores that are collected while others are made.
    gc.collect()
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=PREFETCH)
    return iter(data.to_iter_dataset().mp_prefetch(options))


@dataclass(frozen=True)
class _HostBatch:
    """Step to this host's part of the batch; a class, so that worker processes can be handed it."""

    source: ExampleSource
    size: int
    offset: int
    share: int

    def __call__(self, step: int) -> Row:
        first = step * self.size + self.offset
        return stack([self.source[place] for place in range(first, first + self.share)])
