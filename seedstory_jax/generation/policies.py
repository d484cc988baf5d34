"""KV-cache eviction policies, as integer masks over slot metadata; no model, no key, no value.

A policy says after every turn which slots stay (`keep_mask`) and, before the story starts, how many slots it can
come to need (`slot_count`). Here are the published scripts' window, the sinks of StreamingLLM and the multimodal sink
of SEED-Story (section 3.3 of the paper); a policy of your own is a frozen dataclass with the same two methods:

    @dataclass(frozen=True)
    class EveryOther(Window):
        def keep_mask(self, slots):
            return super().keep_mask(slots) | (slots.used & (slots.turn % 2 == 0))

        def slot_count(self, turns, turn_tokens):
            return super().slot_count(turns, turn_tokens) + (turns // 2) * turn_tokens
"""

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from seedstory_jax.errors import UserError
from seedstory_jax.models.kv_buffer import Kind, SlotMetadata

SLOT_MULTIPLE = 128

Count = int | Int[Array, ""]  # a number that is traced where a policy's `traced` names it


@dataclass(frozen=True)
class Policy:
    """Keeps everything (`dense`), and is the base of all the others."""

    positions: str = "slot"  # or "absolute": what compaction does to the positions of what it keeps

    recompute: ClassVar[bool] = False  # prefill the kept tokens again instead of keeping their keys and values
    traced: ClassVar[tuple[str, ...]] = ()  # fields that may be traced: another value compiles nothing anew

    def __post_init__(self):
        if self.positions not in ("slot", "absolute"):
            raise UserError(f"positions={self.positions!r}: a policy renumbers by 'slot' or keeps 'absolute' positions")

    def window_mask(self, slots: SlotMetadata) -> Bool[Array, "b s"]:
        """The slots that are kept for being recent; what is kept besides is a sink (`sink_mask`)."""
        return slots.used

    def keep_mask(self, slots: SlotMetadata) -> Bool[Array, "b s"]:
        """True where a slot stays. Asked after every turn; the newest token has to stay."""
        return self.window_mask(slots)

    def slot_count(self, turns: int, turn_tokens: int) -> int:
        """Upper bound of the slots ever filled in a story of `turns` turns of at most `turn_tokens` tokens."""
        return 1 + turns * turn_tokens


class Dense(Policy):
    """Keeps everything: what the model was trained on, at a cost that grows with the story."""


@dataclass(frozen=True)
class Window(Policy):
    """Keeps the newest `window` images with their text."""

    window: Count = 8

    traced: ClassVar[tuple[str, ...]] = ("window",)

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

    def slot_count(self, turns: int, turn_tokens: int) -> int:
        """The window, the turn being generated, and `<s>`."""
        return 1 + min(turns, self.window + 1) * turn_tokens


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

    def keep_mask(self, slots: SlotMetadata) -> Bool[Array, "b s"]:
        """The sink's slots, and those near the marks of evicted images."""
        oldest = self.oldest(slots)
        cap = self.image_sink_cap
        evicted = slots.used & (slots.turn < oldest)
        if cap is not None:
            evicted &= slots.turn >= oldest - cap
        near = _near(slots, evicted & (slots.kind == Kind.BOI), *self.head)
        near |= _near(slots, evicted & (slots.kind == Kind.EOI), *self.tail)
        # Counts that leave out their own mark lose the place at the next turn; then what was a sink stays.
        marks_stay = (self.head[1] > 0) & (self.tail[1] > 0)
        return super().keep_mask(slots) | near | (slots.is_sink & evicted & ~jnp.asarray(marks_stay))

    def slot_count(self, turns: int, turn_tokens: int) -> int:
        """The sink's count and `sum(head) + sum(tail)` a kept image."""
        images = max(0, turns - self.window)
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


POLICIES: dict[str, type[Policy]] = {
    "dense": Dense,
    "window": Window,
    "sink": Sink,
    "multimodal_sink": MultimodalSink,
    "window_recompute": WindowRecompute,
}


def make_policy(name: str, **settings) -> Policy:
    """The policy of that name; raises UserError for an unknown name or a setting that it does not have."""
    if name not in POLICIES:
        raise UserError(f"policy={name!r} is unknown; choose from {', '.join(POLICIES)}")
    known = {field.name for field in fields(POLICIES[name])}
    for setting in settings:
        if setting not in known:
            raise UserError(f"policy {name!r} has no setting {setting!r}; it has {', '.join(sorted(known))}")
    return POLICIES[name](**settings)


def policy_of(sample: Any, name: str, **settings) -> Policy:
    """`make_policy` with a config's sampling section (`window`, `head`, `tail`) where `settings` say nothing else."""
    known = {field.name for field in fields(POLICIES[name])} if name in POLICIES else set()
    given = {each: getattr(sample, each) for each in ("window", "head", "tail") if each in known}
    return make_policy(name, **(given | settings))


def policy_name(policy: Policy) -> str:
    """Name under which a policy is listed, or its class's own name."""
    names = {kind: name for name, kind in POLICIES.items()}
    return names.get(type(policy), type(policy).__name__)


def slot_count(policy: Policy, turns: int, turn_tokens: int) -> int:
    """Static size of a buffer for this policy: its own count, rounded up to a multiple of 128."""
    count = policy.slot_count(turns, turn_tokens)
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


def _near(slots: SlotMetadata, mark: Bool[Array, "b s"], before: Count, after: Count) -> Bool[Array, "b s"]:
    """Slots whose token lies in [mark - before, mark + after) for any of the marks (indices grow with slots)."""
    far = jnp.int32(2**30)
    last = jax.lax.cummax(jnp.where(mark, slots.story_index, -far), axis=1)
    following = jax.lax.cummin(jnp.where(mark, slots.story_index, far), axis=1, reverse=True)
    following = jnp.pad(following[:, 1:], ((0, 0), (0, 1)), constant_values=far)  # the next mark after this very slot
    return (slots.story_index - last < after) | (following - slots.story_index <= before)
