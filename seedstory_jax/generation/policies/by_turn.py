"""Policies that keep whole turns before the window, and the control that keeps tokens by chance."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, UInt32

from seedstory_jax.errors import UserError
from seedstory_jax.generation.policies.base import Count, Window, highest
from seedstory_jax.generation.policies.published import Sink
from seedstory_jax.models.kv_buffer import SlotMetadata


@dataclass(frozen=True)
class FrameSink(Window):
    """Keeps the first `frames` turns whole, and the window.

    The frame sink of LongLive (Yang et al. 2025, arXiv 2509.22622); with positions=recent the deep sink of Deep Forcing
    (Yi et al. 2025, arXiv 2512.05081).
    """

    frames: Count = 1

    traced: ClassVar[tuple[str, ...]] = ("window", "frames")

    def keep_mask(self, slots: SlotMetadata) -> Bool[Array, "b s"]:
        """The window and the first turns."""
        return slots.used & (self.window_mask(slots) | (slots.turn < self.frames))

    def slot_count(self, turns: int, turn_tokens: int) -> int:
        """The window's count and the first turns."""
        return super().slot_count(turns, turn_tokens) + min(self.frames, self.evicted_turns(turns)) * turn_tokens


@dataclass(frozen=True)
class Stride(Window):
    """Keeps every `every`-th turn whole (the first one, then `every` further on), and the window.

    The strided attention of Sparse Transformers (Child et al. 2019, arXiv 1904.10509), in turns.
    """

    every: Count = 4

    traced: ClassVar[tuple[str, ...]] = ("window", "every")

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.every, int) and self.every < 1:
            raise UserError(f"every={self.every}: the stride between turns is 1 or more")

    def keep_mask(self, slots: SlotMetadata) -> Bool[Array, "b s"]:
        """The window, and older turns that the stride meets."""
        return slots.used & (self.window_mask(slots) | (slots.turn % self.every == 0))

    def slot_count(self, turns: int, turn_tokens: int) -> int:
        """The window's count and the older turns that the stride meets."""
        kept = -(-self.evicted_turns(turns) // self.every)
        return super().slot_count(turns, turn_tokens) + kept * turn_tokens


@dataclass(frozen=True)
class Pinned(Window):
    """Keeps the turns that the user names, whole, and the window; `turns=0:4` pins the first and the fifth."""

    turns: tuple[int, ...] = (0,)

    def keep_mask(self, slots: SlotMetadata) -> Bool[Array, "b s"]:
        """The window and the pinned turns."""
        return slots.used & (self.window_mask(slots) | jnp.isin(slots.turn, jnp.array(self.turns, jnp.int32)))

    def slot_count(self, turns: int, turn_tokens: int) -> int:
        """The window's count and the pinned turns."""
        pinned = sum(turn < self.evicted_turns(turns) for turn in set(self.turns))
        return super().slot_count(turns, turn_tokens) + pinned * turn_tokens


@dataclass(frozen=True)
class Random(Sink):
    """Control: sink, and `tokens` of the older tokens, drawn uniformly by `seed` (the same places in every story)."""

    tokens: Count = 192
    seed: Count = 0

    traced: ClassVar[tuple[str, ...]] = ("window", "start", "tokens", "seed")

    def keep_mask(self, slots: SlotMetadata) -> Bool[Array, "b s"]:
        """The sink's slots and older ones by chance.

        Each token has its lot for good, so those that stay are a uniform sample of all that ever left the window.
        """
        kept = super().keep_mask(slots)
        lot = _hashed(slots.story_index.astype(jnp.uint32), jnp.uint32(self.seed))
        return kept | highest(slots.used & ~kept, lot >> 1, self.tokens)

    def slot_count(self, turns: int, turn_tokens: int) -> int:
        """The sink's count and the older tokens."""
        older = min(self.tokens, self.evicted_turns(turns) * turn_tokens)
        return super().slot_count(turns, turn_tokens) + older


def _hashed(numbers: UInt32[Array, "b s"], seed: UInt32[Array, ""]) -> UInt32[Array, "b s"]:
    """Numbers as evenly spread bits: the finalizer of MurmurHash3, twice, once with the seed."""
    for salt in (seed * jnp.uint32(0x9E3779B9) + jnp.uint32(1), jnp.uint32(0)):
        numbers = numbers ^ salt
        numbers = (numbers ^ (numbers >> 16)) * jnp.uint32(0x85EBCA6B)
        numbers = (numbers ^ (numbers >> 13)) * jnp.uint32(0xC2B2AE35)
        numbers = numbers ^ (numbers >> 16)
    return numbers
