"""Parity of the image encoder, the Qwen resamplers and their position tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seedstory_jax.convert.qwen_vit import qwen_vit_config_from_published, qwen_vit_rules
from seedstory_jax.convert.resampler import resampler_config_from_published, resampler_rules
from seedstory_jax.convert.rules import load_tensors
from seedstory_jax.models.qwen_vit import QwenViT
from seedstory_jax.models.resampler import QwenResampler, resize_position_table, sincos_2d

Arrays = Mapping[str, np.ndarray]


def build_vit(config: Mapping[str, Any], weights: Arrays) -> QwenViT:
    """The encoder that a fixture's config describes, with its weights."""
    ours = qwen_vit_config_from_published(config)
    vit = nnx.eval_shape(lambda: QwenViT(ours, rngs=nnx.Rngs(0)))  # drawn numbers would only be overwritten
    load_tensors(vit, weights, qwen_vit_rules(ours), what="qwen_vit")
    return vit


def qwen_vit(folder: Path, config: Mapping[str, Any], inputs: Arrays, weights: Arrays) -> dict[str, np.ndarray]:
    """Image encoder, step by step."""
    vit = build_vit(config, weights)
    images = jnp.asarray(inputs["images"]).transpose(0, 2, 3, 1)
    embedded = vit.embed(images)
    graph, state = nnx.split(vit.resblocks)
    first = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[0], state))
    after_first = first(embedded)
    transformed = vit.transform(embedded)
    return {
        "after_ln_pre": np.asarray(embedded),
        "after_block0_first16": np.asarray(after_first[:, :16]),
        "after_transformer": np.asarray(transformed),
        "after_attn_pool": np.asarray(vit.attn_pool(transformed)),
        "output": np.asarray(vit(images)),
    }


def resampler(folder: Path, config: Mapping[str, Any], inputs: Arrays, weights: Arrays) -> dict[str, np.ndarray]:
    """One resampler, with or without a projection of its keys."""
    ours = resampler_config_from_published(config)
    module = QwenResampler(ours, rngs=nnx.Rngs(0))
    load_tensors(module, weights, resampler_rules(ours), what=folder.name)
    x = jnp.asarray(inputs["x"])
    return {
        "pos_embed_kv": np.asarray(module.key_positions(x.shape[1])),
        "kv_after_ln": np.asarray(module.normed_keys(x)),
        "q_after_ln": np.asarray(module.normed_queries()),
        "output": np.asarray(module(x)),
    }


def pos_embed_interp(folder: Path, config: Mapping[str, Any], inputs: Arrays, weights: Arrays) -> dict[str, np.ndarray]:
    """Resized position tables and 2-d sine-cosine tables, for the sizes that the config lists."""
    results = {}
    for source, target in config["cases"]:
        table = resize_position_table(jnp.asarray(inputs[f"table_{source}"]), target**2)
        results[f"interp_{source}_to_{target}"] = np.asarray(table)
    for dim, grid in config["sincos"]:
        results[f"sincos_dim{dim}_grid{grid}"] = np.asarray(sincos_2d(dim, grid))
    return results


KINDS = {
    "qwen_vit": qwen_vit,
    "pos_embed_interp": pos_embed_interp,
    "resampler_in": resampler,
    "resampler_in_kvproj": resampler,
    "resampler_out": resampler,
}
