"""The SD-XL UNet: predicts the noise in latents from a timestep, condition tokens and a pooled condition.

Podell et al. 2023 (arXiv 2307.01952); the published module is diffusers' `UNet2DConditionModel` with
`addition_embed_type="text_time"`. Two or more levels; attention stands where the block types say so.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped

from seedstory_jax.limits import AboveZero, Floating, OneOf, Positive, Remat
from seedstory_jax.models.layer_stack import REMAT_POLICIES, constrain
from seedstory_jax.models.sdxl.transformer_2d import Transformer2D, Transformer2DConfig
from seedstory_jax.models.sdxl.unet_blocks import Downsample, GroupNorm, ResnetBlock, Upsample, conv, linear

ATTENTION_DOWN, PLAIN_DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
ATTENTION_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"
LONGEST_PERIOD = 10_000.0  # of the sinusoids, in units of what they embed
TIME_EMBED_FACTOR = 4  # width of the time embedding, in channels of the first level


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the UNet under their published names; the defaults are SD-XL base's.

    Lists run over the levels from the finest; the way up reads them backwards.
    """

    in_channels: Positive = 4  # channels of the noisy latents
    out_channels: Positive = 4  # channels of the prediction
    down_block_types: tuple[str, ...] = (PLAIN_DOWN, ATTENTION_DOWN, ATTENTION_DOWN)  # levels with or without attention
    up_block_types: tuple[str, ...] = (ATTENTION_UP, ATTENTION_UP, PLAIN_UP)  # the same on the way up
    block_out_channels: tuple[Positive, ...] = (320, 640, 1280)  # channels of each level
    layers_per_block: Positive = 2  # resnets a level on the way down; one more on the way up
    norm_num_groups: Positive = 32  # groups of each group norm
    norm_eps: AboveZero = 1e-5  # added to variances in group norms
    cross_attention_dim: Positive = 2048  # width of the condition's tokens
    transformer_layers_per_block: tuple[Positive, ...] = (1, 2, 10)  # layers of each transformer of a level
    # Heads a level (published as `attention_head_dim`, which it is not).
    num_attention_heads: tuple[Positive, ...] = (5, 10, 20)
    addition_time_embed_dim: Positive = 256  # width of the embedding of each of the six time ids
    projection_class_embeddings_input_dim: Positive = 2816  # width of pooled condition and embedded time ids together
    attention: Annotated[str, OneOf(("xla", "cudnn"))] = "xla"  # "cudnn" is flash attention on NVIDIA, half precision
    remat: Remat = "none"  # what the backward pass recomputes: nothing, all, or "dots", all but the projections
    dtype: Floating = "float32"  # compute dtype

    def __post_init__(self):
        levels = len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types", "transformer_layers_per_block", "num_attention_heads"):
            if len(getattr(self, name)) != levels:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {levels} block_out_channels")
        for names, known in (
            (self.down_block_types, (ATTENTION_DOWN, PLAIN_DOWN)),
            (self.up_block_types, (ATTENTION_UP, PLAIN_UP)),
        ):
            for name in names:
                if name not in known:
                    raise ValueError(f"block type {name!r} is unknown; known: {', '.join(known)}")
        for channels, heads in zip(self.block_out_channels, self.num_attention_heads, strict=True):
            if channels % heads:
                raise ValueError(f"{channels} channels do not divide into {heads} attention heads")
        if self.remat not in REMAT_POLICIES:
            raise ValueError(f"remat {self.remat!r} is unknown; choose one of {', '.join(REMAT_POLICIES)}")

    @property
    def time_embed_dim(self) -> int:
        """Width of the embedding that every resnet adds."""
        return TIME_EMBED_FACTOR * self.block_out_channels[0]

    @property
    def pooled_dim(self) -> int:
        """Width of the pooled condition: what the six embedded time ids leave of the added embedding's input."""
        return self.projection_class_embeddings_input_dim - 6 * self.addition_time_embed_dim

    @property
    def downscale(self) -> int:
        """Latents' height and width must be multiples of this."""
        return 2 ** (len(self.block_out_channels) - 1)


def sinusoidal_embedding(values: Shaped[Array, "*n"], dim: int) -> Float[Array, "*n {dim}"]:
    """[cos | sin] of the values at dim/2 frequencies from 1 down to 1/10000, in float32."""
    half = dim // 2
    frequencies = jnp.exp(-math.log(LONGEST_PERIOD) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = values[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepEmbedding(nnx.Module):
    """Linear, silu, linear."""

    def __init__(self, in_features: int, out_features: int, *, dtype: str = "float32", rngs: nnx.Rngs):
        """Both layers give `out_features`."""
        self.linear_1 = linear(in_features, out_features, dtype=dtype, rngs=rngs)
        self.linear_2 = linear(out_features, out_features, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b e"]:
        """[b in_features] -> [b out_features]."""
        return self.linear_2(jax.nn.silu(self.linear_1(x)))


class DownBlock(nnx.Module):
    """Resnets, each followed by a transformer if the level has attention; then half the size, but at the last level."""

    def __init__(self, config: UNetConfig, level: int, *, rngs: nnx.Rngs):
        """`level` counts from the finest."""
        self.config = config
        channels = config.block_out_channels
        widths = [channels[max(level - 1, 0)]] + [channels[level]] * (config.layers_per_block - 1)
        self.resnets = nnx.List([_resnet(config, width, channels[level], rngs) for width in widths])
        attention = config.down_block_types[level] == ATTENTION_DOWN
        self.attentions = nnx.List([_transformer(config, level, rngs) for _ in widths if attention])
        last = level == len(channels) - 1
        self.downsampler = None if last else Downsample(channels[level], dtype=config.dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        embedding: Float[Array, "b e"],
        condition: Float[Array, "b s d"],
    ) -> tuple[Float[Array, "b hh ww o"], list[Array]]:
        """The block's output, and every image that the way up will read."""
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = _checkpointed(resnet, self.config.remat, x, embedding)
            if self.attentions:
                x = self.attentions[i](x, condition)
            skips.append(x)
        if self.downsampler is not None:
            x = self.downsampler(x)
            skips.append(x)
        return x, skips


class MidBlock(nnx.Module):
    """Resnet, transformer, resnet at the coarsest level."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        """Keeps the last level's channels."""
        self.config = config
        channels = config.block_out_channels[-1]
        self.resnets = nnx.List([_resnet(config, channels, channels, rngs) for _ in range(2)])
        self.attentions = nnx.List([_transformer(config, len(config.block_out_channels) - 1, rngs)])

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        embedding: Float[Array, "b e"],
        condition: Float[Array, "b s d"],
    ) -> Float[Array, "b h w c"]:
        """Same shape out as in."""
        x = _checkpointed(self.resnets[0], self.config.remat, x, embedding)
        x = self.attentions[0](x, condition)
        return _checkpointed(self.resnets[1], self.config.remat, x, embedding)


class UpBlock(nnx.Module):
    """Resnets that also read the images kept on the way down, newest first; then double the size, but at the end."""

    def __init__(self, config: UNetConfig, level: int, *, rngs: nnx.Rngs):
        """`level` counts from the finest, as on the way down, so the first UpBlock has the highest."""
        self.config = config
        channels = config.block_out_channels
        last_level, count = len(channels) - 1, config.layers_per_block + 1
        # What comes from below, then own images; beside each the kept image, the oldest of which is a level finer.
        own = [channels[min(level + 1, last_level)]] + [channels[level]] * (count - 1)
        kept = [channels[level]] * (count - 1) + [channels[max(level - 1, 0)]]
        self.resnets = nnx.List([_resnet(config, a + b, channels[level], rngs) for a, b in zip(own, kept, strict=True)])
        attention = config.up_block_types[last_level - level] == ATTENTION_UP
        self.attentions = nnx.List([_transformer(config, level, rngs) for _ in range(count) if attention])
        self.upsampler = Upsample(channels[level], dtype=config.dtype, rngs=rngs) if level > 0 else None

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        skips: list[Array],
        embedding: Float[Array, "b e"],
        condition: Float[Array, "b s d"],
    ) -> Float[Array, "b hh ww o"]:
        """Reads `skips`, one a resnet, oldest first."""
        for i, (resnet, skip) in enumerate(zip(self.resnets, reversed(skips), strict=True)):
            x = _checkpointed(resnet, self.config.remat, jnp.concatenate([x, skip], axis=-1), embedding)
            if self.attentions:
                x = self.attentions[i](x, condition)
        return x if self.upsampler is None else self.upsampler(x)


class UNet(nnx.Module):
    """The denoiser; float32 parameters, computing in `config.dtype`, float32 embeddings of time and output."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        """A fresh one predicts 0 and each of its blocks is its shortcut, which trains well from nothing."""
        self.config = config
        channels, dtype = config.block_out_channels, config.dtype
        levels = range(len(channels))
        self.time_embedding = TimestepEmbedding(channels[0], config.time_embed_dim, dtype=dtype, rngs=rngs)
        self.add_embedding = TimestepEmbedding(
            config.projection_class_embeddings_input_dim, config.time_embed_dim, dtype=dtype, rngs=rngs
        )
        self.conv_in = conv(config.in_channels, channels[0], dtype=dtype, rngs=rngs)
        self.down_blocks = nnx.List([DownBlock(config, level, rngs=rngs) for level in levels])
        self.mid_block = MidBlock(config, rngs=rngs)
        self.up_blocks = nnx.List([UpBlock(config, level, rngs=rngs) for level in reversed(levels)])
        self.conv_norm_out = GroupNorm(channels[0], config.norm_num_groups, config.norm_eps, rngs=rngs)
        self.conv_out = conv(channels[0], config.out_channels, dtype=dtype, zero=True, rngs=rngs)

    def __call__(
        self,
        latents: Float[Array, "b h w c"],
        timesteps: Shaped[Array, "b"],
        encoder_tokens: Float[Array, "b s d"],
        pooled: Float[Array, "b p"],
        time_ids: Shaped[Array, "b 6"],
    ) -> Float[Array, "b h w o"]:
        """Predicts from noisy latents (already scaled to the model's input) what the scheduler's prediction type says.

        Args:
            latents: noisy latents, NHWC; height and width multiples of `config.downscale`.
            timesteps: number of the noise level, 0 (clean) to 999.
            encoder_tokens: the condition that image positions attend to.
            pooled: the condition as one vector.
            time_ids: height, width, crop top, crop left, target height, target width in pixels.

        Returns:
            float32 [b h w out_channels].
        """
        _, height, width, _ = latents.shape
        if height % self.config.downscale or width % self.config.downscale:
            raise ValueError(f"UNet: {height} x {width} latents, must be multiples of {self.config.downscale}")
        dtype = jnp.dtype(self.config.dtype)
        embedding = self._embed(timesteps, pooled, time_ids)
        condition = encoder_tokens.astype(dtype)

        x = constrain(self.conv_in(constrain(latents, "ihwc").astype(dtype)), "ihwc")
        skips = [[x]]
        for block in self.down_blocks:
            x, kept = block(x, embedding, condition)
            skips.append(kept)
        x = self.mid_block(x, embedding, condition)
        stack = [image for kept in skips for image in kept]
        for block in self.up_blocks:
            count = len(block.resnets)
            x = block(x, stack[-count:], embedding, condition)
            stack = stack[:-count]
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x))).astype(jnp.float32)

    def _embed(self, timesteps: Array, pooled: Array, time_ids: Array) -> Float[Array, "b e"]:
        dtype = jnp.dtype(self.config.dtype)
        time_proj = sinusoidal_embedding(timesteps, self.config.block_out_channels[0])
        time_embedding = self.time_embedding(time_proj.astype(dtype))
        sizes = sinusoidal_embedding(time_ids, self.config.addition_time_embed_dim).reshape(time_ids.shape[0], -1)
        added = self.add_embedding(jnp.concatenate([pooled.astype(dtype), sizes.astype(dtype)], axis=-1))
        return time_embedding + added


def _resnet(config: UNetConfig, in_channels: int, out_channels: int, rngs: nnx.Rngs) -> ResnetBlock:
    return ResnetBlock(
        in_channels,
        out_channels,
        groups=config.norm_num_groups,
        eps=config.norm_eps,
        time_embed_dim=config.time_embed_dim,
        dtype=config.dtype,
        zero=True,
        rngs=rngs,
    )


def _transformer(config: UNetConfig, level: int, rngs: nnx.Rngs) -> Transformer2D:
    transformer = Transformer2DConfig(
        channels=config.block_out_channels[level],
        heads=config.num_attention_heads[level],
        layers=config.transformer_layers_per_block[level],
        cross_attention_dim=config.cross_attention_dim,
        norm_num_groups=config.norm_num_groups,
        attention=config.attention,
        remat=config.remat,
        dtype=config.dtype,
    )
    return Transformer2D(transformer, rngs=rngs)


def _checkpointed(module: nnx.Module, remat: str, *arguments: Array) -> Array:
    """The module's value; with remat its insides are recomputed in the backward pass."""
    if remat == "none":
        return module(*arguments)
    graph, state = nnx.split(module)

    def call(state: Any, *arguments: Array) -> Array:
        return nnx.merge(graph, state)(*arguments)

    return jax.checkpoint(call, policy=REMAT_POLICIES[remat])(state, *arguments)
