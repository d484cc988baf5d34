"""Qwen-VL's image encoder: ViT-bigG with an attention pool, the visual tokenizer of SEED-Story.

Published as `qwen_visual.VisionTransformerWithAttnPool`; pre-norm blocks, no class token, exact GELU.

Axis letters: b batch, s patch, q query, n head, h head dim, w width.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from seedstory_jax.limits import AboveZero, Floating, Positive, Remat
from seedstory_jax.models.dense import Linear
from seedstory_jax.models.layer_stack import constrain, scan_layers, stack_layers
from seedstory_jax.models.resampler import QwenResampler, ResamplerConfig, resize_position_table

POOL_HEAD_DIM = 128
NORM_EPS = 1e-6


@dataclass(frozen=True)
class QwenViTConfig:
    """Sizes of the encoder; the defaults are the published ones (1,935.6 M parameters with the pool)."""

    image_size: Positive = 448  # side of the pictures that are read, pixels
    patch_size: Positive = 14  # side of a patch, pixels
    width: Positive = 1664  # of the blocks
    layers: Positive = 48  # blocks
    heads: Positive = 16  # heads a block
    mlp_ratio: AboveZero = 4.9231  # hidden width of a block's MLP, in widths
    n_queries: Positive = 256  # features a picture, a square number
    output_dim: Positive = 4096  # width of the features
    position_grid: Positive = 16  # side of the stored position table, whatever the image size
    pool_heads: Positive | None = None  # of the pool; None: one for every 128 of output_dim
    layer_norm_eps: AboveZero = NORM_EPS  # added to variances in norms
    remat: Remat = "none"  # what the backward pass recomputes: nothing, all, or "dots", all but the projections
    dtype: Floating = "float32"  # compute dtype

    def __post_init__(self):
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        if round(self.n_queries**0.5) ** 2 != self.n_queries:
            raise ValueError(f"n_queries {self.n_queries} is no square number, which the pool's grid needs")

    @property
    def mlp_width(self) -> int:
        """Hidden width of a block's MLP, cut to an integer as published (1664 * 4.9231 -> 8192)."""
        return int(self.width * self.mlp_ratio)

    @property
    def pool(self) -> ResamplerConfig:
        """The attention pool's config."""
        return ResamplerConfig(
            grid_size=round(self.n_queries**0.5),
            embed_dim=self.output_dim,
            num_heads=self.pool_heads or max(1, self.output_dim // POOL_HEAD_DIM),
            kv_dim=self.width,
            layer_norm_eps=self.layer_norm_eps,
            dtype=self.dtype,
        )


def _norm(config: QwenViTConfig, dim: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    dtype = jnp.dtype(config.dtype)
    return nnx.LayerNorm(dim, epsilon=config.layer_norm_eps, use_fast_variance=False, dtype=dtype, rngs=rngs)


class SelfAttention(nnx.Module):
    """Full self-attention; the fused projection's columns are grouped by head: q, k, v of head 0, then of head 1."""

    def __init__(self, config: QwenViTConfig, *, rngs: nnx.Rngs):
        self.heads = config.heads
        dtype = jnp.dtype(config.dtype)
        self.in_proj = Linear(config.width, 3 * config.width, dtype=dtype, rngs=rngs)
        self.out_proj = Linear(config.width, config.width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b s w"]) -> Float[Array, "b s w"]:
        """Logits and softmax in float32."""
        batch, tokens, _ = x.shape
        heads = constrain(self.in_proj(x).reshape(batch, tokens, self.heads, -1), "bsnh")
        q, k, v = jnp.split(heads, 3, axis=-1)
        return self.out_proj(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))


class MLP(nnx.Module):
    """Two linear layers around the exact (erf) GELU."""

    def __init__(self, config: QwenViTConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.c_fc = Linear(config.width, config.mlp_width, dtype=dtype, rngs=rngs)
        self.c_proj = Linear(config.mlp_width, config.width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b s w"]) -> Float[Array, "b s w"]:
        """Token by token."""
        return self.c_proj(jax.nn.gelu(constrain(self.c_fc(x), "bsf"), approximate=False))


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: QwenViTConfig, *, rngs: nnx.Rngs):
        self.ln_1 = _norm(config, config.width, rngs)
        self.attn = SelfAttention(config, rngs=rngs)
        self.ln_2 = _norm(config, config.width, rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(self, x: Float[Array, "b s w"]) -> Float[Array, "b s w"]:
        """Attention, then MLP, each added to its input."""
        x = constrain(x + self.attn(self.ln_1(x)), "bsw")
        return constrain(x + self.mlp(self.ln_2(x)), "bsw")


class QwenViT(nnx.Module):
    """Images to `n_queries` features each."""

    def __init__(self, config: QwenViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        dtype = jnp.dtype(config.dtype)
        scale = config.width**-0.5
        patch = (config.patch_size, config.patch_size)
        self.conv1 = nnx.Conv(
            3, config.width, patch, strides=patch, padding="VALID", use_bias=False, dtype=dtype, rngs=rngs
        )
        table = (config.position_grid**2, config.width)
        self.positional_embedding = nnx.Param(scale * jax.random.normal(rngs.params(), table, jnp.float32))
        self.ln_pre = _norm(config, config.width, rngs)
        self.resblocks = stack_layers(lambda rngs: Block(config, rngs=rngs), config.layers, rngs)
        self.attn_pool = QwenResampler(config.pool, rngs=rngs)
        self.ln_post = _norm(config, config.output_dim, rngs)
        square = (config.output_dim, config.output_dim)
        self.proj = nnx.Param(config.output_dim**-0.5 * jax.random.normal(rngs.params(), square, jnp.float32))

    def embed(self, images: Float[Array, "b y x 3"]) -> Float[Array, "b s w"]:
        """Patches, row by row, plus the position table at this image's resolution, normalised."""
        x = self.conv1(images)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        positions = resize_position_table(self.positional_embedding[...], x.shape[1])
        return self.ln_pre(x + positions.astype(x.dtype))

    def transform(self, x: Float[Array, "b s w"]) -> Float[Array, "b s w"]:
        """All blocks."""

        def step(block: Block, x: Array, _: None) -> tuple[Array, None]:
            return block(x), None

        return scan_layers(self.resblocks, step, x, remat=self.config.remat)[0]

    def project(self, pooled: Float[Array, "b q d"]) -> Float[Array, "b q d"]:
        """The last norm and projection (`x @ proj`, not transposed)."""
        x = self.ln_post(pooled)
        return x @ self.proj[...].astype(x.dtype)

    def __call__(self, images: Float[Array, "b y x 3"]) -> Float[Array, "b q d"]:
        """Encodes normalised images (CLIP mean and standard deviation) into image_features [b n_queries output_dim].

        Raises ValueError if the images are not `image_size` square.
        """
        size = self.config.image_size
        if images.shape[1:] != (size, size, 3):
            raise ValueError(f"images of shape {list(images.shape)}; the encoder takes [b, {size}, {size}, 3]")
        return self.project(self.attn_pool(self.transform(self.embed(images))))
