"""A story model made ready for telling: adapters merged, weights in the dtype they are read in."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seedstory_jax.checkpoints.parts import build
from seedstory_jax.config import Config
from seedstory_jax.distributed import on_this_process
from seedstory_jax.errors import UserError
from seedstory_jax.generation.render import RenderConfig, Renderer, zero_image_features
from seedstory_jax.models.int8 import quantize_llama
from seedstory_jax.models.llama import merge_lora
from seedstory_jax.models.parameters import Parameters, abstract_parameters, split_module, with_prefix
from seedstory_jax.models.story_mllm import StoryMLLM

KEPT_IN_FLOAT32 = ("scale", "bias", "pos_embed")  # small, and norms are computed in float32 anyway


def for_sampling(model: StoryMLLM, *, dtype: str = "bfloat16", weights: str = "") -> StoryMLLM:
    """The same model without adapters, computing and stored in `dtype`; the one given is left as it is.

    `weights="int8"` stores LLaMA's projections in eight bits (see `models.int8`). Decoding reads every weight once a
    token, so this is its speed as well as its memory. Raises UserError for another word.
    """
    if weights not in ("", "int8"):
        raise UserError(f"weights={weights!r}: choose int8, or leave it out for {dtype}")
    config = replace(
        model.config,
        llama=replace(model.config.llama, lora=None, dtype=dtype),
        input_resampler=replace(model.config.input_resampler, dtype=dtype),
        output_resampler=replace(model.config.output_resampler, dtype=dtype),
    )
    module_def, _ = abstract_parameters(lambda rngs: StoryMLLM(config, rngs=rngs))
    trained = split_module(model)[1] | with_prefix("llama", split_module(merge_lora(model.llama))[1])
    ready = module_def.build(stored_as(dtype, {name: trained[name] for name in module_def.names}))
    if weights == "int8":
        ready.llama = quantize_llama(ready.llama)
    return ready


def stored_as(dtype: str, parameters: Mapping[str, Any]) -> Parameters:
    """Parameters by name in the dtype that they are computed in, the small ones left as they are."""
    kept = {name: name.rpartition(".")[2] in KEPT_IN_FLOAT32 for name in parameters}
    return {name: jnp.asarray(value, None if kept[name] else dtype) for name, value in parameters.items()}


def render_images(config: Config, parameters: Mapping[str, Any], features: np.ndarray) -> np.ndarray:
    """Pixels uint8 [n h w 3] of image features [n q d], as sampling renders them."""
    return make_renderer(config, parameters, batch_size=len(features)).draw(
        features, np.zeros(len(features), np.int32), np.arange(len(features))
    )


def make_renderer(config: Config, parameters: Mapping[str, Any], *, batch_size: int | None = None) -> Renderer:
    """The renderer of a model's parts (vit, vae, detokenizer) with the config's sampling defaults."""
    model, sample = config.model, config.sample
    ours = {name: value for name, value in parameters.items() if not name.startswith("story.")}
    parameters = {name: on_this_process(value) for name, value in ours.items()}
    negative = None
    if sample.guidance != 1.0:
        vit = {name: value for name, value in parameters.items() if name.startswith("vit.")}
        negative = jax.jit(lambda p: zero_image_features(build(model, "vit", p), model.vit.image_size))(vit)
    frames = batch_size or sample.batch_size
    return Renderer(
        build(model, "detokenizer", parameters),
        build(model, "vae", parameters),
        negative,
        RenderConfig(
            height=model.image_size,
            width=model.image_size,
            steps=sample.steps,
            guidance=sample.guidance,
            batch_size=frames,
            decode_batch=frames if model.image_size <= 128 else 1,
            scheduler=model.scheduler,
        ),
        jax.local_devices(),
    )
