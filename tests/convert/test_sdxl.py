import dataclasses
import json

import numpy as np
import pytest
from flax import nnx

from seedstory_jax.convert.rules import export_names, export_tensors, flat_params, load_tensors, place
from seedstory_jax.convert.sdxl import (
    detokenizer_config_from_published,
    detokenizer_rules,
    published_scheduler_config,
    published_unet_config,
    published_vae_config,
    scheduler_config_from_published,
    unet_config_from_published,
    unet_rules,
    vae_config_from_published,
    vae_rules,
)
from seedstory_jax.errors import UserError
from seedstory_jax.models.sdxl.detokenizer import Detokenizer
from seedstory_jax.models.sdxl.noise_schedule import SchedulerConfig
from seedstory_jax.models.sdxl.unet import UNet, UNetConfig
from seedstory_jax.models.sdxl.vae import VAE, VAEConfig

FULL_SIZE = [
    ("UNet2DConditionModel", UNet, UNetConfig(), published_unet_config, unet_rules()),
    ("AutoencoderKL", VAE, VAEConfig(), published_vae_config, vae_rules()),
]


@pytest.mark.parametrize(("name", "module", "config", "published", "rules"), FULL_SIZE, ids=["unet", "vae"])
def test_full_size_names_and_shapes_are_diffusers_own(name, module, config, published, rules):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        theirs = getattr(diffusers, name).from_config(published(config)).state_dict()
    tensors = {key: np.broadcast_to(np.float32(0), tuple(value.shape)) for key, value in theirs.items()}
    abstract = flat_params(nnx.eval_shape(lambda: module(config, rngs=nnx.Rngs(0))))
    shapes = {path: variable.get_value().shape for path, variable in abstract.items()}
    place(shapes, tensors, rules)
    assert set(export_names(shapes, rules)) == set(theirs)


def test_detokenizer_goes_in_and_out_to_the_bit(fixtures_dir):
    from safetensors.numpy import load_file

    folder = fixtures_dir / "sdxl_adapter"
    config = detokenizer_config_from_published(json.loads((folder / "config.json").read_text()))
    module = nnx.eval_shape(lambda: Detokenizer(config, rngs=nnx.Rngs(0)))
    weights = load_file(folder / "weights.safetensors")
    load_tensors(module, weights, detokenizer_rules())
    exported = export_tensors(module, detokenizer_rules())
    assert set(exported) == set(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(exported[name], value)


def test_older_names_of_the_vae_attention_are_read(fixtures_dir):
    from safetensors.numpy import load_file

    folder = fixtures_dir / "sdxl_vae"
    config = vae_config_from_published(json.loads((folder / "config.json").read_text()))
    weights = load_file(folder / "weights.safetensors")
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def aged(name):
        for new, old in older.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        return name

    module = nnx.eval_shape(lambda: VAE(config, rngs=nnx.Rngs(0)))
    load_tensors(module, {aged(name): value for name, value in weights.items()}, vae_rules())
    exported = export_tensors(module, vae_rules())
    assert set(exported) == set(weights)
    np.testing.assert_array_equal(
        exported["decoder.mid_block.attentions.0.to_out.0.weight"],
        weights["decoder.mid_block.attentions.0.to_out.0.weight"],
    )


@pytest.mark.parametrize(
    ("config", "write", "read"),
    [
        (UNetConfig(), published_unet_config, unet_config_from_published),
        (VAEConfig(latent_channels=16), published_vae_config, vae_config_from_published),
        (SchedulerConfig(steps_offset=0), published_scheduler_config, scheduler_config_from_published),
    ],
    ids=["unet", "vae", "scheduler"],
)
def test_configs_survive_json(config, write, read):
    assert read(json.loads(json.dumps(write(config)))) == config


def test_single_numbers_stand_for_every_level():
    published = published_unet_config(UNetConfig()) | {"attention_head_dim": 5, "transformer_layers_per_block": 2}
    expected = dataclasses.replace(UNetConfig(), num_attention_heads=(5,) * 3, transformer_layers_per_block=(2,) * 3)
    assert unet_config_from_published(published) == expected


@pytest.mark.parametrize(
    ("read", "published", "message"),
    [
        (unet_config_from_published, {"use_linear_projection": False}, "UNet config: use_linear_projection is False"),
        (vae_config_from_published, {"shift_factor": 0.1}, "VAE config: shift_factor is 0.1"),
        (scheduler_config_from_published, {"use_karras_sigmas": True}, "scheduler config: use_karras_sigmas is True"),
    ],
)
def test_settings_we_do_not_have_are_refused(read, published, message):
    with pytest.raises(UserError, match=message):
        read(published)
