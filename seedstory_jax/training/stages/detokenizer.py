"""Stage 1, `detokenizer`: features of true pictures back to pixels (SEED-Story, section 3.2, "Stage 1")."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seedstory_jax.checkpoints.parts import build
from seedstory_jax.config import Config
from seedstory_jax.data.pipeline import ALL_ROWS, NOTE
from seedstory_jax.errors import UserError
from seedstory_jax.features.cache import ImageEncodings
from seedstory_jax.features.run_data import RunData
from seedstory_jax.generation.build import render_images
from seedstory_jax.models.parameters import Parameters
from seedstory_jax.models.sdxl.detokenizer import denoising_loss, training_time_ids
from seedstory_jax.models.sdxl.vae import sample_latents
from seedstory_jax.training.flops import detokenizer_step_flops
from seedstory_jax.training.metrics import StepSize
from seedstory_jax.training.preview_images import PREVIEW_IMAGES, write_grid
from seedstory_jax.training.stage import Metrics, Stage, StageSpec
from seedstory_jax.training.trainable import trainable_names
from seedstory_jax.training.validation import HeldOut


def detokenizer_stage(config: Config, run_data: RunData, parameters: Parameters) -> Stage:
    """The UNet and perceiver on the frozen ViT's features and the frozen VAE's latents."""
    stage = config.detokenizer
    features = run_data.encodings("crop", parameters)
    moments = run_data.encodings("moments", parameters)
    carried = {"features": features, "moments": moments}
    own = {name: value for name, value in parameters.items() if name.startswith("detokenizer.")}

    def loss(parameters, batch, key):
        read = {name: rows.values(parameters, batch[name]) for name, rows in carried.items()}
        return detokenizer_loss(config, parameters, {**batch, **read}, key)

    count = int(run_data.train.offsets[-1])
    batch = PictureBatches(count, stage.batch_size, config.seed, carried, config.data.max_bad)
    shown = np.arange(PREVIEW_IMAGES) * (count // PREVIEW_IMAGES)

    def preview(trained: Parameters, step: int, folder: Path) -> None:
        seen = features.host_values(features.read(shown))
        drawn = render_images(config, {**parameters, **trained}, seen)
        write_grid(folder, step, [run_data.train.read(shown, run_data.pixel_transform), drawn])

    held_out = None
    if stage.eval_every:
        source = run_data.held_out
        unseen = {name: run_data.encodings(rows.encoder.kind, parameters, source) for name, rows in batch.rows.items()}
        unseen = dataclasses.replace(batch, count=int(source.offsets[-1]), rows=unseen)
        held_out = HeldOut(loss, unseen, stage.eval_batches)

    return Stage(
        name="detokenizer",
        config=stage,
        parameters={**own, **features.weights, **moments.weights},
        trainable=trainable_names("detokenizer", stage.trainable),
        loss=loss,
        batch=batch,
        batch_size=stage.batch_size,
        preview=preview,
        held_out=held_out,
        size=StepSize(images=stage.batch_size, flops=detokenizer_step_flops(config, stage)),
        max_bad=config.data.max_bad,
        facts={"base": config.model.base},
    )


def detokenizer_loss(
    config: Config, parameters: Parameters, batch: Mapping[str, jax.Array], key: jax.Array
) -> tuple[jax.Array, Metrics]:
    """The stage's loss on features [b q d] and the pictures' moments [b h w 2 c]."""
    noise_key, latent_key = jax.random.split(key)
    latents = draw_latents(config, batch["moments"], latent_key)
    detokenizer = build(config.model, "detokenizer", parameters)
    size = config.model.image_size
    time_ids = jnp.asarray(np.tile(training_time_ids(size, size, 0, 0, size), (len(latents), 1)))
    value = denoising_loss(detokenizer, latents, batch["features"], time_ids, noise_key, config.model.scheduler)
    return value, {"denoising_loss": value}


@dataclass(frozen=True)
class PictureBatches:
    """step -> what `rows` read of `size` of `count` pictures; one that cannot be read is replaced by another draw."""

    count: int
    size: int
    seed: int
    rows: Mapping[str, ImageEncodings]
    max_bad: int

    def __call__(self, step: int, here: Any = ALL_ROWS) -> dict[str, np.ndarray]:
        """The batch of one step, or those of its rows that are wanted."""
        chosen = np.sort(np.random.default_rng([self.seed, 1, step]).integers(self.count, size=self.size))[here]
        unreadable = np.full(len(chosen), "", NOTE)
        try:
            read = {name: rows.read(chosen) for name, rows in self.rows.items()}
        except (UserError, OSError):  # one of them: which?
            numbers = np.arange(self.size)[here].tolist()
            found = [self._readable(place, [self.seed, 2, step, row]) for place, row in zip(chosen.tolist(), numbers)]
            unreadable = np.array([note for _, note in found], NOTE)
            read = {name: np.stack([row[name] for row, _ in found]) for name in self.rows}
        return {**read, "unreadable": unreadable}

    def _readable(self, place: int, seed: list[int]) -> tuple[dict[str, np.ndarray], str]:
        rng, note = np.random.default_rng(seed), ""
        for _ in range(1 + self.max_bad):
            try:
                return {name: rows.read(np.asarray(place)) for name, rows in self.rows.items()}, note
            except (UserError, OSError) as error:
                note, place = str(error), int(rng.integers(self.count))
        raise UserError(f"no readable picture in {1 + self.max_bad} draws; the last: {note}")


def draw_latents(config: Config, moments: jax.Array, key: jax.Array) -> jax.Array:
    """Latents as the UNet sees them, drawn anew from the cached moments [b h w 2 c]."""
    mean, logvar = jax.numpy.split(moments, 2, axis=-1)
    drawn = sample_latents(mean, logvar, jax.random.normal(key, mean.shape))
    return drawn * config.model.vae.scaling_factor


SPEC = StageSpec(
    name="detokenizer",
    summary="Features of true images back to pixels (stage 1 of the paper).",
    trains="detokenizer",
    make=detokenizer_stage,
    encoders=("vit", "vae"),
)
