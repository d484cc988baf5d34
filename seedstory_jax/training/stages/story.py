"""Stage 2, `story`: the MLLM learns the next caption and the next picture's features (SEED-Story, section 3.2)."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from seedstory_jax.checkpoints.parts import build
from seedstory_jax.config import Config
from seedstory_jax.data.sources import JoinedSource
from seedstory_jax.features.cache import ImageEncodings
from seedstory_jax.features.run_data import RunData
from seedstory_jax.models.parameters import Parameters
from seedstory_jax.models.story_mllm import StoryBatch, StoryLosses, story_losses
from seedstory_jax.training.batches import ExampleBatches
from seedstory_jax.training.flops import story_step_flops
from seedstory_jax.training.metrics import StepSize
from seedstory_jax.training.stage import Metrics, Stage, StageSpec
from seedstory_jax.training.stages.story_preview import story_preview
from seedstory_jax.training.trainable import trainable_names
from seedstory_jax.training.validation import HeldOut

FIELDS = tuple(field.name for field in dataclasses.fields(StoryBatch))


def story_stage(config: Config, run_data: RunData, parameters: Parameters) -> Stage:
    """The story model on the frozen ViT's features."""
    features = run_data.encodings("squash", parameters)
    size = config.story.batch_size
    own = {name: value for name, value in parameters.items() if name.startswith("story.")}

    def rows_of(source: JoinedSource, features: ImageEncodings) -> ExampleBatches:
        return ExampleBatches(
            config,
            run_data.tokenizer,
            source,
            {"image_features": features},
            seed=config.seed,
            batch_size=size,
            packed=config.story.pack,
        )

    batches = rows_of(run_data.train, features)
    print(f"story: {batches.lengths()}", flush=True)

    def loss(parameters, batch, key):
        read = features.values(parameters, batch["image_features"])
        return story_loss(config, parameters, {**batch, "image_features": read}, key)

    held_out = None
    if config.story.eval_every:
        unseen = rows_of(run_data.held_out, run_data.encodings("squash", parameters, run_data.held_out))

        def without_dropout(parameters, batch, _):
            return loss(parameters, batch, None)

        held_out = HeldOut(without_dropout, unseen, config.story.eval_batches)

    preview = None
    if config.story.preview_every:  # it takes generating and rendering, so only if asked for
        preview = story_preview(config, run_data, features)

    layout = batches.rows.config
    return Stage(
        name="story",
        config=config.story,
        parameters={**own, **features.weights},
        trainable=trainable_names("story", config.story.trainable),
        loss=loss,
        batch=batches,
        batch_size=size,
        preview=preview,
        held_out=held_out,
        size=StepSize(
            images=size * layout.max_images,
            tokens=size * layout.max_tokens,
            flops=story_step_flops(config, size, layout.max_images),
        ),
        max_bad=config.data.max_bad,
        facts={"base": config.model.base},
    )


def story_loss(
    config: Config, parameters: Parameters, batch: Mapping[str, jax.Array], key: jax.Array | None
) -> tuple[jax.Array, Metrics]:
    """The stage's loss and what the log says of it; without dropout and noise where `key` is None."""
    total, losses = losses_of(config, parameters, batch, key)
    return total, story_metrics(batch, losses)


def losses_of(
    config: Config, parameters: Parameters, batch: Mapping[str, jax.Array], key: jax.Array | None
) -> tuple[jax.Array, StoryLosses]:
    """The stage's loss; `key` turns dropout and the read features' noise on."""
    rows = StoryBatch(**{name: batch[name] for name in FIELDS})
    true, noise = rows.image_features, config.story.feature_noise
    dropout_key = None
    if key is not None:
        noise_key, key = jax.random.split(key)
        dropout_key = key if config.story.dropout else None
        if noise:
            # A told story reads its own regressed features, which are never quite right; so shall training.
            amount = noise * jax.random.uniform(key, (true.shape[0], 1, 1, 1)) * jnp.std(true)
            noisy = true + amount * jax.random.normal(noise_key, true.shape)
            rows = dataclasses.replace(rows, image_features=noisy)
    model = build(config.model, "story", parameters)
    return story_losses(model, rows, dropout_key=dropout_key, true_features=true)


def story_metrics(batch: Mapping[str, jax.Array], losses: StoryLosses) -> Metrics:
    """What the log says of a step: both losses, and how much of the rows was used."""
    return {
        "next_token_loss": losses.next_token_loss,
        "feature_regression_loss": losses.feature_regression_loss,
        "supervised_tokens": losses.supervised_tokens.astype(jnp.float32),
        "target_images": losses.target_images.astype(jnp.float32),
        "real_token_share": jnp.mean(batch["segment"] > 0, dtype=jnp.float32),
    }


SPEC = StageSpec(
    name="story",
    summary="The next sentence, and the next image's features, of interleaved stories (stage 2 of the paper).",
    trains="story",
    make=story_stage,
    encoders=("vit",),
)
