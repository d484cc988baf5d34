"""Stage 3, `adapt`: the de-tokenizer learns to draw what the frozen MLLM regresses (SEED-Story, section 3.2)."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from seedstory_jax.checkpoints.parts import build
from seedstory_jax.config import Config
from seedstory_jax.data.pipeline import HOST_FIELDS
from seedstory_jax.distributed import on_host
from seedstory_jax.features.run_data import RunData
from seedstory_jax.generation.build import render_images
from seedstory_jax.models.parameters import Parameters
from seedstory_jax.models.sdxl.detokenizer import denoising_loss, training_time_ids
from seedstory_jax.training.batches import ExampleBatches, Places
from seedstory_jax.training.flops import adapt_step_flops
from seedstory_jax.training.metrics import StepSize
from seedstory_jax.training.preview_images import PREVIEW_IMAGES, write_grid
from seedstory_jax.training.stage import Metrics, Stage, StageSpec
from seedstory_jax.training.stages.detokenizer import draw_latents
from seedstory_jax.training.stages.story import losses_of
from seedstory_jax.training.trainable import trainable_names
from seedstory_jax.training.validation import HeldOut


def adapt_stage(config: Config, run_data: RunData, parameters: Parameters) -> Stage:
    """Stage 1's loss, conditioned on what the story model predicts for the pictures of its rows."""
    stage = config.adapt
    features = run_data.encodings("crop", parameters)
    moments = run_data.encodings("moments", parameters)
    count = stage.batch_size // stage.images_per_row
    carried = {"image_features": features, "moments": moments, "picture": Places()}
    rows = ExampleBatches(config, run_data.tokenizer, run_data.train, carried, seed=config.seed + 1, batch_size=count)
    own = {name: value for name, value in parameters.items() if name.startswith(("detokenizer.", "story."))}

    def loss(parameters, batch, key):
        read = features.values(parameters, batch["image_features"])
        return adapt_loss(
            config, parameters, {**batch, "image_features": read}, key, partial(moments.values, parameters)
        )

    @jax.jit
    def shown_features(parameters, batch):
        return regress(config, parameters, batch, None, jax.random.key(0))

    def preview(trained: Parameters, step: int, folder: Path) -> None:
        first = rows(0)
        fields = {name: value for name, value in first.items() if name not in (*HOST_FIELDS, "moments")}
        fields["image_features"] = features.host_values(fields["image_features"])
        regressed, chosen = on_host(shown_features({**own, **trained}, fields))
        places = np.take_along_axis(first["picture"], chosen, axis=1).reshape(-1)[:PREVIEW_IMAGES]
        true = run_data.train.read(places, run_data.pixel_transform)
        write_grid(folder, step, [true, render_images(config, {**parameters, **trained}, regressed[: len(places)])])

    held_out = None
    if stage.eval_every:
        source = run_data.held_out
        unseen = {
            "image_features": run_data.encodings("crop", parameters, source),
            "moments": run_data.encodings("moments", parameters, source),
        }
        unseen = ExampleBatches(config, run_data.tokenizer, source, unseen, seed=config.seed + 1, batch_size=count)
        held_out = HeldOut(loss, unseen, stage.eval_batches)

    return Stage(
        name="adapt",
        config=stage,
        parameters={**own, **features.weights, **moments.weights},
        trainable=trainable_names("detokenizer", stage.trainable),
        loss=loss,
        batch=rows,
        batch_size=count,
        preview=preview,
        held_out=held_out,
        size=StepSize(images=stage.batch_size, flops=adapt_step_flops(config)),
        max_bad=config.data.max_bad,
        facts={"base": config.model.base},
    )


def adapt_loss(
    config: Config,
    parameters: Parameters,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    moments: Callable[[jax.Array], jax.Array] = lambda carried: carried.astype(jnp.float32),
) -> tuple[jax.Array, Metrics]:
    """The stage's loss on story rows, and what `moments` makes [n h w 2 c] of their pictures' field of that name."""
    story_key, choice_key, noise_key, latent_key = jax.random.split(key, 4)
    regressed, chosen = regress(config, parameters, batch, story_key, choice_key)
    carried = batch["moments"]
    targets = jnp.take_along_axis(carried, chosen.reshape(*chosen.shape, *(1,) * (carried.ndim - 2)), axis=1)
    latents = draw_latents(config, moments(targets.reshape(-1, *targets.shape[2:])), latent_key)
    detokenizer = build(config.model, "detokenizer", parameters)
    size = config.model.image_size
    time_ids = jnp.asarray(np.tile(training_time_ids(size, size, 0, 0, size), (len(latents), 1)))
    value = denoising_loss(detokenizer, latents, regressed, time_ids, noise_key, config.model.scheduler)
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


SPEC = StageSpec(
    name="adapt",
    summary="The de-tokenizer on what the frozen story model predicts (stage 3 of the paper).",
    trains="detokenizer",
    make=adapt_stage,
    reads=("story",),
    encoders=("vit", "vae"),
)
