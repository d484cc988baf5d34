"""The UNet's transformer: image positions attend to each other and to the condition's tokens.

Podell et al. 2023 (arXiv 2307.01952) section 2.1; the published module is diffusers' `Transformer2DModel` with linear
projections. The blocks of one transformer are stacked and scanned: SD-XL has ten of them at its deepest level.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from seedstory_jax.models.layer_stack import constrain, scan_layers, stack_layers
from seedstory_jax.models.sdxl.unet_blocks import GroupNorm, linear

GROUP_NORM_EPS = 1e-6  # before the transformer; not the resnets' 1e-5
LAYER_NORM_EPS = 1e-5
FEED_FORWARD_FACTOR = 4


@dataclass(frozen=True)
class Transformer2DConfig:
    """One transformer of the UNet. `attention`: "xla", or "cudnn" (flash attention on NVIDIA GPUs, half precision)."""

    channels: int
    heads: int
    layers: int
    cross_attention_dim: int
    norm_num_groups: int = 32
    attention: str = "xla"
    remat: str = "none"
    dtype: str = "float32"


class Attention(nnx.Module):
    """Multi-head attention of image positions to `source`; no bias but on the way out."""

    def __init__(self, config: Transformer2DConfig, source_dim: int, *, rngs: nnx.Rngs):
        """`source_dim`: channels of keys' and values' source."""
        self.config = config
        channels, dtype = config.channels, config.dtype
        self.to_q = linear(channels, channels, use_bias=False, dtype=dtype, rngs=rngs)
        self.to_k = linear(source_dim, channels, use_bias=False, dtype=dtype, rngs=rngs)
        self.to_v = linear(source_dim, channels, use_bias=False, dtype=dtype, rngs=rngs)
        self.to_out = linear(channels, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"], source: Float[Array, "b s c"]) -> Float[Array, "b t d"]:
        """Softmax in float32."""

        def split_heads(y: Float[Array, "b s d"]) -> Float[Array, "b s n h"]:
            return constrain(y, "itd").reshape(*y.shape[:2], self.config.heads, -1)

        q, k, v = split_heads(self.to_q(x)), split_heads(self.to_k(source)), split_heads(self.to_v(source))
        mixed = jax.nn.dot_product_attention(q, k, v, implementation=self.config.attention)
        return self.to_out(mixed.reshape(x.shape))


class FeedForward(nnx.Module):
    """GEGLU: half of the first projection, times the exact GELU of its other half."""

    def __init__(self, config: Transformer2DConfig, *, rngs: nnx.Rngs):
        """The published `ff.net.0.proj` and `ff.net.2` are `proj_in` and `proj_out` here."""
        width = FEED_FORWARD_FACTOR * config.channels
        self.proj_in = linear(config.channels, 2 * width, dtype=config.dtype, rngs=rngs)
        self.proj_out = linear(width, config.channels, dtype=config.dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Same shape out as in."""
        value, gate = jnp.split(constrain(self.proj_in(x), "itd"), 2, axis=-1)
        return self.proj_out(value * jax.nn.gelu(gate, approximate=False))


class TransformerBlock(nnx.Module):
    """Self-attention, attention to the condition, feed-forward; each after its norm, each added."""

    def __init__(self, config: Transformer2DConfig, *, rngs: nnx.Rngs):
        """One of `config.layers` equal blocks."""
        self.norm1 = _layer_norm(config, rngs)
        self.attn1 = Attention(config, config.channels, rngs=rngs)
        self.norm2 = _layer_norm(config, rngs)
        self.attn2 = Attention(config, config.cross_attention_dim, rngs=rngs)
        self.norm3 = _layer_norm(config, rngs)
        self.ff = FeedForward(config, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"], condition: Float[Array, "b s c"]) -> Float[Array, "b t d"]:
        """Same shape out as in."""
        normed = self.norm1(x)
        x = constrain(x + self.attn1(normed, normed), "itd")
        x = constrain(x + self.attn2(self.norm2(x), condition), "itd")
        return constrain(x + self.ff(self.norm3(x)), "itd")


class Transformer2D(nnx.Module):
    """Group norm, projection, transformer blocks over h * w positions, projection, added to the image."""

    def __init__(self, config: Transformer2DConfig, *, rngs: nnx.Rngs):
        """Begins as the identity: `proj_out` starts at 0."""
        self.config = config
        channels, dtype = config.channels, config.dtype
        self.norm = GroupNorm(channels, config.norm_num_groups, GROUP_NORM_EPS, rngs=rngs)
        self.proj_in = linear(channels, channels, dtype=dtype, rngs=rngs)
        self.transformer_blocks = stack_layers(
            lambda layer_rngs: TransformerBlock(config, rngs=layer_rngs), config.layers, rngs
        )
        self.proj_out = linear(channels, channels, dtype=dtype, zero=True, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w d"], condition: Float[Array, "b s c"]) -> Float[Array, "b h w d"]:
        """Same shape out as in."""
        batch, height, width, channels = x.shape
        tokens = constrain(self.proj_in(self.norm(x).reshape(batch, height * width, channels)), "itd")

        def step(block: TransformerBlock, tokens: Array, _: None) -> tuple[Array, None]:
            return block(tokens, condition), None

        # A single block is written out: a loop of one turn only costs.
        unroll = self.config.layers == 1
        tokens, _ = scan_layers(self.transformer_blocks, step, tokens, remat=self.config.remat, unroll=unroll)
        return constrain(x + self.proj_out(tokens).reshape(x.shape), "ihwc")


def _layer_norm(config: Transformer2DConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        config.channels,
        epsilon=LAYER_NORM_EPS,
        use_fast_variance=False,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.float32,
        rngs=rngs,
    )
