"""Configuration, outputs and tokenizer protocol of the story engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from seedstory_jax.errors import UserError
from seedstory_jax.models.kv_buffer import SlotMetadata


@runtime_checkable
class Tokenizer(Protocol):
    """What the engine needs of a tokenizer (`data.text_tokenizer.StoryTokenizer` implements it)."""

    bos: int
    eos: int
    boi: int
    eoi: int
    image_ids: Sequence[int]

    def first_turn(self, caption: str) -> list[int]:
        """Ids of a story's first caption, without `<s>`."""

    def next_turn(self, caption: str) -> list[int]:
        """Ids of `[INST]caption` after an image."""

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of ids."""

    def refuse_markup(self, text: str) -> None:
        """Raises UserError for a text that holds the marks of a story's structure."""


@dataclass(frozen=True)
class GenerationConfig:
    """Settings of generation.

    Attributes:
        length: turns a story is planned for, the prompt included; it sizes the buffer of policies that grow.
        max_text_tokens: of one caption, with its [INST].
        at_limit: what follows a caption that reaches it: an image all the same ("force_image"), or the end of the story
            ("stop"), as released.
        temperature: 0 is greedy, as published; then top_p and seed have no effect.
        top_p: nucleus sampling takes the most likely tokens that reach this probability together.
        seed: of the sampling noise.
        allow_end: whether the model may end a story itself (`</s>`).
        caption_instruction: put [INST] before given captions; the released visualisation script leaves it out.
        buffer_dtype: of keys and values; "" takes the model's compute dtype.
        keep_features: whether the host keeps the image features of every turn, to render it later (a megabyte an image
            at 7B); without, it keeps those that `window_recompute` reads again, and older turns have none [0 d].
    """

    length: int = 25
    max_text_tokens: int = 128
    at_limit: str = "force_image"
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    allow_end: bool = True
    caption_instruction: bool = True
    buffer_dtype: str = ""
    keep_features: bool = True

    def __post_init__(self):
        if self.length < 1 or self.max_text_tokens < 1:
            raise UserError(f"length={self.length}, max_text_tokens={self.max_text_tokens}: both must be at least 1")
        if self.at_limit not in ("force_image", "stop"):
            raise UserError(f"at_limit={self.at_limit!r}: choose 'force_image' or 'stop'")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise UserError(
                f"temperature={self.temperature}, top_p={self.top_p}: temperature is 0 or more, top_p in (0, 1]"
            )


@dataclass(frozen=True)
class Turn:
    """One caption and one image of a story.

    Attributes:
        index: its number in the story.
        text: the caption, without [INST].
        tokens: its ids, [INST] included, `<s>` and `<img>` not.
        source: "prompt" (text and image given), "caption" (text given) or "generated".
        predicted_image_features: [q d] float32: input of the de-tokenizer (the given ones for a prompt).
        slots: numpy metadata [s] of what the buffer held of the story when this turn began.
        seconds: of the LLM's work for the batch, compilation taken out.
        calls: of the LLM.
        together: stories of the batch that had a turn in that time, this one included.
    """

    index: int
    text: str
    tokens: tuple[int, ...]
    source: Literal["prompt", "caption", "generated"]
    predicted_image_features: np.ndarray
    slots: SlotMetadata
    seconds: float
    calls: int
    together: int = 1
