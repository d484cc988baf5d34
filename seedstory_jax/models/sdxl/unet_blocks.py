"""The convolutional parts that the SD-XL UNet and its VAE share: group norm, residual block, down- and upsampling.

Arrays are NHWC, kernels HWIO. Attribute names follow the published (diffusers) modules, so that checkpoints map by
their paths.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from seedstory_jax.models.dense import Linear
from seedstory_jax.models.layer_stack import constrain


def conv(
    in_channels: int,
    out_channels: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    dtype: str = "float32",
    zero: bool = False,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A square convolution padded so that stride 1 keeps the size; `zero` starts its kernel at 0."""
    pad = kernel // 2
    initialiser = {"kernel_init": nnx.initializers.zeros_init()} if zero else {}
    return nnx.Conv(
        in_channels,
        out_channels,
        (kernel, kernel),
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dtype=jnp.dtype(dtype),
        param_dtype=jnp.float32,
        rngs=rngs,
        **initialiser,
    )


def linear(
    in_features: int,
    out_features: int,
    *,
    use_bias: bool = True,
    dtype: str = "float32",
    zero: bool = False,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """A linear layer with float32 parameters that computes in `dtype`; `zero` starts it at 0."""
    initialiser = {"kernel_init": nnx.initializers.zeros_init()} if zero else {}
    return Linear(
        in_features,
        out_features,
        use_bias=use_bias,
        dtype=jnp.dtype(dtype),
        param_dtype=jnp.float32,
        rngs=rngs,
        **initialiser,
    )


class GroupNorm(nnx.Module):
    """Group normalisation of NHWC images, statistics in float32 by two passes, result in the input's dtype.

    Own code because it reduces the wide axes first and only then the few channels of a group, which leaves one fused
    multiply-add over the image: on a CPU several times faster than reshaping the image into groups.
    """

    def __init__(self, channels: int, groups: int, eps: float, *, rngs: nnx.Rngs):
        """`channels` must be a multiple of `groups`."""
        if channels % groups:
            raise ValueError(f"GroupNorm: {channels} channels do not divide into {groups} groups")
        self.groups = groups
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))

    def _group_mean(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 1 1 c"]:
        channel_mean = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        batch, channels = channel_mean.shape
        grouped = channel_mean.reshape(batch, self.groups, channels // self.groups).mean(-1)
        return jnp.repeat(grouped, channels // self.groups, axis=-1)[:, None, None, :]

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Normalise each group of channels over the whole image."""
        wide = x.astype(jnp.float32)
        centred = wide - self._group_mean(wide)
        factor = jax.lax.rsqrt(self._group_mean(jnp.square(centred)) + self.eps) * self.scale[...].astype(jnp.float32)
        return (centred * factor + self.bias[...].astype(jnp.float32)).astype(x.dtype)


class ResnetBlock(nnx.Module):
    """norm, silu, conv, (+ time embedding), norm, silu, conv, added to the (projected) input."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        eps: float,
        time_embed_dim: int | None = None,
        dtype: str = "float32",
        zero: bool = False,
        rngs: nnx.Rngs,
    ):
        """`time_embed_dim` None leaves the time embedding out (VAE); `zero` starts the block as its shortcut."""
        self.norm1 = GroupNorm(in_channels, groups, eps, rngs=rngs)
        self.conv1 = conv(in_channels, out_channels, dtype=dtype, rngs=rngs)
        if time_embed_dim is not None:
            self.time_emb_proj = linear(time_embed_dim, out_channels, dtype=dtype, rngs=rngs)
        self.norm2 = GroupNorm(out_channels, groups, eps, rngs=rngs)
        self.conv2 = conv(out_channels, out_channels, dtype=dtype, zero=zero, rngs=rngs)
        projected = in_channels != out_channels
        self.conv_shortcut = conv(in_channels, out_channels, kernel=1, dtype=dtype, rngs=rngs) if projected else None

    def __call__(
        self, x: Float[Array, "b h w c"], time_embedding: Float[Array, "b e"] | None = None
    ) -> Float[Array, "b h w o"]:
        """The block; `time_embedding` is the embedding before its silu."""
        hidden = constrain(self.conv1(jax.nn.silu(self.norm1(constrain(x, "ihwc")))), "ihwc")
        if time_embedding is not None:
            hidden = hidden + self.time_emb_proj(jax.nn.silu(time_embedding))[:, None, None, :]
        hidden = self.conv2(jax.nn.silu(self.norm2(hidden)))
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return constrain(shortcut + hidden, "ihwc")


class Downsample(nnx.Module):
    """Halve height and width by a strided convolution."""

    def __init__(self, channels: int, *, pad_end_only: bool = False, dtype: str = "float32", rngs: nnx.Rngs):
        """`pad_end_only`: pad right and bottom only, as the VAE's encoder does."""
        self.conv = conv(channels, channels, stride=2, dtype=dtype, rngs=rngs)
        if pad_end_only:
            self.conv.padding = ((0, 1), (0, 1))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b hh ww c"]:
        """[b h w c] -> [b h/2 w/2 c]."""
        return constrain(self.conv(x), "ihwc")


class Upsample(nnx.Module):
    """Double height and width by repeating every pixel, then convolve."""

    def __init__(self, channels: int, *, dtype: str = "float32", rngs: nnx.Rngs):
        """A 3x3 convolution that keeps the channels."""
        self.conv = conv(channels, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b hh ww c"]:
        """[b h w c] -> [b 2h 2w c]."""
        return constrain(self.conv(repeat_pixels(x)), "ihwc")


def repeat_pixels(x: Float[Array, "b h w c"]) -> Float[Array, "b hh ww c"]:
    """Nearest-neighbour upsampling by 2, as a broadcast (no gather)."""
    batch, height, width, channels = x.shape
    wide = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return wide.reshape(batch, 2 * height, 2 * width, channels)
