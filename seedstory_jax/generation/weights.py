"""A story model made ready for telling: adapters merged, weights in the dtype they are read in."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from seedstory_jax.errors import UserError
from seedstory_jax.models.int8 import quantize_llama
from seedstory_jax.models.parameters import abstract_parameters, take_apart
from seedstory_jax.models.story_mllm import StoryMLLM

KEPT_IN_FLOAT32 = ("scale", "bias", "pos_embed")  # small, and norms are computed in float32 anyway


def for_sampling(model: StoryMLLM, *, dtype: str = "bfloat16", weights: str = "") -> StoryMLLM:
    """The same model without adapters, computing and stored in `dtype`; the one given is left as it is.

    `weights="int8"` stores LLaMA's projections in eight bits (see `models.int8`). Decoding reads every weight once a
    token, so this is its speed as well as its memory.
    """
    if weights not in ("", "int8"):
        raise UserError(f"weights={weights!r}: choose int8, or leave it out for {dtype}")
    config, lora = model.config, model.config.llama.lora
    config = replace(
        config,
        llama=replace(config.llama, lora=None, dtype=dtype),
        input_resampler=replace(config.input_resampler, dtype=dtype),
        output_resampler=replace(config.output_resampler, dtype=dtype),
    )
    blueprint, _ = abstract_parameters(lambda rngs: StoryMLLM(config, rngs=rngs))
    trained = take_apart(model)[1]

    @jax.jit
    def merge(kernel, low, high):
        added = lora.scale * jnp.einsum("...ir,...ro->...io", low.astype(jnp.float32), high.astype(jnp.float32))
        return (kernel.astype(jnp.float32) + added).astype(dtype)

    parameters = {}
    for name in blueprint.names:
        stem, _, leaf = name.rpartition(".")
        if f"{stem}.lora_a" in trained and leaf == "kernel":
            parameters[name] = merge(trained[name], trained[f"{stem}.lora_a"], trained[f"{stem}.lora_b"])
        elif leaf in KEPT_IN_FLOAT32:
            parameters[name] = trained[name]
        else:
            parameters[name] = trained[name].astype(dtype)
    ready = blueprint.build(parameters)
    if weights == "int8":
        ready.llama = quantize_llama(ready.llama)
    return ready
