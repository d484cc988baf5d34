"""Stories to token rows.

    <s> caption0 <img> 64 queries </img> [INST]caption1 <img> 64 queries </img> ... [INST]captionN <img> 64 </img> </s>

`story_row` writes the fields of a `StoryBatch`; `labels` are aligned to the predicting position: labels[t] is the id to
be predicted from the hidden state of t.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from seedstory_jax.data.text_tokenizer import StoryTokenizer
from seedstory_jax.errors import UserError

IGNORE = -100
TOKEN_FIELDS = ("ids", "labels", "position", "segment", "generated_block", "image_slot", "target_slot")


@dataclass(frozen=True)
class SequenceConfig:
    """How rows are written.

    supervise: "last" (caption and image of the last turn, as published) or "all" (every turn but the first: each image
    stands twice at the same positions, once as queries that only they themselves see, once as it is read again).
    supervise_first: with "all", learn the first turn, too (rows that begin in mid-story).
    end: "always" puts a supervised `</s>` behind the last image, as published; "story_end" only where the story ends;
    "auto": "always" for "last" and "story_end" for "all".
    response_apart: with "last", tokenise the learned turn apart from what stands before it, as published. With LLaMA's
        `legacy=False` its first piece is another one then; "all" reads its turns again, so they are as they are read.
    max_tokens, max_images: the row's static size.
    """

    num_image_tokens: int = 64
    max_tokens: int = 1024
    max_images: int = 10
    supervise: str = "last"
    supervise_first: bool = False
    end: str = "auto"
    response_apart: bool = True

    def __post_init__(self):
        if self.supervise not in ("last", "all"):
            raise ValueError(f"unknown supervise {self.supervise!r}: choose last or all")
        if self.end not in ("auto", "always", "story_end"):
            raise ValueError(f"unknown end {self.end!r}: choose auto, always or story_end")

    def closes(self, ends_story: bool) -> bool:
        """Whether a row gets its `</s>`."""
        if self.end == "always" or (self.end == "auto" and self.supervise == "last"):
            return True
        return ends_story


class RowTooLong(ValueError):
    """A row needs more tokens or images than the config's static size; it is dropped, never cut."""


@dataclass(frozen=True)
class TurnIds:
    """Token ids of a story's captions, by where in a row they stand; any turn can be the first of a row."""

    first: list[list[int]]  # bare
    later: list[list[int]]  # with their `[INST]`, behind an image
    learned: list[list[int]]  # likewise, as the row's last turn

    def row(self, turns: Sequence[int]) -> tuple[list[int], list[list[int]]]:
        """(first turn, later turns) of a row that shows these turns, as `story_row` takes them."""
        later = [self.later[turn] for turn in turns[1:-1]] + [self.learned[turn] for turn in turns[1:][-1:]]
        return self.first[turns[0]], later


def encode_turns(tokenizer: StoryTokenizer, captions: Sequence[str], config: SequenceConfig) -> TurnIds:
    """The ids of a story's captions; do this once a dataset."""
    later = [tokenizer.next_turn(caption) for caption in captions]
    apart = config.supervise == "last" and config.response_apart
    learned = [tokenizer.response_turn(caption) for caption in captions] if apart else later
    return TurnIds([tokenizer.first_turn(caption) for caption in captions], later, learned)


class _Row:
    """Tokens appended one after the other; positions run on unless an image is written a second time."""

    def __init__(self, offset: int):
        self.fields: dict[str, list[int]] = {
            name: [] for name in ("ids", "labels", "position", "generated_block", "image_slot", "target_slot")
        }
        self.next_position = offset

    def __len__(self) -> int:
        return len(self.fields["ids"])

    def add(self, ids: Sequence[int], *, block: int = 0, image_slot: int | None = None, target_slot: int | None = None):
        """Append tokens; image_slot and target_slot count up from the value given."""
        count = len(ids)
        fields = self.fields
        fields["ids"] += ids
        fields["labels"] += [IGNORE] * count
        fields["position"] += range(self.next_position, self.next_position + count)
        fields["generated_block"] += [block] * count
        for name, slot in (("image_slot", image_slot), ("target_slot", target_slot)):
            fields[name] += [-1] * count if slot is None else range(slot, slot + count)
        self.next_position += count

    def predict_from_last(self, label: int) -> None:
        self.fields["labels"][-1] = label

    def predict_inside(self, start: int) -> None:
        """Each token from `start` predicts the one behind it, up to the last."""
        fields = self.fields
        fields["labels"][start:-1] = fields["ids"][start + 1 :]


def story_row(
    tokenizer: StoryTokenizer,
    first_turn: Sequence[int],
    next_turns: Sequence[Sequence[int]],
    config: SequenceConfig,
    *,
    ends_story: bool = False,
    position_offset: int = 0,
) -> dict[str, np.ndarray]:
    """The token fields of one `StoryBatch` row, int32[max_tokens] each and image_valid bool[max_images].

    first_turn, next_turns: ids from `encode_turns`; turn i goes with image i of the row. position_offset moves all
    positions (random in training, so that later positions than a row is long are not new when a story grows).
    Raises RowTooLong if the row does not fit.
    """
    count, queries = 1 + len(next_turns), config.num_image_tokens
    query_ids = tokenizer.image_ids[:queries]
    row = _Row(position_offset)
    row.add([tokenizer.bos])
    for turn, ids in enumerate((first_turn, *next_turns)):
        learn = turn == count - 1 if config.supervise == "last" else turn > 0 or config.supervise_first
        if learn and len(ids):
            row.predict_from_last(ids[0])
        start = len(row)
        row.add(ids)
        row.add([tokenizer.boi])
        if learn:
            row.predict_inside(start)
        slot = turn * queries
        if config.supervise == "all" and learn:
            row.add(query_ids, block=turn + 1, target_slot=slot)
            row.next_position -= queries
            row.add(query_ids, image_slot=slot)
        elif learn:
            row.add(query_ids, target_slot=slot)
        else:
            row.add(query_ids, image_slot=slot)
        row.add([tokenizer.eoi])
    if config.closes(ends_story):
        row.predict_from_last(tokenizer.eos)
        row.add([tokenizer.eos])
    if len(row) > config.max_tokens:
        raise RowTooLong(f"a row of {count} turns has {len(row)} tokens, more than max_tokens {config.max_tokens}")
    if count > config.max_images:
        raise RowTooLong(f"a row of {count} turns has more images than max_images {config.max_images}")
    empty = {"ids": tokenizer.pad, "labels": IGNORE, "position": 0, "generated_block": 0}
    arrays = {}
    for name, values in row.fields.items():
        arrays[name] = np.full(config.max_tokens, empty.get(name, -1), np.int32)
        arrays[name][: len(row)] = values
    arrays["segment"] = (np.arange(config.max_tokens) < len(row)).astype(np.int32)
    arrays["image_valid"] = np.arange(config.max_images) < count
    return arrays


def row_length(turns: Sequence[int], config: SequenceConfig, *, ends_story: bool = False) -> int:
    """Tokens of the row that `story_row` writes of turns with so many tokens each."""
    queries = config.num_image_tokens
    total = 1 + sum(turns) + len(turns) * (queries + 2) + config.closes(ends_story)
    if config.supervise == "all":
        total += queries * (len(turns) - 1 + config.supervise_first)
    return total


def pack_rows(rows: Sequence[Mapping[str, np.ndarray]], config: SequenceConfig) -> dict[str, np.ndarray]:
    """Several rows in one: each a segment of its own that sees nothing of the others; positions stay.

    Fields that go with images ([max_images ...]: features, pictures) follow them; what is one number a row is left out.

    Raises RowTooLong if they do not fit together.
    """
    packed: dict[str, list[np.ndarray]] = {}
    images = 0
    for number, row in enumerate(rows):
        length = int((row["segment"] > 0).sum())
        for name in TOKEN_FIELDS:
            part = row[name][:length].copy()
            if name == "segment":
                part[:] = number + 1
            elif name == "generated_block":
                part[part > 0] += images
            elif name in ("image_slot", "target_slot"):
                part[part >= 0] += images * config.num_image_tokens
            packed.setdefault(name, []).append(part)
        images += int(row["image_valid"].sum())
    total = sum(map(len, packed["ids"]))
    if total > config.max_tokens or images > config.max_images:
        raise RowTooLong(
            f"{len(rows)} rows need {total} tokens and {images} images, more than "
            f"max_tokens {config.max_tokens} or max_images {config.max_images}"
        )
    empty = {"labels": IGNORE, "image_slot": -1, "target_slot": -1}
    arrays = {}
    for name, parts in packed.items():
        arrays[name] = np.full(config.max_tokens, empty.get(name, 0), np.int32)
        arrays[name][:total] = np.concatenate(parts)
    arrays["image_valid"] = np.arange(config.max_images) < images
    for name in rows[0]:
        if name not in arrays and np.ndim(rows[0][name]):
            parts = [row[name][row["image_valid"]] for row in rows]
            arrays[name] = np.zeros((config.max_images, *parts[0].shape[1:]), parts[0].dtype)
            arrays[name][:images] = np.concatenate(parts)
    return arrays


def choose_turns(
    rng: np.random.Generator, length: int, max_turns: int, *, mode: str = "window", min_turns: int = 2
) -> list[int]:
    """Which turns of a story of `length` a row shows.

    "whole": the first max_turns; "prefix": the beginning, of random length (the published draw); "window": max_turns
    in a row from anywhere; "opening": the first turn, then max_turns - 1 in a row from anywhere behind it, so that what
    the opening says must be remembered over a gap, as under a sink policy.
    """
    most = min(max_turns, length)
    if mode == "whole":
        return list(range(most))
    if mode == "prefix":
        least = min(min_turns, most)
        return list(range(int(rng.integers(least, most + 1))))
    if mode == "window":
        start = int(rng.integers(0, length - most + 1))
        return list(range(start, start + most))
    if mode == "opening":
        start = int(rng.integers(1, length - most + 2)) if most > 1 else 1
        return [0, *range(start, start + most - 1)]
    raise ValueError(f"unknown choice of turns {mode!r}: choose whole, prefix, window or opening")


def check_tokens(config: SequenceConfig, tokenizer: StoryTokenizer) -> None:
    """Raise UserError if the tokenizer has fewer image tokens than the config wants."""
    if config.num_image_tokens > len(tokenizer.image_ids):
        raise UserError(
            f"{config.num_image_tokens} image tokens are configured, the tokenizer in {tokenizer.folder} has "
            f"{len(tokenizer.image_ids)}: lower model.story.input_resampler.grid_size or take another data.tokenizer"
        )
