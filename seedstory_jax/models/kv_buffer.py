"""The KV buffer of a batch of stories: keys, values, and metadata of every slot.

A linear buffer of fixed size. Tokens are appended at the end of each story's own row; eviction happens only between
turns, as a compaction that moves the kept slots to the front. So every program that touches it has one static
shape, whatever the length of the story. The buffer is data: every function takes one and gives one back.

Every layer has arrays of its own, so that a layer's step touches no other's. Axis letters: b story, s slot, t token of
a chunk, k kv head, h head dim. Keys are [b k h s] and values [b k s h]: attention's two products read them in the order
of memory, and no token pays for a transposed copy of the buffer.
"""

import enum
import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

from seedstory_jax.models.rope import rotate

EMPTY = -1
"""The position of a slot that holds nothing."""

BLOCK = 128
"""Slots that a compaction moves at a time; buffers of the engine are multiples of it."""

Positions = Literal["slot", "absolute", "recent"]
"""How compaction numbers what it keeps: by slot (as StreamingLLM does), as it was in the whole story, or as it was
there among the sinks, the window following them without a gap (as Deep Forcing does)."""


class Kind(enum.IntEnum):
    """Kind of the token that a slot holds."""

    BOS = 0
    TEXT = 1
    BOI = 2  # <img>
    QUERY = 3  # one of the image tokens, as a query or as read back
    EOI = 4  # </img>


# A buffer is also a pytree of shapes, shardings or jax's own stand-ins (`jax.jit(...).lower`, donation), so its fields
# promise no array type; the shapes stand in brackets.
Leaf = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenChunk:
    """Metadata of up to t new tokens a story; the first `count[b]` of row b are real, the rest is padding."""

    position: Leaf  # [b t] the rotary position
    story_index: Leaf  # [b t] the token's number in the whole story, never renumbered
    kind: Leaf  # [b t] a Kind
    turn: Leaf  # [b t] the turn (caption and image) it belongs to
    count: Leaf  # [b]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SlotMetadata:
    """Per-slot metadata, shared by all layers: the only input of a policy."""

    position: Leaf  # [b s] EMPTY where the slot holds nothing
    story_index: Leaf  # [b s]
    kind: Leaf  # [b s]
    turn: Leaf  # [b s]
    is_sink: Leaf  # [b s] kept by a compaction though its turn had left the window
    score: Leaf = None  # [b s] float32, for policies that rank slots by keys or attention; None for the others

    @property
    def used(self) -> Leaf:
        """True where the slot holds a token."""
        return self.position != EMPTY


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVBuffer:
    """Keys (stored rotated), values and the metadata of every slot; row b's tokens fill slots [0, length[b])."""

    k: tuple[Leaf, ...]  # [b k h s] a layer
    v: tuple[Leaf, ...]  # [b k s h] a layer
    position: Leaf  # [b s]
    story_index: Leaf  # [b s]
    kind: Leaf  # [b s]
    turn: Leaf  # [b s]
    is_sink: Leaf  # [b s]
    length: Leaf  # [b]
    score: Leaf = None  # [b s] or None, as in the metadata

    @property
    def slots(self) -> int:
        """How many tokens a story can hold."""
        return self.position.shape[1]

    @property
    def metadata(self) -> SlotMetadata:
        """Metadata of all slots, without keys and values."""
        return SlotMetadata(**{field.name: getattr(self, field.name) for field in fields(SlotMetadata)})


def empty_buffer(
    num_layers: int, batch: int, slots: int, kv_heads: int, head_dim: int, dtype: str, scored: bool = False
) -> KVBuffer:
    """A buffer that holds nothing: keys and values are zero (finite: 0 * NaN would poison a masked sum).

    `scored` gives its slots a score.
    """

    def layers(*shape: int) -> tuple[Array, ...]:
        return tuple(jnp.zeros((batch, kv_heads, *shape), jnp.dtype(dtype)) for _ in range(num_layers))

    nothing = jnp.full((batch, slots), EMPTY, jnp.int32)
    return KVBuffer(
        k=layers(head_dim, slots),
        v=layers(slots, head_dim),
        position=nothing,
        story_index=nothing,
        kind=nothing,
        turn=nothing,
        is_sink=jnp.zeros((batch, slots), bool),
        length=jnp.zeros((batch,), jnp.int32),
        score=jnp.zeros((batch, slots), jnp.float32) if scored else None,
    )


def slot_targets(buffer: KVBuffer, chunk: TokenChunk) -> Int[Array, "b t"]:
    """The slot of every token of a chunk that is about to be appended; `slots` (out of range) for padding.

    Meant for a scatter with mode="drop", as `write_keys` does: padding is never written. (`dynamic_update_slice` would
    clamp and overwrite old slots.) Take the targets before `append_metadata` moves the length.
    """
    step = jnp.arange(chunk.position.shape[1], dtype=jnp.int32)[None, :]
    target = buffer.length[:, None] + step
    return jnp.where(step < chunk.count[:, None], target, buffer.slots)


def write_keys(
    cache: Shaped[Array, "b k h s"], new: Shaped[Array, "b t k h"], targets: Int[Array, "b t"]
) -> Shaped[Array, "b k h s"]:
    """A layer's keys with new ones at `targets`; what is out of range is dropped."""
    rows = jnp.arange(targets.shape[0])[:, None]
    return cache.at[rows, :, :, targets].set(new.astype(cache.dtype), mode="drop")


def write_values(
    cache: Shaped[Array, "b k s h"], new: Shaped[Array, "b t k h"], targets: Int[Array, "b t"]
) -> Shaped[Array, "b k s h"]:
    """A layer's values with new ones at `targets`; what is out of range is dropped."""
    rows = jnp.arange(targets.shape[0])[:, None]
    return cache.at[rows, :, targets].set(new.astype(cache.dtype), mode="drop")


def append_metadata(buffer: KVBuffer, chunk: TokenChunk) -> KVBuffer:
    """The buffer with the chunk's metadata appended and its length moved on; each layer writes its keys and values."""
    targets = slot_targets(buffer, chunk)
    rows = jnp.arange(targets.shape[0])[:, None]

    def put(old, new):
        return old.at[rows, targets].set(new, mode="drop")

    return replace(
        buffer,
        position=put(buffer.position, chunk.position),
        story_index=put(buffer.story_index, chunk.story_index),
        kind=put(buffer.kind, chunk.kind),
        turn=put(buffer.turn, chunk.turn),
        is_sink=put(buffer.is_sink, False),
        length=buffer.length + chunk.count,
        score=None if buffer.score is None else put(buffer.score, 0.0),
    )


def visible(buffer_position: Int[Array, "b s"], query_position: Int[Array, "b t"]) -> Bool[Array, "b t s"]:
    """The one mask of prefill, chunk and decode: slots that hold something and lie no later than the query."""
    slots = buffer_position[:, None, :]
    return (slots != EMPTY) & (slots <= query_position[:, :, None])


def next_story_index(slots: SlotMetadata | KVBuffer) -> Int[Array, " b"]:
    """Index in the whole story of the next token (right as long as the newest token is kept)."""
    return jnp.max(slots.story_index, axis=1) + 1


def next_position(buffer: KVBuffer, positions: Positions) -> Int[Array, " b"]:
    """Rotary position of the next token."""
    if positions == "slot":
        return buffer.length
    return next_story_index(buffer) if positions == "absolute" else jnp.max(buffer.position, axis=1) + 1


def rewind(buffer: KVBuffer, length: Int[Array, " b"]) -> KVBuffer:
    """Drop the newest slots, those from `length[b]` on. Their keys stay where they are, masked."""
    length = jnp.minimum(length, buffer.length)
    stays = jnp.arange(buffer.slots)[None, :] < length[:, None]
    return replace(
        buffer,
        position=jnp.where(stays, buffer.position, EMPTY),
        story_index=jnp.where(stays, buffer.story_index, EMPTY),
        kind=jnp.where(stays, buffer.kind, EMPTY),
        turn=jnp.where(stays, buffer.turn, EMPTY),
        is_sink=buffer.is_sink & stays,
        length=length,
        score=None if buffer.score is None else jnp.where(stays, buffer.score, 0.0),
    )


def compact(
    buffer: KVBuffer,
    keep: Bool[Array, "b s"],
    positions: Positions = "slot",
    theta: float = 1e4,
    is_sink: Bool[Array, "b s"] | None = None,
) -> KVBuffer:
    """Move the kept slots to the front, in their order, and drop the others.

    `positions="slot"` renumbers them by slot: a stored key is rotated, so it is turned by the *difference* of its
    positions, in float32. `"absolute"` leaves positions and keys as they are. `"recent"` gives sinks their number in
    the whole story and lets the first slot that is none follow the sinks before it. `is_sink` marks the kept slots that
    are sinks (default: as before). Keys and values of slots beyond what is kept mean nothing.
    """
    keep = keep & (buffer.position != EMPTY)
    order = jnp.argsort(~keep, axis=1, stable=True)
    length = jnp.sum(keep, axis=1, dtype=jnp.int32)
    slot = jnp.arange(buffer.slots, dtype=jnp.int32)[None, :]
    stays = slot < length[:, None]

    def move(field):
        return jnp.where(stays, jnp.take_along_axis(field, order, axis=1), EMPTY)

    old_position, story_index = move(buffer.position), move(buffer.story_index)
    is_sink = jnp.take_along_axis(buffer.is_sink if is_sink is None else is_sink, order, axis=1) & stays
    position = {"slot": lambda: slot, "absolute": lambda: old_position, "recent": lambda: _recent(story_index, is_sink)}
    position = jnp.where(stays, position[positions](), EMPTY)
    shift = position - old_position

    # Block by block from the front: what is kept only moves forward, so no slot is overwritten before it is read. The
    # loop updates the buffer in place, where a gather of each layer would make a second buffer, and ends with what is
    # kept.
    block = math.gcd(buffer.slots, BLOCK)

    def move_block(number, kv):
        start = number * block
        source = jax.lax.dynamic_slice_in_dim(order, start, block, axis=1)
        turned = jax.lax.dynamic_slice_in_dim(shift, start, block, axis=1)

        def move_keys(k):
            moved = jnp.take_along_axis(k, source[:, None, None, :], axis=3)
            if positions != "absolute":
                rotated = rotate(jnp.transpose(moved, (0, 3, 1, 2)).astype(jnp.float32), turned, theta)
                moved = jnp.transpose(rotated, (0, 2, 3, 1)).astype(k.dtype)
            return jax.lax.dynamic_update_slice_in_dim(k, moved, start, axis=3)

        def move_values(v):
            moved = jnp.take_along_axis(v, source[:, None, :, None], axis=2)
            return jax.lax.dynamic_update_slice_in_dim(v, moved, start, axis=2)

        keys, values = kv
        return tuple(map(move_keys, keys)), tuple(map(move_values, values))

    k, v = jax.lax.fori_loop(0, -(-jnp.max(length) // block), move_block, (buffer.k, buffer.v))
    return KVBuffer(
        k=k,
        v=v,
        position=position,
        story_index=story_index,
        kind=move(buffer.kind),
        turn=move(buffer.turn),
        is_sink=is_sink,
        length=length,
        score=None if buffer.score is None else jnp.where(stays, jnp.take_along_axis(buffer.score, order, axis=1), 0.0),
    )


def _recent(story_index: Int[Array, "b s"], is_sink: Bool[Array, "b s"]) -> Int[Array, "b s"]:
    """Positions of compacted slots in which the gap between the sinks and the window is closed, and no other."""
    window = (story_index != EMPTY) & ~is_sink
    first = jnp.min(jnp.where(window, story_index, jnp.iinfo(jnp.int32).max), axis=1, keepdims=True)
    last_sink = jnp.max(jnp.where(story_index < first, story_index, EMPTY), axis=1, keepdims=True)
    return jnp.where(story_index < first, story_index, story_index - (first - last_sink - 1))
