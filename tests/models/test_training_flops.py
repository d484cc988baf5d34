"""Against XLA's own count of forward and backward, with the layers written out."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from seedstory_jax.config import load_config
from seedstory_jax.models.llama import Llama, LlamaConfig
from seedstory_jax.models.lora import LoRAConfig
from seedstory_jax.models.parameters import abstract_parameters
from seedstory_jax.models.resampler import QwenResampler, ResamplerConfig
from seedstory_jax.models.sdxl.unet import UNet, UNetConfig
from seedstory_jax.models.training_flops import llama_training, resampler_training, unet_training

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 0.05
LLAMA = LlamaConfig(
    vocab_size=300,
    hidden_size=384,
    intermediate_size=1024,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    lora=LoRAConfig(rank=8),
)
UNET = UNetConfig(
    block_out_channels=(64, 96),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    norm_num_groups=8,
    cross_attention_dim=128,
    transformer_layers_per_block=(1, 2),
    num_attention_heads=(1, 2),
    addition_time_embed_dim=16,
    projection_class_embeddings_input_dim=160,
)


@pytest.fixture(autouse=True)
def layers_written_out(monkeypatch):
    """A scan's body is counted once, so that there is none."""
    scan = jax.lax.scan
    monkeypatch.setattr(jax.lax, "scan", lambda body, carry, xs, unroll: scan(body, carry, xs, unroll=True))


def counted(make, trains, call, *arguments) -> float:
    """What XLA counts for the value and the gradients of what trains, and of the first `inputs` arguments."""
    module_def, shapes = abstract_parameters(make)
    trained = {name: shape for name, shape in shapes.items() if trains(name)}
    frozen = {name: shape for name, shape in shapes.items() if not trains(name)}

    def loss(trained, source, frozen, *rest):
        return jnp.mean(call(module_def.build({**frozen, **trained}), source, *rest))

    source, *rest = arguments
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1) if source.dtype == jnp.float32 else 0))
    return run.lower(trained, source, frozen, *rest).cost_analysis()["flops"]


def of(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def close(ours: int, xla: float):
    assert ours == pytest.approx(xla, rel=TOLERANCE), f"{ours:.4g} counted here, {xla:.4g} by XLA"


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
@pytest.mark.parametrize("trains_base", [False, True])
def test_llama(remat, trains_base):
    """Frozen projections get no weight gradient; the backward pass computes layers again as the policy says."""
    length, config = 320, dataclasses.replace(LLAMA, remat=remat)  # more than two blocks of queries

    def trains(name):
        return trains_base or not name.endswith("proj.kernel")

    def call(llama, embeddings, positions, mask):
        return llama.logits(llama(embeddings, positions, mask))

    facts = of(1, length, dtype=jnp.int32), of(1, length, length, dtype=jnp.bool_)
    xla = counted(lambda rngs: Llama(config, rngs=rngs), trains, call, of(1, length, 384), *facts)
    close(llama_training(config, length, scored=length, trains_base=trains_base), xla)


def test_resampler():
    config = ResamplerConfig(grid_size=4, embed_dim=256, num_heads=2, kv_dim=192)
    make, trains = (lambda rngs: QwenResampler(config, rngs=rngs)), lambda name: "pos_embed" not in name
    xla = counted(make, trains, lambda module, x: module(x), of(1, 64, 192))
    close(resampler_training(config, 64, trains_input=True), xla)


@pytest.mark.parametrize("trains_all", [True, False])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_unet(trains_all, remat):
    config = dataclasses.replace(UNET, remat=remat)

    def trains(name):
        return trains_all or name.endswith(("to_k.kernel", "to_v.kernel"))

    def call(unet, condition, latents, *rest):
        return unet(latents, rest[0], condition, *rest[1:])

    shapes = of(1, 16, 128), of(1, 16, 24, 4), of(1), of(1, 64), of(1, 6)
    xla = counted(lambda rngs: UNet(config, rngs=rngs), trains, call, *shapes)
    close(unet_training(config, 16, 24, 16, trains_all=trains_all), xla)


def test_all_turns_from_a_cache_need_far_fewer_operations_an_image():
    """At full size, ten turns a row, layers computed again: 8 times fewer than the published step, of 11.7 at most."""
    from benchmarks.train_step import flops_ratio

    model = load_config(ROOT / "configs" / "seedstory_7b.py").model
    assert 8 <= flops_ratio(model) <= 11.7
