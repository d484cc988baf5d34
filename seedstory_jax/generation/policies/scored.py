"""Policies that rank old tokens by a score of keys or attention (`generation.scores`).

Published for long prompts, where they choose from everything but the newest tokens. Here eviction happens between
turns: each keeps the window and the first tokens, as `sink` does, and of the older tokens those that its score ranks
highest. One choice serves all layers and heads.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from seedstory_jax.errors import UserError
from seedstory_jax.generation.policies.base import Count, highest
from seedstory_jax.generation.policies.published import Sink
from seedstory_jax.models.kv_buffer import SlotMetadata


@dataclass(frozen=True)
class Scored(Sink):
    """Sink, and the `tokens` older tokens of the highest rank: the base of the policies below."""

    tokens: Count = 192

    traced: ClassVar[tuple[str, ...]] = ("window", "start", "tokens")

    def rank(self, slots: SlotMetadata) -> Float[Array, "b s"]:
        """The higher, the longer a token stays."""
        return slots.score

    def keep_mask(self, slots: SlotMetadata) -> Bool[Array, "b s"]:
        """The sink's slots and the older ones of the highest rank."""
        kept = super().keep_mask(slots)
        return kept | highest(slots.used & ~kept, self.rank(slots), self.tokens)

    def slot_count(self, turns: int, turn_tokens: int) -> int:
        """The sink's count and the older tokens."""
        older = min(self.tokens, self.evicted_turns(turns) * turn_tokens)
        return super().slot_count(turns, turn_tokens) + older


class Tova(Scored):
    """Keeps what the last token of the turn attends to most (Oren et al. 2024, arXiv 2401.06104)."""

    score: ClassVar[str | None] = "last_attention"


@dataclass(frozen=True)
class H2O(Scored):
    """Keeps what was attended to most since it was read (Zhang et al. 2023, arXiv 2306.14048).

    `decay` below 1 forgets the attention of earlier turns; the paper has none.
    """

    decay: float | Float[Array, ""] = 1.0

    traced: ClassVar[tuple[str, ...]] = ("window", "start", "tokens", "decay")
    score: ClassVar[str | None] = "attention_mass"


@dataclass(frozen=True)
class SnapKV(Scored):
    """Keeps what the turn's tokens attend to most, with its neighbours (Li et al. 2024, arXiv 2404.14469).

    `pool` neighbouring slots share the highest attention among them.
    """

    pool: int = 7

    score: ClassVar[str | None] = "turn_attention"

    def __post_init__(self):
        super().__post_init__()
        if self.pool % 2 == 0:
            raise UserError(f"pool={self.pool}: neighbours on both sides and the slot itself make an odd number")

    def rank(self, slots: SlotMetadata) -> Float[Array, "b s"]:
        """The attention, max-pooled."""
        beside = self.pool // 2
        score = jnp.where(slots.used, slots.score, -jnp.inf)
        return jax.lax.reduce_window(score, -jnp.inf, jax.lax.max, (1, self.pool), (1, 1), ((0, 0), (beside, beside)))


class KeyDiff(Scored):
    """Keeps the keys that differ most from the mean key (Park et al. 2025, arXiv 2504.15364)."""

    score: ClassVar[str | None] = "key_similarity"

    def rank(self, slots: SlotMetadata) -> Float[Array, "b s"]:
        """The less similar, the higher."""
        return -slots.score


class KNorm(Scored):
    """Keeps the keys of the smallest norm, which attract attention (Devoto et al. 2024, arXiv 2406.11430)."""

    score: ClassVar[str | None] = "key_norm"

    def rank(self, slots: SlotMetadata) -> Float[Array, "b s"]:
        """The smaller, the higher."""
        return -slots.score
