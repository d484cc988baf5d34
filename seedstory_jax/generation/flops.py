"""FLOPs and bytes of the engine's programs, from configs alone."""

from dataclasses import dataclass

import jax.numpy as jnp

from seedstory_jax.generation.policies import Policy, slot_count
from seedstory_jax.models import flops
from seedstory_jax.models.llama import LlamaConfig
from seedstory_jax.models.story_mllm import StoryMLLMConfig


@dataclass(frozen=True)
class TurnCost:
    """Floating point operations of one turn's programs, for one story (batch 1), as the static shapes run them."""

    decode_text: int
    predict_image: int
    append_image: int  # or the whole window, where the policy prefills it again

    @property
    def total(self) -> int:
        """Of the whole turn."""
        return self.decode_text + self.predict_image + self.append_image


def turn_cost(
    config: StoryMLLMConfig, policy: Policy, *, turns: int, text_tokens: int, max_text_tokens: int
) -> TurnCost:
    """One turn of `text_tokens` under a policy, late in a story planned for `turns` turns.

    Every program reads all slots of the buffer, so the buffer's size is part of the cost of each token.
    """
    image = config.num_image_tokens
    turn_tokens = max_text_tokens + image + 2
    slots = slot_count(policy, turns, turn_tokens)
    features = config.output_resampler.grid_size**2

    def extend(tokens: int, scored: int = 0) -> int:
        return flops.llama_extend(config.llama, tokens, slots, scored=scored)

    read_one = flops.resampler(config.input_resampler, features)
    if policy.recompute:
        read = extend(1 + policy.window * turn_tokens) + policy.window * read_one
    else:
        read = extend(image + 2) + read_one
    return TurnCost(
        # One choice more than tokens: that of <img>.
        decode_text=text_tokens * extend(1) + (text_tokens + 1) * (extend(1, scored=1) - extend(1)),
        predict_image=extend(1 + image) + flops.resampler(config.output_resampler, image),
        append_image=read,
    )


def buffer_bytes(config: LlamaConfig, batch: int, slots: int, dtype: str) -> int:
    """Bytes of a buffer's keys and values."""
    kv = config.num_layers * batch * slots * config.num_kv_heads * config.head_dim
    return 2 * kv * jnp.dtype(dtype).itemsize
