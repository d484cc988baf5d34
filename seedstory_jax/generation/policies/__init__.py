"""KV-cache eviction policies, as masks over slot metadata; no model, no key, no value.

A policy says after every turn which slots stay (`keep_mask`) and, before the story starts, how many slots it can
come to need (`slot_count`). `POLICIES` lists those that have a name; `base` shows one of a user's own, which
`generation.policy_names` finds by file or module.
"""

from dataclasses import fields

from seedstory_jax.errors import UserError, nearest
from seedstory_jax.generation.policies.base import (
    Count,
    Policy,
    TurnTokens,
    Window,
    fault_of_masks,
    keep_mask,
    sink_mask,
    slot_count,
    split_policy,
)
from seedstory_jax.generation.policies.by_kind import BoiOnly, EoiOnly, StorySink, TextSink, TwoWindows
from seedstory_jax.generation.policies.by_turn import FrameSink, Pinned, Random, Stride
from seedstory_jax.generation.policies.published import Dense, MultimodalSink, Sink, WindowRecompute
from seedstory_jax.generation.policies.scored import H2O, KeyDiff, KNorm, SnapKV, Tova

__all__ = [
    "POLICIES",
    "PUBLISHED",
    "Count",
    "Dense",
    "MultimodalSink",
    "Policy",
    "Sink",
    "TurnTokens",
    "Window",
    "WindowRecompute",
    "fault_of_masks",
    "keep_mask",
    "make_policy",
    "policy_name",
    "sink_mask",
    "slot_count",
    "split_policy",
]

PUBLISHED: dict[str, type[Policy]] = {
    "dense": Dense,
    "window": Window,
    "sink": Sink,
    "multimodal_sink": MultimodalSink,
    "window_recompute": WindowRecompute,
}
"""What the paper compares."""

POLICIES: dict[str, type[Policy]] = {
    **PUBLISHED,
    "random": Random,
    "frame_sink": FrameSink,
    "text_sink": TextSink,
    "story_sink": StorySink,
    "two_windows": TwoWindows,
    "stride": Stride,
    "boi_only": BoiOnly,
    "eoi_only": EoiOnly,
    "pinned": Pinned,
    "tova": Tova,
    "h2o": H2O,
    "snapkv": SnapKV,
    "keydiff": KeyDiff,
    "knorm": KNorm,
}


def make_policy(name: str, **settings) -> Policy:
    """The policy of that name; raises UserError for an unknown name or a setting that it does not have."""
    if name not in POLICIES:
        raise UserError(f"unknown policy {name!r}: {nearest(name, list(POLICIES))}")
    known = [field.name for field in fields(POLICIES[name])]
    for setting in settings:
        if setting not in known:
            raise UserError(f"policy {name!r} has no setting {setting!r}; it has {', '.join(sorted(known))}")
    return POLICIES[name](**settings)


def policy_name(policy: Policy) -> str:
    """Name under which a policy is listed, or its class's own name."""
    names = {kind: name for name, kind in POLICIES.items()}
    return names.get(type(policy), type(policy).__name__)
