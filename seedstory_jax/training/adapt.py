"""Stage 3, `adapt`: the de-tokenizer learns to draw what the frozen MLLM regresses (SEED-Story, section 3.2)."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seedstory_jax.config import Config
from seedstory_jax.distributed import on_host
from seedstory_jax.models.parameters import Parameters
from seedstory_jax.models.sdxl.detokenizer import denoising_loss, training_time_ids
from seedstory_jax.training.detokenizer import PREVIEW_PICTURES, draw_latents, draw_pictures
from seedstory_jax.training.loop import ALL_ROWS, Metrics, Stage
from seedstory_jax.training.parts import build, trainable_names
from seedstory_jax.training.previews import write_grid
from seedstory_jax.training.story import losses_of, row_batches
from seedstory_jax.training.workspace import Workspace


def adapt_stage(config: Config, workspace: Workspace, parameters: Parameters) -> Stage:
    """Stage 1's loss, conditioned on what the story model predicts for the pictures of its rows."""
    stage = config.adapt
    features = workspace.features(parameters, workspace.crop_transform)
    moments = workspace.latents(parameters)
    count = stage.batch_size // stage.images_per_row
    rows = row_batches(config, workspace, features, seed=config.seed + 1, batch_size=count)
    own = {name: value for name, value in parameters.items() if name.startswith(("detokenizer.", "story."))}

    def batch(step: int, here: Any = ALL_ROWS) -> Mapping[str, np.ndarray]:
        fields = rows(step, here)
        return {**fields, "moments": moments[fields["picture"]]}

    @jax.jit
    def shown_features(parameters, batch):
        return regress(config, parameters, batch, None, jax.random.key(0))

    def preview(trained: Parameters, step: int, folder: Path) -> None:
        first = rows(0)
        regressed, chosen = on_host(shown_features({**own, **trained}, first))
        places = np.take_along_axis(first["picture"], chosen, axis=1).reshape(-1)[:PREVIEW_PICTURES]
        true = workspace.pictures(workspace.pixel_transform)[places]
        write_grid(folder, step, [true, draw_pictures(config, {**parameters, **trained}, regressed[: len(places)])])

    return Stage(
        name="adapt",
        config=stage,
        optimizer=stage.optimizer,
        steps=stage.steps,
        parameters=own,
        trainable=trainable_names("detokenizer", stage.trainable),
        loss=partial(adapt_loss, config),
        batch=batch,
        batch_size=count,
        preview=preview,
    )


def adapt_loss(
    config: Config, parameters: Parameters, batch: Mapping[str, jax.Array], key: jax.Array
) -> tuple[jax.Array, Metrics]:
    """The stage's loss on story rows with the moments [b i h w 2 c] of their pictures."""
    story_key, choice_key, noise_key, latent_key = jax.random.split(key, 4)
    regressed, chosen = regress(config, parameters, batch, story_key, choice_key)
    targets = jnp.take_along_axis(batch["moments"], chosen[..., None, None, None], axis=1)
    latents = draw_latents(config, targets.reshape(-1, *targets.shape[2:]), latent_key)
    detokenizer = build(config.model, "detokenizer", parameters)
    size = config.model.image_size
    time_ids = np.tile(training_time_ids(size, size, 0, 0, size), (len(latents), 1))
    value = denoising_loss(detokenizer, latents, regressed, jnp.asarray(time_ids), noise_key, config.model.scheduler)
    return value, {"denoising_loss": value}


def regress(
    config: Config,
    parameters: Parameters,
    batch: Mapping[str, jax.Array],
    story_key: jax.Array | None,
    choice_key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The frozen story model's features [b * n q d] of n of each row's target images, and which they are [b n]."""
    _, losses = losses_of(config, parameters, batch, story_key)
    lottery = jax.random.uniform(choice_key, losses.is_target.shape) + losses.is_target
    _, chosen = jax.lax.top_k(lottery, config.adapt.images_per_row)
    regressed = jnp.take_along_axis(losses.predicted_image_features, chosen[..., None, None], axis=1)
    return jax.lax.stop_gradient(regressed.reshape(-1, *regressed.shape[2:])), chosen
