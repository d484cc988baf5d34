"""The VAE with a linear path beside its convolutions, which a small one trained from nothing learns sooner with."""

from flax import nnx
from jaxtyping import Array, Float

from seedstory_jax.models.sdxl.unet_blocks import linear
from seedstory_jax.models.sdxl.vae import VAE, VAEConfig


class LinearSkipVAE(VAE):
    """`VAE` plus, in both directions, one linear map between a latent and its patch of pixels; SD-XL has none."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        """Parameters in float32."""
        super().__init__(config, rngs=rngs)
        pixels = config.downscale**2 * config.in_channels
        self.skip_encode = linear(pixels, config.latent_channels, dtype=config.dtype, rngs=rngs)
        self.skip_decode = linear(config.latent_channels, pixels, dtype=config.dtype, rngs=rngs)

    def encode(self, images: Float[Array, "b h w c"]) -> tuple[Float[Array, "b hl wl l"], Float[Array, "b hl wl l"]]:
        """As `VAE.encode`, the linear path added to the mean."""
        mean, logvar = super().encode(images)
        return mean + self.skip_encode(to_patches(images, self.config.downscale)), logvar

    def decode(self, latents: Float[Array, "b hl wl l"]) -> Float[Array, "b h w o"]:
        """As `VAE.decode`, the linear path added."""
        return super().decode(latents) + from_patches(self.skip_decode(latents), self.config.downscale)


def to_patches(images: Float[Array, "b h w c"], side: int) -> Float[Array, "b hl wl p"]:
    """Square patches of `side` pixels as vectors: p = side * side * c."""
    batch, height, width, channels = images.shape
    x = images.reshape(batch, height // side, side, width // side, side, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // side, width // side, -1)


def from_patches(patches: Float[Array, "b hl wl p"], side: int) -> Float[Array, "b h w c"]:
    """The inverse of `to_patches`."""
    batch, rows, columns, _ = patches.shape
    x = patches.reshape(batch, rows, columns, side, side, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * side, columns * side, -1)
