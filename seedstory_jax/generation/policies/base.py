"""What every eviction policy is: a frozen dataclass that says which slots stay, and how many it can come to need.

A policy of one's own has the same two methods:

    @dataclass(frozen=True)
    class EveryOther(Window):
        def keep_mask(self, slots):
            return super().keep_mask(slots) | (slots.used & (slots.turn % 2 == 0))

        def slot_count(self, turns, turn_tokens):
            return super().slot_count(turns, turn_tokens) + (turns // 2) * turn_tokens
"""

from dataclasses import dataclass, fields, replace
from typing import ClassVar, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

from seedstory_jax.errors import UserError, nearest
from seedstory_jax.models.kv_buffer import Positions, SlotMetadata

SLOT_MULTIPLE = 128
POSITIONS = get_args(Positions)

Count = int | Int[Array, ""]  # a number that is traced where a policy's `traced` names it


class TurnTokens(int):
    """The most tokens that one turn takes, as a number; `text` of them are its caption's.

    The others are `<img>`, the image's tokens and `</img>`.
    """

    text: int

    def __new__(cls, text: int, image: int):
        """A turn of at most `text` tokens of text and exactly `image` image tokens."""
        tokens = super().__new__(cls, text + image + 2)
        tokens.text = text
        return tokens


def text_tokens(turn_tokens: int) -> int:
    """Those of a turn's tokens that may be text; all of them where the number does not say."""
    return getattr(turn_tokens, "text", turn_tokens)


@dataclass(frozen=True)
class Policy:
    """Keeps everything (`dense`), and is the base of all the others."""

    positions: str = "slot"  # what compaction does to the positions of what it keeps, see `kv_buffer.compact`

    recompute: ClassVar[bool] = False  # prefill the kept tokens again instead of keeping their keys and values
    traced: ClassVar[tuple[str, ...]] = ()  # fields that may be traced: another value compiles nothing anew
    score: ClassVar[str | None] = None  # what `slots.score` is at eviction, one of `generation.scores.SCORES`
    configured: ClassVar[tuple[str, ...]] = ()  # fields whose default is that of the config's section `sample`

    def __post_init__(self):
        if self.positions not in POSITIONS:
            raise UserError(f"unknown positions={self.positions!r}: {nearest(self.positions, POSITIONS)}")
        for field in fields(self):
            value = getattr(self, field.name)
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, int | float) and number < 0 for number in numbers):
                raise UserError(f"{field.name}={value}: a policy's numbers are 0 or more")

    def window_mask(self, slots: SlotMetadata) -> Bool[Array, "b s"]:
        """The slots that are kept for being recent; what is kept besides is a sink (`sink_mask`)."""
        return slots.used

    def keep_mask(self, slots: SlotMetadata) -> Bool[Array, "b s"]:
        """True where a slot stays. Asked after every turn; the newest token has to stay."""
        return self.window_mask(slots)

    def slot_count(self, turns: int, turn_tokens: int) -> int:
        """Upper bound of the slots ever filled in a story of `turns` turns of at most `turn_tokens` tokens.

        `turn_tokens` is a `TurnTokens` where the engine asks.
        """
        return 1 + turns * turn_tokens


@dataclass(frozen=True)
class Window(Policy):
    """Keeps the newest `window` images with their text."""

    window: Count = 8

    traced: ClassVar[tuple[str, ...]] = ("window",)
    configured: ClassVar[tuple[str, ...]] = ("window",)

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.window, int) and self.window < 1:
            raise UserError(f"window={self.window}: a story needs at least the newest image; use window=1 or more")

    def oldest(self, slots: SlotMetadata) -> Int[Array, "b 1"]:
        """First turn of the window (negative while the window is not full)."""
        return jnp.max(slots.turn, axis=1, keepdims=True) - self.window + 1

    def window_mask(self, slots: SlotMetadata) -> Bool[Array, "b s"]:
        """The newest `window` turns."""
        return slots.used & (slots.turn >= self.oldest(slots))

    def evicted(self, slots: SlotMetadata) -> Bool[Array, "b s"]:
        """What is held of turns before the window."""
        return slots.used & (slots.turn < self.oldest(slots))

    def slot_count(self, turns: int, turn_tokens: int) -> int:
        """The window, the turn being generated, and `<s>`."""
        return 1 + min(turns, self.window + 1) * turn_tokens

    def evicted_turns(self, turns: int) -> int:
        """How many turns have left the window when the last of `turns` is generated."""
        return max(0, turns - self.window)


def slot_count(policy: Policy, turns: int, turn_tokens: int) -> int:
    """Static size of a buffer for this policy: its own count, rounded up to a multiple of 128."""
    count = policy.slot_count(turns, turn_tokens)
    if not isinstance(count, int) or count < 1:
        raise UserError(
            f"policy {policy!r}: slot_count({turns}, {int(turn_tokens)}) is {count!r}, not a number of slots"
        )
    count = min(count, 1 + turns * turn_tokens)  # nobody holds more than there is
    return -(-count // SLOT_MULTIPLE) * SLOT_MULTIPLE


def split_policy(policy: Policy) -> tuple[Policy, dict]:
    """(static part of a policy, the numbers that a compiled program takes as arguments)."""
    numbers = {name: getattr(policy, name) for name in policy.traced}
    defaults = {field.name: field.default for field in fields(policy)}
    return replace(policy, **{name: defaults[name] for name in numbers}), numbers


def keep_mask(policy: Policy, slots: SlotMetadata) -> Bool[Array, "b s"]:
    """`policy.keep_mask`, never keeping an empty slot."""
    return slots.used & policy.keep_mask(slots)


def sink_mask(policy: Policy, slots: SlotMetadata) -> Bool[Array, "b s"]:
    """Kept slots outside of the window: the sinks."""
    return keep_mask(policy, slots) & ~policy.window_mask(slots)


def fault_of_masks(policy: Policy, slots: SlotMetadata) -> str | None:
    """What is wrong with a policy's masks, None if nothing is; nothing is computed."""
    wanted = f"bool[{', '.join(map(str, slots.position.shape))}]"
    for name in ("keep_mask", "window_mask"):
        try:
            mask = jax.eval_shape(lambda slots, name=name: getattr(policy, name)(slots), slots)
        except (jax.errors.ConcretizationTypeError, jax.errors.NonConcreteBooleanIndexError) as error:
            return f"{name} has to be computed from arrays, without `if` on their values: {str(error).splitlines()[0]}"
        found = str(mask.dtype) if hasattr(mask, "dtype") else type(mask).__name__
        found += f"[{', '.join(map(str, mask.shape))}]" if hasattr(mask, "shape") else ""
        if found != wanted:
            return f"{name} is {found}, not {wanted}"
    return None


def highest(
    eligible: Bool[Array, "b s"], score: Shaped[Array, "b s"], count: Count | Int[Array, "b 1"]
) -> Bool[Array, "b s"]:
    """The `count` eligible slots of the highest score; of equal ones the newer."""
    newest_first = jnp.flip(jnp.arange(score.shape[1]))[None]
    worst = -jnp.inf if jnp.issubdtype(score.dtype, jnp.floating) else jnp.iinfo(score.dtype).min
    order = jnp.lexsort((jnp.broadcast_to(newest_first, score.shape), -jnp.where(eligible, score, worst), ~eligible))
    rank = jnp.argsort(order, axis=1)
    return eligible & (rank < count)
