"""Stage 1, `detokenizer`: features of true pictures back to pixels (SEED-Story, section 3.2, "Stage 1")."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from seedstory_jax.config import Config
from seedstory_jax.distributed import on_this_process
from seedstory_jax.generation.render import RenderConfig, Renderer, zero_image_features
from seedstory_jax.models.parameters import Parameters
from seedstory_jax.models.sdxl.detokenizer import denoising_loss, training_time_ids
from seedstory_jax.models.sdxl.vae import sample_latents
from seedstory_jax.training.loop import ALL_ROWS, Metrics, Stage
from seedstory_jax.training.parts import build, trainable_names
from seedstory_jax.training.previews import write_grid
from seedstory_jax.training.workspace import Workspace

PREVIEW_PICTURES = 8


def detokenizer_stage(config: Config, workspace: Workspace, parameters: Parameters) -> Stage:
    """The UNet and perceiver on the frozen ViT's features and the frozen VAE's latents, both read from the cache."""
    stage = config.detokenizer
    features = workspace.features(parameters, workspace.crop_transform)
    moments = workspace.latents(parameters)
    size = config.model.image_size
    time_ids = training_time_ids(size, size, 0, 0, size)
    own = {name: value for name, value in parameters.items() if name.startswith("detokenizer.")}

    def batch(step: int, here: Any = ALL_ROWS) -> Mapping[str, np.ndarray]:
        chosen = np.sort(np.random.default_rng([config.seed, 1, step]).integers(len(features), size=stage.batch_size))
        chosen = chosen[here]
        return {
            "features": features[chosen],
            "moments": moments[chosen],
            "time_ids": np.tile(time_ids, (len(chosen), 1)),
        }

    shown = np.arange(PREVIEW_PICTURES) * (len(features) // PREVIEW_PICTURES)
    true = workspace.pictures(workspace.pixel_transform)[shown]

    def preview(trained: Parameters, step: int, folder: Path) -> None:
        drawn = draw_pictures(config, {**parameters, **trained}, features[shown])
        write_grid(folder, step, [true, drawn])

    return Stage(
        name="detokenizer",
        config=stage,
        optimizer=stage.optimizer,
        steps=stage.steps,
        parameters=own,
        trainable=trainable_names("detokenizer", stage.trainable),
        loss=partial(detokenizer_loss, config),
        batch=batch,
        batch_size=stage.batch_size,
        preview=preview,
    )


def detokenizer_loss(
    config: Config, parameters: Parameters, batch: Mapping[str, jax.Array], key: jax.Array
) -> tuple[jax.Array, Metrics]:
    """The stage's loss on features [b q d], the pictures' moments [b h w 2 c] and their time ids [b 6]."""
    noise_key, latent_key = jax.random.split(key)
    latents = draw_latents(config, batch["moments"], latent_key)
    detokenizer = build(config.model, "detokenizer", parameters)
    value = denoising_loss(
        detokenizer, latents, batch["features"], batch["time_ids"], noise_key, config.model.scheduler
    )
    return value, {"denoising_loss": value}


def draw_latents(config: Config, moments: jax.Array, key: jax.Array) -> jax.Array:
    """Latents as the UNet sees them, drawn anew from the cached moments [b h w 2 c]."""
    mean, logvar = jax.numpy.split(moments, 2, axis=-1)
    drawn = sample_latents(mean, logvar, jax.random.normal(key, mean.shape))
    return drawn * config.model.vae.scaling_factor


def draw_pictures(config: Config, parameters: Parameters, features: np.ndarray) -> np.ndarray:
    """uint8 [n h w 3] of features [n q d], as sampling draws them."""
    return make_renderer(config, parameters, batch_size=len(features)).draw(
        features, np.zeros(len(features), np.int32), np.arange(len(features))
    )


def make_renderer(config: Config, parameters: Parameters, *, batch_size: int | None = None) -> Renderer:
    """The renderer of a model's parts (vit, vae, detokenizer) with the config's sampling defaults."""
    model, sample = config.model, config.sample
    ours = {name: value for name, value in parameters.items() if not name.startswith("story.")}
    parameters = {name: on_this_process(value) for name, value in ours.items()}
    negative = None
    if sample.guidance != 1.0:
        vit = {name: value for name, value in parameters.items() if name.startswith("vit.")}
        negative = jax.jit(lambda p: zero_image_features(build(model, "vit", p), model.vit.image_size))(vit)
    frames = batch_size or sample.batch_size
    return Renderer(
        build(model, "detokenizer", parameters),
        build(model, "vae", parameters),
        negative,
        RenderConfig(
            height=model.image_size,
            width=model.image_size,
            steps=sample.steps,
            guidance=sample.guidance,
            batch_size=frames,
            decode_batch=frames if model.image_size <= 128 else 1,
            scheduler=model.scheduler,
        ),
        jax.local_devices(),
    )
