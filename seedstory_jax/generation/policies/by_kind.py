"""Policies that choose by kind of token: captions, images, and the borders of images."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool

from seedstory_jax.generation.policies.base import Count, Window, text_tokens
from seedstory_jax.generation.policies.published import MultimodalSink, Sink
from seedstory_jax.models.kv_buffer import Kind, SlotMetadata


def is_text(slots: SlotMetadata) -> Bool[Array, "b s"]:
    """The tokens of captions, `<s>` with them."""
    return slots.used & ((slots.kind == Kind.TEXT) | (slots.kind == Kind.BOS))


@dataclass(frozen=True)
class TextSink(Window):
    """Keeps every caption, and images in the window alone.

    LOOK-M (Wan et al. 2024, arXiv 2406.18139) drops images before text; this is the half of it that merges nothing.
    """

    def keep_mask(self, slots: SlotMetadata) -> Bool[Array, "b s"]:
        """The window and all text."""
        return self.window_mask(slots) | is_text(slots)

    def slot_count(self, turns: int, turn_tokens: int) -> int:
        """The window's count and a caption for every evicted turn."""
        return super().slot_count(turns, turn_tokens) + text_tokens(turn_tokens) * self.evicted_turns(turns)


@dataclass(frozen=True)
class StorySink(MultimodalSink):
    """Keeps every caption, the borders of every image, and the newest images whole.

    SEED-Story's multimodal sink (Yang et al. 2024, arXiv 2407.08683) with LOOK-M's text; `image_sink_cap` bounds the
    images, not the captions.
    """

    def keep_mask(self, slots: SlotMetadata) -> Bool[Array, "b s"]:
        """The multimodal sink's slots and all text."""
        return super().keep_mask(slots) | is_text(slots)

    def slot_count(self, turns: int, turn_tokens: int) -> int:
        """The multimodal sink's count and a caption for every evicted turn."""
        return super().slot_count(turns, turn_tokens) + text_tokens(turn_tokens) * self.evicted_turns(turns)


@dataclass(frozen=True)
class TwoWindows(Sink):
    """Keeps the first tokens, the newest `window` images, and the captions of the newest `text_window` turns.

    StreamingVLM (Xu et al. 2025, arXiv 2510.09608): a short window of vision beside a long one of text.
    """

    text_window: Count = 25

    traced: ClassVar[tuple[str, ...]] = ("window", "start", "text_window")

    def keep_mask(self, slots: SlotMetadata) -> Bool[Array, "b s"]:
        """The sink's slots, and the text of the longer window."""
        recent = slots.turn > jnp.max(slots.turn, axis=1, keepdims=True) - self.text_window
        return super().keep_mask(slots) | (is_text(slots) & recent)

    def slot_count(self, turns: int, turn_tokens: int) -> int:
        """The sink's count and the captions of turns in the longer window alone."""
        captions = min(self.evicted_turns(turns), max(0, self.text_window - self.window))
        return super().slot_count(turns, turn_tokens) + text_tokens(turn_tokens) * captions


@dataclass(frozen=True)
class BoiOnly(MultimodalSink):
    """Keeps sink and, of every evicted image, the tokens around `<img>` alone: half of the multimodal sink."""

    tail: tuple[Count, Count] = (0, 0)

    configured: ClassVar[tuple[str, ...]] = ("window", "head")


@dataclass(frozen=True)
class EoiOnly(MultimodalSink):
    """Keeps sink and, of every evicted image, the tokens around `</img>` alone: half of the multimodal sink."""

    head: tuple[Count, Count] = (0, 0)

    configured: ClassVar[tuple[str, ...]] = ("window", "tail")
