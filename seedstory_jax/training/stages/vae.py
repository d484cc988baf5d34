"""Stage `vae`, for models that begin with nothing: images to latents and back.

Users bring SD-XL's pretrained VAE. The toy's starts from the principal components of its images' patches.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seedstory_jax.checkpoints.parts import build
from seedstory_jax.config import Config
from seedstory_jax.data.pipeline import ALL_ROWS
from seedstory_jax.distributed import on_host
from seedstory_jax.features.run_data import RunData
from seedstory_jax.models.parameters import Parameters
from seedstory_jax.models.sdxl.linear_skip import to_patches
from seedstory_jax.models.sdxl.vae import sample_latents
from seedstory_jax.training.preview_images import PREVIEW_IMAGES, write_grid
from seedstory_jax.training.stage import Stage, StageSpec
from seedstory_jax.training.trainable import trainable_names

PATCH_SAMPLE = 1000  # pictures that the principal components are taken from
INITIAL_LOGVAR = -8.0  # of the latents: sharp at first, the KL term widens it


def vae_stage(config: Config, run_data: RunData, parameters: Parameters) -> Stage:
    """The VAE alone: mean squared error of rebuilt images plus a light KL term."""
    stage = config.vae
    transform = run_data.pixel_transform
    pictures = run_data.pictures(transform)
    if config.model.vae.linear_skip:
        parameters = parameters | principal_components(
            config, parameters, transform.normalise(pictures[:: max(1, len(pictures) // PATCH_SAMPLE)])
        )

    def loss(parameters, images, key):
        vae = build(config.model, "vae", parameters)
        mean, logvar = vae.encode(images)
        noise = jax.random.normal(key, mean.shape)
        rebuilt = jnp.mean(jnp.square(vae.decode(sample_latents(mean, logvar, noise)) - images))
        kl = 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)
        return rebuilt + stage.kl_weight * kl, {"reconstruction_loss": rebuilt, "kl": kl}

    def batch(step: int, here: Any = ALL_ROWS):
        chosen = chosen_images(config.seed, step, len(pictures), stage.batch_size)[here]
        return transform.normalise(pictures[chosen])

    @jax.jit
    def rebuild(parameters, images):
        vae = build(config.model, "vae", parameters)
        return vae.decode(vae.encode(images)[0])

    shown = transform.normalise(pictures[:: len(pictures) // PREVIEW_IMAGES][:PREVIEW_IMAGES])

    def preview(parameters: Parameters, step: int, folder: Path) -> None:
        write_grid(folder, step, [shown, np.asarray(rebuild(on_host(parameters), shown))])

    return Stage(
        name="vae",
        config=stage,
        parameters=parameters,
        trainable=trainable_names("vae", stage.trainable),
        loss=loss,
        batch=batch,
        batch_size=stage.batch_size,
        preview=preview,
    )


def principal_components(config: Config, parameters: Parameters, images: np.ndarray) -> Parameters:
    """The VAE's start: its linear path as the principal components of patches, its convolutions silent.

    Latents are scaled alike, to unit variance overall, so that an error in them counts as it does in pixels.
    """
    vae = config.model.vae
    patches = np.asarray(to_patches(jnp.asarray(images), vae.downscale)).reshape(-1, vae.downscale**2 * 3)
    mean = patches.mean(0)
    variance, axes = np.linalg.eigh(np.cov(patches - mean, rowvar=False))
    axes = axes[:, ::-1][:, : vae.latent_channels]
    scale = np.sqrt(variance[::-1][: vae.latent_channels].mean()).astype(np.float32)
    channels = vae.latent_channels
    return {
        "vae.skip_encode.kernel": jnp.asarray(axes / scale, jnp.float32),
        "vae.skip_encode.bias": jnp.asarray(-mean @ axes / scale, jnp.float32),
        "vae.skip_decode.kernel": jnp.asarray(axes.T * scale, jnp.float32),
        "vae.skip_decode.bias": jnp.asarray(mean, jnp.float32),
        "vae.decoder.conv_out.kernel": jnp.zeros_like(parameters["vae.decoder.conv_out.kernel"]),
        "vae.quant_conv.kernel": jnp.zeros_like(parameters["vae.quant_conv.kernel"]),
        "vae.quant_conv.bias": jnp.zeros(2 * channels).at[channels:].set(INITIAL_LOGVAR),
    }


def chosen_images(seed: int, step: int, count: int, size: int) -> np.ndarray:
    """Which of `count` images a step sees: a function of seed and step alone, sorted for the memory map."""
    return np.sort(np.random.default_rng([seed, step]).integers(count, size=size))


SPEC = StageSpec(
    name="vae",
    summary="Images to latents and back; only for models that begin with nothing.",
    trains="vae",
    make=vae_stage,
)
