"""The KV buffer: keys and values of one batch of stories, and what every slot holds.

A linear buffer of fixed size. Tokens are appended at the end of each story's own row; eviction happens only between
sequences, as a compaction that moves the kept slots to the front. So every program that touches it has one static
shape, whatever the length of the story. The buffer is data: every function takes one and gives one back.

Axis letters: l layer, b story, s slot, t token of a chunk, k kv head, h head dim. Heads stand before slots: attention
reads each head's slots as one piece, so that no token pays for a transposed copy of the buffer.
"""

import enum
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from seedstory_jax.models.rope import rotate

EMPTY = -1
"""The position of a slot that holds nothing."""

Positions = Literal["slot", "absolute"]
"""How compaction numbers what it keeps: by slot (as StreamingLLM does), or as it was in the whole story."""


class Kind(enum.IntEnum):
    """What kind of token a slot holds."""

    BOS = 0
    TEXT = 1
    BOI = 2  # <img>
    QUERY = 3  # one of the image tokens, as a query or as re-read
    EOI = 4  # </img>


# A buffer is also a pytree of shapes, shardings or jax's own stand-ins (`jax.jit(...).lower`, donation), so its fields
# promise no array type; the shapes stand in brackets.
Leaf = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenChunk:
    """The facts of up to t new tokens a story; the first `count[b]` of row b are real, the rest is padding."""

    position: Leaf  # [b t] the rotary position
    index: Leaf  # [b t] the token's number in the whole story, never renumbered
    kind: Leaf  # [b t] a Kind
    frame: Leaf  # [b t] the sequence it belongs to
    count: Leaf  # [b]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SlotMetadata:
    """What is known of every slot, shared by all layers: all that a policy may look at."""

    position: Leaf  # [b s] EMPTY where the slot holds nothing
    index: Leaf  # [b s]
    kind: Leaf  # [b s]
    frame: Leaf  # [b s]
    pinned: Leaf  # [b s] a sink: kept by a compaction though it had left the window

    @property
    def used(self) -> Leaf:
        """True where the slot holds a token."""
        return self.position != EMPTY


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVBuffer:
    """Keys (stored rotated), values and the facts of every slot; row b's tokens lie in slots [0, length[b])."""

    k: Leaf  # [l b k s h]
    v: Leaf  # [l b k s h]
    position: Leaf  # [b s]
    index: Leaf  # [b s]
    kind: Leaf  # [b s]
    frame: Leaf  # [b s]
    pinned: Leaf  # [b s]
    length: Leaf  # [b]

    @property
    def slots(self) -> int:
        """How many tokens a story can hold."""
        return self.position.shape[1]

    @property
    def facts(self) -> SlotMetadata:
        """The facts of all slots, without keys and values."""
        return SlotMetadata(**{field.name: getattr(self, field.name) for field in fields(SlotMetadata)})


def empty_buffer(num_layers: int, batch: int, slots: int, kv_heads: int, head_dim: int, dtype: str) -> KVBuffer:
    """A buffer that holds nothing: keys and values are zero (finite: 0 * NaN would poison a masked sum)."""
    kv = (num_layers, batch, kv_heads, slots, head_dim)
    nothing = jnp.full((batch, slots), EMPTY, jnp.int32)
    return KVBuffer(
        k=jnp.zeros(kv, jnp.dtype(dtype)),
        v=jnp.zeros(kv, jnp.dtype(dtype)),
        position=nothing,
        index=nothing,
        kind=nothing,
        frame=nothing,
        pinned=jnp.zeros((batch, slots), bool),
        length=jnp.zeros((batch,), jnp.int32),
    )


def slot_targets(buffer: KVBuffer, chunk: TokenChunk) -> Int[Array, "b t"]:
    """The slot of every token of a chunk that is about to be appended; `slots` (out of range) for padding.

    Meant for a scatter with mode="drop", as `write` does: padding is never written. (`dynamic_update_slice` would
    clamp and overwrite old slots.) Take the targets before `append_metadata` moves the length.
    """
    step = jnp.arange(chunk.position.shape[1], dtype=jnp.int32)[None, :]
    target = buffer.length[:, None] + step
    return jnp.where(step < chunk.count[:, None], target, buffer.slots)


def write(cache: Array, new: Array, targets: Int[Array, "b t"], layer: Any = None) -> Array:
    """Keys or values with new ones [b t k h] at `targets`; what is out of range is dropped.

    `cache` is one layer's [b k s h], or with `layer` (a number, traced or not) the whole buffer's [l b k s h].
    """
    rows = jnp.arange(targets.shape[0])[:, None]
    at = (rows, slice(None), targets)
    return cache.at[at if layer is None else (layer, *at)].set(new.astype(cache.dtype), mode="drop")


def append_metadata(buffer: KVBuffer, chunk: TokenChunk) -> KVBuffer:
    """The buffer with the chunk's facts appended and its length moved on (its keys and values are `write`'s part)."""
    targets = slot_targets(buffer, chunk)
    rows = jnp.arange(targets.shape[0])[:, None]

    def put(old, new):
        return old.at[rows, targets].set(new, mode="drop")

    return replace(
        buffer,
        position=put(buffer.position, chunk.position),
        index=put(buffer.index, chunk.index),
        kind=put(buffer.kind, chunk.kind),
        frame=put(buffer.frame, chunk.frame),
        pinned=put(buffer.pinned, False),
        length=buffer.length + chunk.count,
    )


def visible(buffer_position: Int[Array, "b s"], query_position: Int[Array, "b t"]) -> Bool[Array, "b t s"]:
    """The one mask of prefill, chunk and decode: slots that hold something and lie no later than the query."""
    slots = buffer_position[:, None, :]
    return (slots != EMPTY) & (slots <= query_position[:, :, None])


def next_index(facts: SlotMetadata | KVBuffer) -> Int[Array, " b"]:
    """The number in the whole story of the next token (right as long as the newest token is kept)."""
    return jnp.max(facts.index, axis=1) + 1


def rewind(buffer: KVBuffer, length: Int[Array, " b"]) -> KVBuffer:
    """Forget the newest slots: those from `length[b]` on. Their keys stay where they are, unread."""
    length = jnp.minimum(length, buffer.length)
    stays = jnp.arange(buffer.slots)[None, :] < length[:, None]
    return replace(
        buffer,
        position=jnp.where(stays, buffer.position, EMPTY),
        index=jnp.where(stays, buffer.index, EMPTY),
        kind=jnp.where(stays, buffer.kind, EMPTY),
        frame=jnp.where(stays, buffer.frame, EMPTY),
        pinned=buffer.pinned & stays,
        length=length,
    )


def compact(
    buffer: KVBuffer,
    keep: Bool[Array, "b s"],
    positions: Positions = "slot",
    theta: float = 1e4,
    pinned: Bool[Array, "b s"] | None = None,
) -> KVBuffer:
    """Move the kept slots to the front, in their order, and forget the others.

    `positions="slot"` renumbers them by slot: a stored key is rotated, so it is turned by the *difference* of its
    positions, in float32. `"absolute"` leaves positions and keys as they are. `pinned` marks the kept slots that are
    sinks (default: as before). Layer by layer: one gather over all layers would need a second buffer.
    """
    keep = keep & (buffer.position != EMPTY)
    order = jnp.argsort(~keep, axis=1, stable=True)
    length = jnp.sum(keep, axis=1, dtype=jnp.int32)
    slot = jnp.arange(buffer.slots, dtype=jnp.int32)[None, :]
    stays = slot < length[:, None]

    def move(fact):
        return jnp.where(stays, jnp.take_along_axis(fact, order, axis=1), EMPTY)

    old_position = move(buffer.position)
    position = jnp.where(stays, slot, EMPTY) if positions == "slot" else old_position
    turn = position - old_position

    def move_layer(layer, kv):
        k, v = kv
        gathered = order[:, None, :, None]
        layer_k = jnp.take_along_axis(k[layer], gathered, axis=2)
        layer_v = jnp.take_along_axis(v[layer], gathered, axis=2)
        if positions == "slot":
            turned = rotate(jnp.swapaxes(layer_k, 1, 2).astype(jnp.float32), turn, theta)
            layer_k = jnp.swapaxes(turned, 1, 2)
        return k.at[layer].set(layer_k.astype(k.dtype)), v.at[layer].set(layer_v)

    k, v = jax.lax.fori_loop(0, buffer.k.shape[0], move_layer, (buffer.k, buffer.v))
    pinned = buffer.pinned if pinned is None else pinned
    return KVBuffer(
        k=k,
        v=v,
        position=position,
        index=move(buffer.index),
        kind=move(buffer.kind),
        frame=move(buffer.frame),
        pinned=jnp.take_along_axis(pinned, order, axis=1) & stays,
        length=length,
    )
