"""Against XLA's own count, with the layers written out."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from seedstory_jax.models import flops
from seedstory_jax.models.kv_buffer import TokenChunk, empty_buffer
from seedstory_jax.models.llama import Llama, LlamaConfig
from seedstory_jax.models.llama_inference import InferenceLlama
from seedstory_jax.models.lora import LoRAConfig
from seedstory_jax.models.qwen_vit import QwenViT, QwenViTConfig
from seedstory_jax.models.resampler import QwenResampler, ResamplerConfig
from seedstory_jax.models.sdxl.linear_skip import LinearSkipVAE
from seedstory_jax.models.sdxl.perceiver import Perceiver, PerceiverConfig
from seedstory_jax.models.sdxl.unet import UNet, UNetConfig
from seedstory_jax.models.sdxl.vae import VAE, VAEConfig

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
VIT = QwenViTConfig(
    image_size=56, patch_size=7, width=320, layers=2, heads=4, n_queries=16, output_dim=256, position_grid=4
)
RESAMPLER = ResamplerConfig(grid_size=4, embed_dim=256, num_heads=2, kv_dim=192)
PERCEIVER = PerceiverConfig(
    dim=192, depth=2, dim_head=48, heads=4, num_queries=16, embedding_dim=256, output1_dim=64, output2_dim=96
)
UNET = UNetConfig(
    block_out_channels=(64, 96, 128),
    norm_num_groups=8,
    cross_attention_dim=128,
    transformer_layers_per_block=(1, 1, 2),
    num_attention_heads=(1, 2, 2),
    addition_time_embed_dim=16,
    projection_class_embeddings_input_dim=160,
)
VAE_TINY = VAEConfig(block_out_channels=(48, 64, 96), norm_num_groups=8, layers_per_block=1)


@pytest.fixture(autouse=True)
def layers_written_out(monkeypatch):
    """A scan's body is counted once, so that there is none."""
    scan = jax.lax.scan
    monkeypatch.setattr(jax.lax, "scan", lambda body, carry, xs, unroll: scan(body, carry, xs, unroll=True))


def counted(make, call, *arguments) -> float:
    """What XLA counts for `call(module, *arguments)`."""
    graph, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    run = jax.jit(lambda state, *arguments: call(nnx.merge(graph, state), *arguments))
    return run.lower(state, *arguments).cost_analysis()["flops"]  # of the program as written: no need to compile


def of(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def close(ours: int, xla: float):
    assert ours == pytest.approx(xla, rel=TOLERANCE), f"{ours:.4g} counted here, {xla:.4g} by XLA"


@pytest.mark.parametrize("lora", [LLAMA.lora, None], ids=["lora", "merged"])
def test_llama_forward(lora):
    config, length = dataclasses.replace(LLAMA, lora=lora), 320  # more than two blocks of queries

    def call(llama, ids, positions, mask):
        return llama.logits(llama(llama.embed(ids), positions, mask))

    ids = of(1, length, dtype=jnp.int32)
    xla = counted(lambda rngs: Llama(config, rngs=rngs), call, ids, ids, of(1, length, length, dtype=jnp.bool_))
    close(flops.llama_forward(config, length, scored=length), xla)


def test_a_tied_table_costs_what_a_head_costs():
    config, length = dataclasses.replace(LLAMA, lora=None, tie_word_embeddings=True), 64

    def call(llama, ids, positions, mask):
        return llama.logits(llama(llama.embed(ids), positions, mask))

    ids = of(1, length, dtype=jnp.int32)
    xla = counted(lambda rngs: Llama(config, rngs=rngs), call, ids, ids, of(1, length, length, dtype=jnp.bool_))
    close(flops.llama_forward(config, length, scored=length), xla)


def test_llama_extend():
    tokens, slots = 32, 128
    config = dataclasses.replace(LLAMA, lora=None)
    buffer = empty_buffer(2, 1, slots, config.num_kv_heads, config.head_dim, "float32")
    facts = of(1, tokens, dtype=jnp.int32)
    chunk = TokenChunk(facts, facts, facts, facts, of(1, dtype=jnp.int32))

    def call(llama, ids, chunk, buffer):
        return llama.extend(llama.embed(ids), chunk, buffer)

    xla = counted(lambda rngs: InferenceLlama(Llama(config, rngs=rngs)), call, facts, chunk, buffer)
    close(flops.llama_extend(config, tokens, slots), xla)


def test_vit():
    xla = counted(lambda rngs: QwenViT(VIT, rngs=rngs), lambda vit, x: vit(x), of(1, 56, 56, 3))
    close(flops.vit(VIT), xla)


@pytest.mark.parametrize("tokens", [16, 64])
def test_resampler(tokens):
    xla = counted(lambda rngs: QwenResampler(RESAMPLER, rngs=rngs), lambda m, x: m(x), of(1, tokens, 192))
    close(flops.resampler(RESAMPLER, tokens), xla)


def test_perceiver():
    xla = counted(lambda rngs: Perceiver(PERCEIVER, rngs=rngs), lambda m, x: m(x), of(1, 64, 256))
    close(flops.perceiver(PERCEIVER, 64), xla)


def test_unet():
    shapes = of(1, 16, 24, 4), of(1), of(1, 16, 128), of(1, 64), of(1, 6)
    xla = counted(lambda rngs: UNet(UNET, rngs=rngs), lambda unet, *x: unet(*x), *shapes)
    close(flops.unet(UNET, 16, 24, 16), xla)


@pytest.mark.parametrize("linear_skip", [False, True])
def test_vae(linear_skip):
    config = dataclasses.replace(VAE_TINY, linear_skip=linear_skip)
    make = LinearSkipVAE if linear_skip else VAE
    encode = counted(lambda rngs: make(config, rngs=rngs), lambda vae, x: vae.encode(x), of(1, 32, 48, 3))
    decode = counted(lambda rngs: make(config, rngs=rngs), lambda vae, x: vae.decode(x), of(1, 8, 12, 4))
    close(flops.vae_encode(config, 32, 48), encode)
    close(flops.vae_decode(config, 8, 12), decode)


def test_full_size_is_of_the_known_order():
    """LLaMA-2-7B: twice its weights a token; SD-XL at 1024 pixels: 6 to 7 TFLOP a call."""
    merged = LlamaConfig(lora=None)
    assert flops.llama_extend(merged, 1, 1, scored=1) == pytest.approx(2 * 6.61e9, rel=0.01)
    assert 6e12 < flops.unet(UNetConfig(), 128, 128, 64) < 7e12
