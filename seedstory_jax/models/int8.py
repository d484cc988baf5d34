"""Weights in eight bits: one scale an output channel, activations as they are (about half of bfloat16's memory).

LLaMA's projections only, which are nearly all of its weights; embedding, head and norms keep their dtype. Rounding to
nearest with the channel's largest weight at 127: weight-only quantisation at its plainest, so no library is needed.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int8

from seedstory_jax.models.llama_inference import InferenceLlama


class Int8Linear(nnx.Module):
    """Linear layer without bias: `kernel` int8 [in *out] times `scale` [*out]; takes the place of a FusedLinear."""

    def __init__(self, kernel: Int8[Array, "in *out"], scale: Float[Array, "*out"], dtype: jnp.dtype):
        self.kernel = nnx.Param(kernel)
        self.scale = nnx.Param(scale)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*b in"]) -> Float[Array, "..."]:
        """The product runs in the compute dtype (integers up to 127 are exact there), the scale comes after it."""
        y = jnp.tensordot(x.astype(self.dtype), self.kernel[...].astype(self.dtype), 1)
        return y * self.scale[...].astype(self.dtype)


def quantize(kernel: Float[Array, "in *out"]) -> tuple[Int8[Array, "in *out"], Float[Array, "*out"]]:
    """(int8 kernel, scale of each output channel); kernel ~ int8 · scale."""
    kernel = kernel.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(kernel), axis=0), 1e-12) / 127.0
    return jnp.round(kernel / scale).astype(jnp.int8), scale


def quantize_llama(llama: InferenceLlama) -> InferenceLlama:
    """The same with every projection of every layer in int8; the given one is unchanged."""
    llama = nnx.merge(*nnx.split(llama))
    jitted = jax.jit(quantize)
    for layer in llama.layers:
        for name in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"):
            linear = getattr(layer, name)
            setattr(layer, name, Int8Linear(*jitted(linear.kernel[...]), linear.dtype))
    return llama
