"""Parity of the image encoder, the Qwen resamplers and their position tables."""

import jax.numpy as jnp

from seedstory_jax.convert.qwen_vit import qwen_vit_config_from_published, qwen_vit_rules
from seedstory_jax.convert.resampler import resampler_config_from_published, resampler_rules
from seedstory_jax.models.qwen_vit import QwenViT
from seedstory_jax.models.resampler import QwenResampler, resize_position_table, sincos_2d
from seedstory_jax.parity.fixture import Arrays, Fixture
from seedstory_jax.parity.modules import layer_of, loaded, module_outputs


def build_vit(fixture: Fixture) -> QwenViT:
    """The encoder that a fixture describes, with its weights."""
    config = qwen_vit_config_from_published(fixture.config)
    return loaded(QwenViT, config, fixture, qwen_vit_rules(config))


def qwen_vit(fixture: Fixture) -> Arrays:
    """Image encoder, step by step."""
    vit = build_vit(fixture)
    output, inside = module_outputs(vit, jnp.asarray(fixture.inputs["images"]).transpose(0, 2, 3, 1))
    return {
        "after_ln_pre": inside["embed"],
        "after_block0_first16": layer_of(vit.resblocks, 0)(inside["embed"])[:, :16],
        "after_transformer": inside["transform"],
        "after_attn_pool": inside["attn_pool"],
        "output": output,
    }


def resampler(fixture: Fixture) -> Arrays:
    """One resampler, with or without a projection of its keys."""
    config = resampler_config_from_published(fixture.config)
    module = loaded(QwenResampler, config, fixture, resampler_rules(config))
    output, inside = module_outputs(module, jnp.asarray(fixture.inputs["x"]))
    return {
        "pos_embed_kv": inside["key_positions"],
        "kv_after_ln": inside["normed_keys"],
        "q_after_ln": inside["normed_queries"],
        "output": output,
    }


def pos_embed_interp(fixture: Fixture) -> Arrays:
    """Resized position tables and 2-d sine-cosine tables, for the sizes that the config lists."""
    results = {}
    for source, target in fixture.config["cases"]:
        table = jnp.asarray(fixture.inputs[f"table_{source}"])
        results[f"interp_{source}_to_{target}"] = resize_position_table(table, target**2)
    for dim, grid in fixture.config["sincos"]:
        results[f"sincos_dim{dim}_grid{grid}"] = sincos_2d(dim, grid)
    return results


KINDS = {
    "qwen_vit": qwen_vit,
    "pos_embed_interp": pos_embed_interp,
    "resampler_in": resampler,
    "resampler_in_kvproj": resampler,
    "resampler_out": resampler,
}
