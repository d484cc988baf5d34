"""The de-tokenizer: the SD-XL UNet conditioned on image features, and the loss it is trained with.

SEED-Story (arXiv 2407.08683) section 3.2; the published module is `SDXLAdapter` (src/models_ipa/adapter_modules.py).
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped

from seedstory_jax.models.sdxl.noise_schedule import SchedulerConfig, add_noise, training_target
from seedstory_jax.models.sdxl.perceiver import Perceiver, PerceiverConfig
from seedstory_jax.models.sdxl.unet import UNet, UNetConfig


@dataclass(frozen=True)
class DetokenizerConfig:
    """The two parts; the perceiver's outputs must have the sizes that the UNet reads."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    perceiver: PerceiverConfig = field(default_factory=PerceiverConfig)

    def __post_init__(self):
        unet, perceiver = self.unet, self.perceiver
        if perceiver.token_dim != unet.cross_attention_dim:
            raise ValueError(
                f"perceiver.output1_dim + output2_dim is {perceiver.token_dim}, "
                f"but unet.cross_attention_dim is {unet.cross_attention_dim}: they must be equal"
            )
        if perceiver.output2_dim != unet.pooled_dim:
            raise ValueError(
                f"perceiver.output2_dim is {perceiver.output2_dim}, but unet.projection_class_embeddings_input_dim"
                f" - 6 * addition_time_embed_dim is {unet.pooled_dim}: they must be equal"
            )


class Detokenizer(nnx.Module):
    """Features -> condition -> prediction of the noise in latents."""

    def __init__(self, config: DetokenizerConfig, *, rngs: nnx.Rngs):
        """`unet` and `perceiver` may also be called on their own, as sampling does."""
        self.config = config
        self.unet = UNet(config.unet, rngs=rngs)
        self.perceiver = Perceiver(config.perceiver, rngs=rngs)

    def __call__(
        self,
        latents: Float[Array, "b h w c"],
        timesteps: Shaped[Array, "b"],
        features: Float[Array, "b q f"],
        time_ids: Shaped[Array, "b 6"],
    ) -> Float[Array, "b h w c"]:
        """The UNet's prediction, float32, for noisy latents and the image features they should become."""
        tokens, pooled = self.perceiver(features)
        return self.unet(latents, timesteps, tokens, pooled, time_ids)


def draw_noise(
    key: Array, latents: Float[Array, "b h w c"], scheduler: SchedulerConfig
) -> tuple[Float[Array, "b h w c"], Int[Array, "b"]]:
    """Unit noise like the latents, and one training timestep a row, uniform."""
    noise_key, timestep_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, latents.shape, jnp.float32)
    return noise, jax.random.randint(timestep_key, latents.shape[:1], 0, scheduler.num_train_timesteps)


def denoising_error(prediction: Float[Array, "b h w c"], target: Float[Array, "b h w c"]) -> Float[Array, ""]:
    """Mean squared error in float32, over everything."""
    return jnp.mean(jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32)))


def denoising_loss(
    detokenizer: Detokenizer,
    latents: Float[Array, "b h w c"],
    features: Float[Array, "b q f"],
    time_ids: Shaped[Array, "b 6"],
    randomness: Shaped[Array, "..."] | tuple[Float[Array, "b h w c"], Int[Array, "b"]],
    scheduler: SchedulerConfig,
) -> Float[Array, ""]:
    """The de-tokenizer's training loss: noise in, what the scheduler's prediction type asks for out.

    Args:
        detokenizer: the model.
        latents: clean latents as the UNet sees them (`vae.scale`), float32.
        features: image features to condition on, true or regressed.
        time_ids: see `training_time_ids`.
        randomness: a key, or (noise, timesteps) drawn elsewhere.
        scheduler: noise schedule and prediction type.

    Returns:
        The mean over everything, a float32 scalar.
    """
    noise, timesteps = randomness if isinstance(randomness, tuple) else draw_noise(randomness, latents, scheduler)
    noisy = add_noise(scheduler, latents, noise, timesteps)
    target = training_target(scheduler, latents, noise, timesteps)
    return denoising_error(detokenizer(noisy, timesteps, features, time_ids), target)


def training_time_ids(
    height: np.ndarray | int,
    width: np.ndarray | int,
    crop_top: np.ndarray | int,
    crop_left: np.ndarray | int,
    target: np.ndarray | int,
) -> np.ndarray:
    """What SD-XL is told of a training picture: int32 [... 6] = height, width, crop top, crop left, target, target.

    All in pixels: the file's own size, the crop's offset after resizing, and the square that the model draws. Host
    code (numpy).
    """
    values = np.broadcast_arrays(height, width, crop_top, crop_left, target, target)
    return np.stack(values, axis=-1).astype(np.int32)
