"""The policies of the paper and its scripts: dense, sink (StreamingLLM), multimodal sink, recomputed window."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from seedstory_jax.generation.policies.base import Count, Policy, Window
from seedstory_jax.models.kv_buffer import Kind, SlotMetadata


class Dense(Policy):
    """Keeps everything: what the model was trained on, at a cost that grows with the story."""


@dataclass(frozen=True)
class Sink(Window):
    """Window and the first `start` tokens of the story (StreamingLLM)."""

    start: Count = 4

    traced: ClassVar[tuple[str, ...]] = ("window", "start")

    def keep_mask(self, slots: SlotMetadata) -> Bool[Array, "b s"]:
        """The window and the first tokens."""
        return slots.used & (self.window_mask(slots) | (slots.story_index < self.start))

    def slot_count(self, turns: int, turn_tokens: int) -> int:
        """The window's count and the first tokens."""
        return super().slot_count(turns, turn_tokens) + self.start


@dataclass(frozen=True)
class MultimodalSink(Sink):
    """Sink and, around every evicted image, the tokens [BOI - 4, BOI + 8) and [EOI - 8, EOI + 4).

    `head` and `tail` are the counts before and from the mark on. `image_sink_cap` keeps only so many evicted images
    (the newest), so that a story has no end.
    """

    head: tuple[Count, Count] = (4, 8)
    tail: tuple[Count, Count] = (8, 4)
    image_sink_cap: Count | None = None

    traced: ClassVar[tuple[str, ...]] = ("window", "start", "head", "tail", "image_sink_cap")
    configured: ClassVar[tuple[str, ...]] = ("window", "head", "tail")

    def keep_mask(self, slots: SlotMetadata) -> Bool[Array, "b s"]:
        """The sink's slots, and those near the marks of evicted images."""
        evicted = self.evicted(slots)
        if self.image_sink_cap is not None:
            evicted &= slots.turn >= self.oldest(slots) - self.image_sink_cap
        borders = near(slots, evicted & (slots.kind == Kind.BOI), *self.head)
        borders |= near(slots, evicted & (slots.kind == Kind.EOI), *self.tail)
        # Counts that leave out their own mark lose the place at the next turn; then what was a sink stays.
        marks_stay = (self.head[1] > 0) & (self.tail[1] > 0)
        return super().keep_mask(slots) | borders | (slots.is_sink & evicted & ~jnp.asarray(marks_stay))

    def slot_count(self, turns: int, turn_tokens: int) -> int:
        """The sink's count and `sum(head) + sum(tail)` a kept image."""
        images = self.evicted_turns(turns)
        if self.image_sink_cap is not None:
            images = min(images, self.image_sink_cap + 1)
        return super().slot_count(turns, turn_tokens) + (sum(self.head) + sum(self.tail)) * images


@dataclass(frozen=True)
class WindowRecompute(Window):
    """Baseline: re-prefills the window every turn, as the published scripts do.

    As in the visualisation script the window starts after the evicted `</img>`, without `<s>`; `recompute_bos` is the
    story script's way: `<s>` again, and the leading `[INST]` dropped.
    """

    recompute_bos: bool = False

    recompute: ClassVar[bool] = True


def near(slots: SlotMetadata, mark: Bool[Array, "b s"], before: Count, after: Count) -> Bool[Array, "b s"]:
    """Slots whose token lies in [mark - before, mark + after) for any of the marks (indices grow with slots)."""
    far = jnp.int32(2**30)
    last = jax.lax.cummax(jnp.where(mark, slots.story_index, -far), axis=1)
    following = jax.lax.cummin(jnp.where(mark, slots.story_index, far), axis=1, reverse=True)
    following = jnp.pad(following[:, 1:], ((0, 0), (0, 1)), constant_values=far)  # the next mark after this very slot
    return (slots.story_index - last < after) | (following - slots.story_index <= before)
