"""Qwen-VL's resampler: a fixed number of learned queries read a grid of features by one cross-attention.

It stands three times in the house: as the ViT's attention pool, and before and after the LLM (SEED-Story, section 3.1;
published as `qwen_visual.Resampler`).

Axis letters: b batch, s key token, q query, n head, h head dim, d model.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from seedstory_jax.limits import AboveZero, Floating, Positive
from seedstory_jax.models.dense import Linear, dense
from seedstory_jax.models.layer_stack import constrain

CUBIC = -0.75  # torch's bicubic kernel; most image libraries (jax.image too) take -0.5


@dataclass(frozen=True)
class ResamplerConfig:
    """`grid_size ** 2` queries of `embed_dim`, reading features of `kv_dim`; the defaults are the input resampler."""

    grid_size: Positive = 8  # side of the grid of queries
    embed_dim: Positive = 4096  # width of the queries, which come out
    num_heads: Positive = 32  # attention heads
    kv_dim: Positive = 4096  # width of what is read
    layer_norm_eps: AboveZero = 1e-5  # added to variances in norms
    dtype: Floating = "float32"  # compute dtype

    def __post_init__(self):
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is no multiple of num_heads {self.num_heads}")
        if self.embed_dim % 4:
            raise ValueError(f"embed_dim {self.embed_dim} is no multiple of 4, which 2-d positions need")


class FixedParam(nnx.Param):
    """Stored in checkpoints like any parameter, and never trained."""


def _cubic_matrix(source: int, target: int) -> np.ndarray:
    """Weights [target, source] of torch's bicubic along one axis: half-pixel centres, edges repeated, no antialias."""
    # In float32, as torch does: its rounding of the centres shows in the sixth digit.
    centre = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * np.float32(source / target) - np.float32(0.5)
    first = np.floor(centre).astype(int)
    weights = np.zeros((target, source))
    for tap in range(-1, 3):
        x = np.abs(centre - np.floor(centre) - np.float32(tap))
        near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
        far = ((CUBIC * x - 5 * CUBIC) * x + 8 * CUBIC) * x - 4 * CUBIC
        np.add.at(weights, (np.arange(target), np.clip(first + tap, 0, source - 1)), np.where(x <= 1, near, far))
    return weights.astype(np.float32)


def _side(length: int) -> int:
    side = int(length**0.5 + 0.5)
    if side * side != length:
        raise ValueError(f"{length} positions are no square grid; the nearest one is {side} x {side} = {side * side}")
    return side


def resize_position_table(table: Float[Array, "n d"], new_len: int) -> Float[Array, "new_len d"]:
    """A square grid's position table resized to `new_len` positions as `torch.nn.functional.interpolate` does.

    Bicubic with a = -0.75, align_corners False and no antialias, also where the table shrinks. A table of the right
    length comes back untouched. Raises ValueError if either length is no square.
    """
    source, target = _side(table.shape[0]), _side(new_len)
    if source == target:
        return table
    weights = jnp.asarray(_cubic_matrix(source, target))
    grid = table.astype(jnp.float32).reshape(source, source, -1)
    resized = jnp.einsum("Yy,Xx,yxd->YXd", weights, weights, grid, precision=jax.lax.Precision.HIGHEST)
    return resized.reshape(new_len, -1).astype(table.dtype)


def sincos_2d(dim: int, grid: int) -> Float[Array, "n d"]:
    """Sine-cosine positions of a `grid` x `grid` square, row by row (MAE's).

    The first half of the channels encodes the column, the second half the row; in each half all sines precede all
    cosines, at frequencies 10000 ** -(i / (dim / 4)).
    """
    frequency = 10000.0 ** -(np.arange(dim // 4) / (dim / 4))
    angle = np.arange(grid)[:, None] * frequency
    axis = np.concatenate([np.sin(angle), np.cos(angle)], -1)  # [grid dim/2]
    columns = np.broadcast_to(axis[None, :], (grid, grid, dim // 2))
    rows = np.broadcast_to(axis[:, None], (grid, grid, dim // 2))
    return jnp.asarray(np.concatenate([columns, rows], -1).reshape(grid * grid, dim), jnp.float32)


class CrossAttention(nnx.Module):
    """torch's `MultiheadAttention`: the rows of `in_proj_weight` [3d d] are all of q, all of k, all of v."""

    def __init__(self, dim: int, num_heads: int, *, dtype: str, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.dtype = jnp.dtype(dtype)
        self.in_proj_weight = nnx.Param(nnx.initializers.xavier_uniform()(rngs.params(), (3 * dim, dim), jnp.float32))
        self.in_proj_bias = nnx.Param(jnp.zeros(3 * dim, jnp.float32))
        self.out_proj = Linear(
            dim, dim, kernel_init=nnx.initializers.truncated_normal(0.02), dtype=self.dtype, rngs=rngs
        )

    def __call__(
        self, queries: Float[Array, "b q d"], keys: Float[Array, "b s d"], values: Float[Array, "b s d"]
    ) -> Float[Array, "b q d"]:
        """Every query reads every key; logits and softmax in float32."""
        weight = jnp.split(self.in_proj_weight[...].astype(self.dtype), 3)
        bias = jnp.split(self.in_proj_bias[...].astype(self.dtype), 3)
        q, k, v = (
            self._heads(dense(x.astype(self.dtype), w.T) + b)
            for x, w, b in zip((queries, keys, values), weight, bias, strict=True)
        )
        x = jax.nn.dot_product_attention(q, k, v)  # b q n h
        return self.out_proj(x.reshape(*x.shape[:2], -1))

    def _heads(self, x: Float[Array, "b s d"]) -> Float[Array, "b s n h"]:
        return x.reshape(*x.shape[:2], self.num_heads, -1)


class QwenResampler(nnx.Module):
    """Learned queries on a square grid read any square number of tokens. No residual, no MLP, no output norm."""

    def __init__(self, config: ResamplerConfig, *, rngs: nnx.Rngs):
        self.config = config
        queries, dim, dtype = config.grid_size**2, config.embed_dim, jnp.dtype(config.dtype)
        small = nnx.initializers.truncated_normal(0.02)
        self.query = nnx.Param(small(rngs.params(), (queries, dim), jnp.float32))
        self.pos_embed = FixedParam(sincos_2d(dim, config.grid_size))
        if config.kv_dim != dim:
            self.kv_proj = Linear(config.kv_dim, dim, use_bias=False, kernel_init=small, dtype=dtype, rngs=rngs)
        self.ln_q = self._norm(rngs)
        self.ln_kv = self._norm(rngs)
        self.attn = CrossAttention(dim, config.num_heads, dtype=config.dtype, rngs=rngs)

    def _norm(self, rngs: nnx.Rngs) -> nnx.LayerNorm:
        config = self.config
        return nnx.LayerNorm(
            config.embed_dim,
            epsilon=config.layer_norm_eps,
            use_fast_variance=False,
            dtype=jnp.dtype(config.dtype),
            rngs=rngs,
        )

    def normed_keys(self, x: Float[Array, "b s kv"]) -> Float[Array, "b s d"]:
        """The tokens, projected if they have another width, then normalised."""
        if self.config.kv_dim != self.config.embed_dim:
            x = self.kv_proj(x)
        return self.ln_kv(x)

    def normed_queries(self) -> Float[Array, "q d"]:
        """The learned queries after their norm, without positions."""
        return self.ln_q(self.query[...])

    def key_positions(self, length: int) -> Float[Array, "s d"]:
        """The module's own table at the keys' resolution (not a fresh sine-cosine table of that size)."""
        return resize_position_table(jax.lax.stop_gradient(self.pos_embed[...]), length)

    def __call__(self, x: Float[Array, "b s kv"]) -> Float[Array, "b q d"]:
        """Reads `s` tokens (a square number) into `grid_size ** 2`; keys carry positions, values do not.

        Raises ValueError if the tokens have another width than `kv_dim`, or no square number.
        """
        if x.shape[-1] != self.config.kv_dim:
            raise ValueError(f"features of width {x.shape[-1]} for a resampler with kv_dim {self.config.kv_dim}")
        values = self.normed_keys(constrain(x, "isd"))
        keys = values + self.key_positions(x.shape[1]).astype(values.dtype)
        positions = jax.lax.stop_gradient(self.pos_embed[...])
        queries = self.normed_queries() + positions.astype(values.dtype)
        queries = jnp.broadcast_to(queries, (x.shape[0], *queries.shape))
        return self.attn(queries, keys, values)
