"""Parity of the policies: which tokens of a long story stay, against the published script's own arithmetic."""

from functools import partial

import jax
import numpy as np

from seedstory_jax.generation.policies import MultimodalSink, Policy, WindowRecompute, keep_mask, sink_mask
from seedstory_jax.models.kv_buffer import EMPTY, Kind, SlotMetadata
from seedstory_jax.parity.fixture import Arrays, Fixture

_SLOTS = 1536


def kept_tokens(policy: Policy, facts: dict[str, np.ndarray], sequences: int) -> np.ndarray:
    """The tokens that stay of a story after so many sequences, when the policy is asked after each of them.

    Args:
        policy: asked as the engine asks it, every time about what it left the last time.
        facts: kind and frame of every token, in order.
        sequences: sequences told.
    """
    size = -(-facts["kind"].size // _SLOTS) * _SLOTS  # of few sizes, so that little is compiled
    kind, frame = (np.pad(facts[name], (0, size - facts[name].size), constant_values=-1) for name in ("kind", "frame"))
    index = np.arange(size)
    kept, is_sink = np.zeros(size, bool), np.zeros(size, bool)
    for number in range(sequences):
        used = kept | (frame == number)
        numbers = (np.where(used, fact, EMPTY).astype(np.int32)[None] for fact in (index, index, kind, frame))
        kept, is_sink = (np.asarray(mask)[0] for mask in _ask(policy, SlotMetadata(*numbers, is_sink[None])))
    return np.flatnonzero(kept)


@partial(jax.jit, static_argnums=0)
def _ask(policy: Policy, slots: SlotMetadata):
    return keep_mask(policy, slots), sink_mask(policy, slots)


def sink_indices(fixture: Fixture) -> Arrays:
    """`nominal_kept` by multimodal_sink and `recomputed_window` by window_recompute.

    The fixture's other arrays are the released script's arithmetic, errors included, of which nothing reaches the
    model; there is no code for them here.
    """
    config, inputs = fixture.config, fixture.inputs
    window = config["window_size"]
    multimodal_sink = MultimodalSink(
        window=window,
        start=config["num_sink_start"],
        head=(-config["image_head"][0], config["image_head"][1]),
        tail=(-config["image_tail"][0], config["image_tail"][1]),
    )
    code = {config["token_type_codes"][name]: kind for name, kind in _KINDS.items()}
    outputs = {}
    for layout in config["layouts"]:
        kind = np.array([code[number] for number in inputs[f"{layout}:token_type"].tolist()])
        # A sequence is a caption and its image; `<s>` belongs to the first.
        frame = np.searchsorted(inputs[f"{layout}:eoi"], np.arange(kind.size))
        facts = {"kind": kind, "frame": frame}
        for eviction in range(len(inputs[f"{layout}:boi"]) - window):
            told = window + 1 + eviction
            caption = np.arange(inputs[f"{layout}:text_len"][told]) + inputs[f"{layout}:text_start"][told]
            for name, policy in (
                ("nominal_kept", multimodal_sink),
                ("recomputed_window", WindowRecompute(window=window)),
            ):
                kept = np.append(kept_tokens(policy, facts, told), caption)
                outputs[f"{layout}:evict{eviction}:{name}"] = kept.astype(np.int32)
    return outputs


_KINDS = {"bos": Kind.BOS, "text": Kind.TEXT, "boi": Kind.BOI, "img": Kind.QUERY, "eoi": Kind.EOI}

KINDS = {"sink_indices": sink_indices}
