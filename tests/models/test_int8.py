import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seedstory_jax.models.int8 import Int8Linear, quantize, quantize_llama
from seedstory_jax.models.llama import Llama, LlamaConfig, causal_mask
from seedstory_jax.models.llama_inference import InferenceLlama

TINY = LlamaConfig(
    vocab_size=70, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4, num_kv_heads=2, lora=None
)


@pytest.mark.parametrize("outputs", [(8,), (2, 8)])
def test_a_channel_loses_at_most_half_a_step(outputs):
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(16, *outputs)), jnp.float32).at[..., 2].set(0.0)
    small, scale = quantize(kernel)
    assert small.dtype == jnp.int8 and scale.shape == outputs
    error = jnp.abs(small * scale - kernel)
    assert bool(jnp.all(error <= scale * 0.5001))
    assert bool(jnp.all(small[..., 2] == 0))


def test_llama_in_int8_is_nearly_itself():
    llama = InferenceLlama(Llama(TINY, rngs=nnx.Rngs(0)))
    small = quantize_llama(llama)
    assert isinstance(small.layers[1].qkv_proj, Int8Linear)
    assert not isinstance(llama.layers[1].qkv_proj, Int8Linear)
    ids = jnp.asarray(np.random.default_rng(2).integers(0, 70, (2, 12)))
    positions = jnp.broadcast_to(jnp.arange(12), (2, 12))
    mask = causal_mask(jnp.ones((2, 12), bool))

    @nnx.jit
    def logits(model):
        return model.logits(model(model.embed(ids), positions, mask))[..., :70]

    full, rounded = logits(llama), logits(small)
    error = float(jnp.linalg.norm(rounded - full) / jnp.linalg.norm(full))
    assert 0 < error < 0.03
