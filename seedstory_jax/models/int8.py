"""Weights in eight bits: one scale an output channel, activations as they are (about half of bfloat16's memory).

LLaMA's projections only, which are nearly all of its weights; embedding, head and norms keep their dtype. Rounding to
nearest with the channel's largest weight at 127: weight-only quantisation at its plainest, so no library is needed.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int8

from seedstory_jax.models.llama import Llama


class Int8Linear(nnx.Module):
    """Linear layer without bias: `kernel` int8 [in out] times `scale` [out]; takes the place of a LoRALinear."""

    def __init__(self, kernel: Int8[Array, "*l in out"], scale: Float[Array, "*l out"], dtype: jnp.dtype):
        self.kernel = nnx.Param(kernel)
        self.scale = nnx.Param(scale)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*b in"], dropout_key=None) -> Float[Array, "*b out"]:
        """The product runs in the compute dtype (integers up to 127 are exact there), the scale comes after it."""
        y = x.astype(self.dtype) @ self.kernel[...].astype(self.dtype)
        return y * self.scale[...].astype(self.dtype)


def quantize(kernel: Float[Array, "*l in out"]) -> tuple[Int8[Array, "*l in out"], Float[Array, "*l out"]]:
    """(int8 kernel, scale of each output channel); kernel ~ int8 · scale."""
    kernel = kernel.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(kernel), axis=-2), 1e-12) / 127.0
    return jnp.round(kernel / scale[..., None, :]).astype(jnp.int8), scale


def quantize_llama(llama: Llama) -> Llama:
    """The same with every projection of every layer in int8, the given one left as it is.

    Raises ValueError for one with adapters: merge them before (`merge_lora`).
    """
    if llama.config.lora is not None:
        raise ValueError("adapters cannot be quantized; merge them into the weights first")
    llama = nnx.merge(*nnx.split(llama))
    jitted = jax.jit(quantize)
    for block, names in (
        (llama.layers.self_attn, ("q_proj", "k_proj", "v_proj", "o_proj")),
        (llama.layers.mlp, ("gate_proj", "up_proj", "down_proj")),
    ):
        for name in names:
            linear = getattr(block, name)
            setattr(block, name, Int8Linear(*jitted(linear.kernel[...]), linear.dtype))
    return llama
