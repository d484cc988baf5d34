"""The SD-XL variational auto-encoder: pixels to latents of an eighth of their size, and back.

Rombach et al. 2022 (arXiv 2112.10752); the published module is diffusers' `AutoencoderKL`. Everything runs in float32
by default: the released pipeline lifts its VAE to float32 because half precision overflows in it.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from seedstory_jax.limits import AboveZero, Floating, Positive
from seedstory_jax.models.sdxl.unet_blocks import Downsample, GroupNorm, ResnetBlock, Upsample, conv, linear

NORM_EPS = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the auto-encoder under their published names; the defaults are SD-XL's."""

    in_channels: Positive = 3  # channels of the pictures that are encoded
    out_channels: Positive = 3  # channels of the pictures that are decoded
    latent_channels: Positive = 4  # channels of the latents
    block_out_channels: tuple[Positive, ...] = (128, 256, 512, 512)  # channels of each level, the finest first
    layers_per_block: Positive = 2  # resnets a level on the way down; one more on the way up
    norm_num_groups: Positive = 32  # groups of each group norm
    scaling_factor: AboveZero = 0.13025  # latents are multiplied by it, which brings them near unit variance
    linear_skip: bool = False  # of small VAEs (`linear_skip.LinearSkipVAE`); SD-XL has none
    dtype: Floating = "float32"  # compute dtype

    @property
    def downscale(self) -> int:
        """Pixels per latent along one axis."""
        return 2 ** (len(self.block_out_channels) - 1)


class MidAttention(nnx.Module):
    """One head over all positions, with biases and a residual."""

    def __init__(self, channels: int, config: VAEConfig, *, rngs: nnx.Rngs):
        """All four projections keep the channels."""
        self.group_norm = GroupNorm(channels, config.norm_num_groups, NORM_EPS, rngs=rngs)
        self.to_q = linear(channels, channels, dtype=config.dtype, rngs=rngs)
        self.to_k = linear(channels, channels, dtype=config.dtype, rngs=rngs)
        self.to_v = linear(channels, channels, dtype=config.dtype, rngs=rngs)
        self.to_out = linear(channels, channels, dtype=config.dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Attend over h * w positions."""
        batch, height, width, channels = x.shape
        tokens = self.group_norm(x).reshape(batch, height * width, 1, channels)
        mixed = jax.nn.dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x + self.to_out(mixed).reshape(x.shape)


class MidBlock(nnx.Module):
    """Resnet, attention, resnet at the smallest size."""

    def __init__(self, channels: int, config: VAEConfig, *, rngs: nnx.Rngs):
        """Keeps the channels."""
        self.resnets = nnx.List([_resnet(channels, channels, config, rngs) for _ in range(2)])
        self.attentions = nnx.List([MidAttention(channels, config, rngs=rngs)])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Same shape out as in."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class DownBlock(nnx.Module):
    """Resnets at one size, then halve it (but for the last level)."""

    def __init__(self, in_channels: int, out_channels: int, config: VAEConfig, *, last: bool, rngs: nnx.Rngs):
        """`last` leaves the downsampling out."""
        widths = [in_channels] + [out_channels] * (config.layers_per_block - 1)
        self.resnets = nnx.List([_resnet(width, out_channels, config, rngs) for width in widths])
        down = None if last else Downsample(out_channels, pad_end_only=True, dtype=config.dtype, rngs=rngs)
        self.downsampler = down

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b hh ww o"]:
        """[b h w c] -> [b h/2 w/2 o], or the same size at the last level."""
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.downsampler is None else self.downsampler(x)


class UpBlock(nnx.Module):
    """Resnets at one size (one more than on the way down), then double it (but for the last level)."""

    def __init__(self, in_channels: int, out_channels: int, config: VAEConfig, *, last: bool, rngs: nnx.Rngs):
        """`last` leaves the upsampling out."""
        widths = [in_channels] + [out_channels] * config.layers_per_block
        self.resnets = nnx.List([_resnet(width, out_channels, config, rngs) for width in widths])
        self.upsampler = None if last else Upsample(out_channels, dtype=config.dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b hh ww o"]:
        """[b h w c] -> [b 2h 2w o], or the same size at the last level."""
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.upsampler is None else self.upsampler(x)


class Encoder(nnx.Module):
    """Images -> features of the latents' size, twice as many channels as latents."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        """One DownBlock a level."""
        channels = config.block_out_channels
        levels = len(channels)
        self.conv_in = conv(config.in_channels, channels[0], dtype=config.dtype, rngs=rngs)
        self.down_blocks = nnx.List(
            [
                DownBlock(channels[max(i - 1, 0)], channels[i], config, last=i == levels - 1, rngs=rngs)
                for i in range(levels)
            ]
        )
        self.mid_block = MidBlock(channels[-1], config, rngs=rngs)
        self.conv_norm_out = GroupNorm(channels[-1], config.norm_num_groups, NORM_EPS, rngs=rngs)
        self.conv_out = conv(channels[-1], 2 * config.latent_channels, dtype=config.dtype, rngs=rngs)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b hl wl m"]:
        """[b h w c] in [-1, 1] -> [b h/8 w/8 2 latent_channels]."""
        x = self.conv_in(images)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Decoder(nnx.Module):
    """Latents -> images."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        """One UpBlock a level, from the deepest."""
        channels = config.block_out_channels[::-1]
        levels = len(channels)
        self.conv_in = conv(config.latent_channels, channels[0], dtype=config.dtype, rngs=rngs)
        self.mid_block = MidBlock(channels[0], config, rngs=rngs)
        self.up_blocks = nnx.List(
            [
                UpBlock(channels[max(i - 1, 0)], channels[i], config, last=i == levels - 1, rngs=rngs)
                for i in range(levels)
            ]
        )
        self.conv_norm_out = GroupNorm(channels[-1], config.norm_num_groups, NORM_EPS, rngs=rngs)
        self.conv_out = conv(channels[-1], config.out_channels, dtype=config.dtype, rngs=rngs)

    def __call__(self, latents: Float[Array, "b hl wl c"]) -> Float[Array, "b h w o"]:
        """[b h/8 w/8 latent_channels] -> [b h w 3], roughly in [-1, 1]."""
        x = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class VAE(nnx.Module):
    """The auto-encoder; `scale` and `unscale` go between its latents and those the UNet works on."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        """Parameters in float32, convolutions in `config.dtype`."""
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        moments, latents = 2 * config.latent_channels, config.latent_channels
        self.quant_conv = conv(moments, moments, kernel=1, dtype=config.dtype, rngs=rngs)
        self.post_quant_conv = conv(latents, latents, kernel=1, dtype=config.dtype, rngs=rngs)

    def encode(self, images: Float[Array, "b h w c"]) -> tuple[Float[Array, "b hl wl l"], Float[Array, "b hl wl l"]]:
        """Images in [-1, 1] -> mean and log variance of their (unscaled) latents.

        Raises ValueError if height or width is no multiple of `config.downscale`.
        """
        _, height, width, _ = images.shape
        if height % self.config.downscale or width % self.config.downscale:
            raise ValueError(f"VAE.encode: {height} x {width} pixels, must be multiples of {self.config.downscale}")
        mean, logvar = jnp.split(self.quant_conv(self.encoder(images)), 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)

    def decode(self, latents: Float[Array, "b hl wl l"]) -> Float[Array, "b h w o"]:
        """Unscaled latents -> images, roughly in [-1, 1] (not clamped)."""
        return self.decoder(self.post_quant_conv(latents))

    def scale(self, latents: Float[Array, "b hl wl l"]) -> Float[Array, "b hl wl l"]:
        """The latents as the UNet sees them, of about unit variance."""
        return latents * self.config.scaling_factor

    def unscale(self, latents: Float[Array, "b hl wl l"]) -> Float[Array, "b hl wl l"]:
        """The inverse of `scale`."""
        return latents / self.config.scaling_factor


def sample_latents(
    mean: Float[Array, "b hl wl l"], logvar: Float[Array, "b hl wl l"], noise: Float[Array, "b hl wl l"]
) -> Float[Array, "b hl wl l"]:
    """A draw from the encoder's normal distribution: mean + std * noise."""
    return mean + jnp.exp(0.5 * logvar) * noise


def decode_in_tiles(vae: VAE, latents: Float[Array, "b hl wl l"], tile: int, overlap: int) -> Float[Array, "b h w o"]:
    """Decodes overlapping square tiles one after another and blends them: memory as for one tile.

    Args:
        vae: the auto-encoder.
        latents: unscaled.
        tile: side of a tile in latents; a picture that fits in one is decoded whole, exactly.
        overlap: latents that neighbouring tiles share, over which one fades into the next.

    Returns:
        Images, close to `vae.decode(latents)`: group norms and attention see one tile, not the picture.
    """
    batch, height, width, _ = latents.shape
    if height <= tile and width <= tile:
        return vae.decode(latents)
    if not 0 < overlap < tile:
        raise ValueError(f"tiles of {tile} latents cannot overlap by {overlap}; must be 1 to {tile - 1}")
    rows, columns = min(tile, height), min(tile, width)
    origins = jnp.asarray(
        [(y, x) for y in _tile_origins(height, rows, overlap) for x in _tile_origins(width, columns, overlap)]
    )
    factor, channels = vae.config.downscale, vae.config.out_channels
    fade = _fade(rows * factor, overlap * factor)[:, None] * _fade(columns * factor, overlap * factor)[None, :]
    weight = fade[None, :, :, None]

    def add(canvas: Array, value: Array, y: Array, x: Array) -> Array:
        start = (0, y * factor, x * factor, 0)
        old = jax.lax.dynamic_slice(canvas, start, value.shape)
        return jax.lax.dynamic_update_slice(canvas, old + value, start)

    def step(carry: tuple[Array, Array], origin: Array) -> tuple[tuple[Array, Array], None]:
        images, weights = carry
        y, x = origin
        part = jax.lax.dynamic_slice(latents, (0, y, x, 0), (batch, rows, columns, latents.shape[3]))
        images = add(images, vae.decode(part).astype(jnp.float32) * weight, y, x)
        return (images, add(weights, weight, y, x)), None

    size = (height * factor, width * factor)
    blank = jnp.zeros((batch, *size, channels), jnp.float32), jnp.zeros((1, *size, 1), jnp.float32)
    (images, weights), _ = jax.lax.scan(step, blank, origins)
    return images / weights


def _tile_origins(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin: every tile - overlap, the last one moved back to end with the picture."""
    return [min(start, length - tile) for start in range(0, max(length - overlap, 1), tile - overlap)]


def _fade(length: int, overlap: int) -> Float[Array, "{length}"]:
    """1 inside, falling linearly towards both ends over `overlap` pixels, never 0."""
    from_start = (jnp.arange(length) + 0.5) / overlap
    return jnp.minimum(jnp.minimum(from_start, from_start[::-1]), 1.0)


def _resnet(in_channels: int, out_channels: int, config: VAEConfig, rngs: nnx.Rngs) -> ResnetBlock:
    groups, dtype = config.norm_num_groups, config.dtype
    return ResnetBlock(in_channels, out_channels, groups=groups, eps=NORM_EPS, dtype=dtype, rngs=rngs)
