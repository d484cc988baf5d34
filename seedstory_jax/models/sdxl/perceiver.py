"""The perceiver that turns image features into the UNet's condition: tokens in place of text, and one pooled vector.

The published module is SEED-Story's `ResamplerXLV2` (src/models_ipa/resampler.py), after IP-Adapter's resampler
(arXiv 2308.06721) and Flamingo's (arXiv 2204.14198).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from seedstory_jax.limits import Floating, Positive
from seedstory_jax.models.layer_stack import constrain, scan_layers, stack_layers
from seedstory_jax.models.sdxl.unet_blocks import linear

LAYER_NORM_EPS = 1e-5
SMALLEST_NORM = 1e-12


@dataclass(frozen=True)
class PerceiverConfig:
    """Sizes under their published names; the defaults are the released model's."""

    dim: Positive = 1024  # width
    depth: Positive = 4  # layers
    dim_head: Positive = 64  # channels of a head
    heads: Positive = 16  # heads a layer
    num_queries: Positive = 64  # tokens of the condition
    embedding_dim: Positive = 4096  # width of the image features that are read
    output1_dim: Positive = 768  # width of the first half of the condition's tokens
    output2_dim: Positive = 1280  # width of the other half, and of the pooled condition
    ff_mult: Positive = 4  # hidden width of the MLPs, in widths
    dtype: Floating = "float32"  # compute dtype

    @property
    def token_dim(self) -> int:
        """Width of the condition's tokens (the UNet's cross_attention_dim)."""
        return self.output1_dim + self.output2_dim


def normalize_over_tokens(x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
    """Each channel divided by its L2 norm over the tokens (not each token by its own), in float32."""
    wide = x.astype(jnp.float32)
    norm = jnp.sqrt(jnp.sum(jnp.square(wide), axis=1, keepdims=True))
    return wide / jnp.maximum(norm, SMALLEST_NORM)


class PerceiverAttention(nnx.Module):
    """Queries attend to the features and to themselves; no biases."""

    def __init__(self, config: PerceiverConfig, *, rngs: nnx.Rngs):
        """`to_kv` gives the keys first, then the values."""
        self.config = config
        inner = config.dim_head * config.heads
        self.norm1 = _layer_norm(config, rngs)
        self.norm2 = _layer_norm(config, rngs)
        self.to_q = linear(config.dim, inner, use_bias=False, dtype=config.dtype, rngs=rngs)
        self.to_kv = linear(config.dim, 2 * inner, use_bias=False, dtype=config.dtype, rngs=rngs)
        self.to_out = linear(inner, config.dim, use_bias=False, dtype=config.dtype, rngs=rngs)

    def __call__(self, features: Float[Array, "b s d"], latents: Float[Array, "b q d"]) -> Float[Array, "b q d"]:
        """What the latents read, to be added to them."""
        features, latents = self.norm1(features), self.norm2(latents)
        keys, values = jnp.split(self.to_kv(jnp.concatenate([features, latents], axis=1)), 2, axis=-1)
        heads = self.config.heads
        mixed = jax.nn.dot_product_attention(
            _split_heads(self.to_q(latents), heads), _split_heads(keys, heads), _split_heads(values, heads)
        )
        return self.to_out(mixed.reshape(*latents.shape[:2], -1))


class FeedForward(nnx.Module):
    """Norm, linear, exact GELU, linear; no biases."""

    def __init__(self, config: PerceiverConfig, *, rngs: nnx.Rngs):
        """The published indices 0, 1, 3 are `norm`, `proj_in`, `proj_out` here."""
        width = config.ff_mult * config.dim
        self.norm = _layer_norm(config, rngs)
        self.proj_in = linear(config.dim, width, use_bias=False, dtype=config.dtype, rngs=rngs)
        self.proj_out = linear(width, config.dim, use_bias=False, dtype=config.dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b q d"]) -> Float[Array, "b q d"]:
        """Same shape out as in."""
        return self.proj_out(jax.nn.gelu(self.proj_in(self.norm(x)), approximate=False))


class PerceiverLayer(nnx.Module):
    """Attention and feed-forward, each added."""

    def __init__(self, config: PerceiverConfig, *, rngs: nnx.Rngs):
        """One of `config.depth` equal layers."""
        self.attn = PerceiverAttention(config, rngs=rngs)
        self.ff = FeedForward(config, rngs=rngs)

    def __call__(self, source: Float[Array, "b s d"], latents: Float[Array, "b q d"]) -> Float[Array, "b q d"]:
        """The latents after reading the projected features."""
        latents = constrain(latents + self.attn(source, latents), "iqd")
        return latents + self.ff(latents)


class AttentionPool(nnx.Module):
    """CLIP's pooling: the mean token, put in front, attends to all; own position table."""

    def __init__(self, config: PerceiverConfig, *, rngs: nnx.Rngs):
        """Heads as many as the perceiver's, of size dim / heads."""
        self.config = config
        dim, dtype = config.dim, config.dtype
        table = jax.random.normal(rngs.params(), (config.num_queries + 1, dim), jnp.float32) * dim**-0.5
        self.positional_embedding = nnx.Param(table)
        self.k_proj = linear(dim, dim, dtype=dtype, rngs=rngs)
        self.q_proj = linear(dim, dim, dtype=dtype, rngs=rngs)
        self.v_proj = linear(dim, dim, dtype=dtype, rngs=rngs)
        self.c_proj = linear(dim, config.output2_dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b q d"]) -> Float[Array, "b p"]:
        """[b q d] -> [b output2_dim]."""
        tokens = self.with_mean(x)
        return self.attend(tokens[:, :1], tokens)[:, 0]

    def with_mean(self, x: Float[Array, "b q d"]) -> Float[Array, "b t d"]:
        """The mean token and, behind it, all of them, with positions: t = q + 1."""
        tokens = jnp.concatenate([jnp.mean(x, axis=1, keepdims=True), x], axis=1)
        return tokens + self.positional_embedding[...].astype(tokens.dtype)

    def attend(self, queries: Float[Array, "b k d"], tokens: Float[Array, "b t d"]) -> Float[Array, "b k p"]:
        """What each query reads of the tokens, [b k output2_dim]."""
        heads = self.config.heads
        mixed = jax.nn.dot_product_attention(
            _split_heads(self.q_proj(queries), heads),
            _split_heads(self.k_proj(tokens), heads),
            _split_heads(self.v_proj(tokens), heads),
        )
        return self.c_proj(mixed.reshape(*queries.shape[:2], -1))


class Perceiver(nnx.Module):
    """Image features -> the UNet's condition."""

    def __init__(self, config: PerceiverConfig, *, rngs: nnx.Rngs):
        """Learned queries, `config.depth` stacked layers, two projections side by side, a pool."""
        self.config = config
        dim, dtype = config.dim, config.dtype
        queries = jax.random.normal(rngs.params(), (1, config.num_queries, dim), jnp.float32) * dim**-0.5
        self.latents = nnx.Param(queries)
        self.proj_in = linear(config.embedding_dim, dim, dtype=dtype, rngs=rngs)
        self.layers = stack_layers(lambda layer_rngs: PerceiverLayer(config, rngs=layer_rngs), config.depth, rngs)
        self.norm_out = _layer_norm(config, rngs)
        self.unet_proj_1 = linear(dim, config.output1_dim, dtype=dtype, rngs=rngs)
        self.unet_proj_2 = linear(dim, config.output2_dim, dtype=dtype, rngs=rngs)
        self.unet_attnpool = AttentionPool(config, rngs=rngs)

    def __call__(self, features: Float[Array, "b s f"]) -> tuple[Float[Array, "b q c"], Float[Array, "b p"]]:
        """Features [b s embedding_dim] -> tokens [b num_queries output1_dim + output2_dim], pooled [b output2_dim]."""
        dtype = jnp.dtype(self.config.dtype)
        normalized = normalize_over_tokens(constrain(features, "isd"))
        source = constrain(self.proj_in(normalized.astype(dtype)), "isd")
        latents = jnp.broadcast_to(self.latents[...].astype(dtype), (features.shape[0], *self.latents.shape[1:]))

        def step(layer: PerceiverLayer, latents: Array, _: None) -> tuple[Array, None]:
            return layer(source, latents), None

        hidden = self.norm_out(scan_layers(self.layers, step, latents)[0])
        tokens = jnp.concatenate([self.unet_proj_1(hidden), self.unet_proj_2(hidden)], axis=-1)
        return tokens, self.unet_attnpool(hidden)


def _split_heads(x: Float[Array, "b s d"], heads: int) -> Float[Array, "b s n h"]:
    return x.reshape(*x.shape[:2], heads, -1)


def _layer_norm(config: PerceiverConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        config.dim,
        epsilon=LAYER_NORM_EPS,
        use_fast_variance=False,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.float32,
        rngs=rngs,
    )
