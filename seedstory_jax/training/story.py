"""Stage 2, `story`: the MLLM learns the next caption and the next picture's features (SEED-Story, section 3.2)."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seedstory_jax.config import Config
from seedstory_jax.data.pipeline import Plan, StoryRows, stack
from seedstory_jax.data.sequence import SequenceConfig
from seedstory_jax.models.parameters import Parameters
from seedstory_jax.models.story_mllm import StoryBatch, StoryLosses, story_losses
from seedstory_jax.training.loop import ALL_ROWS, Metrics, Stage
from seedstory_jax.training.parts import build, trainable_names
from seedstory_jax.training.workspace import Workspace

FIELDS = tuple(field.name for field in dataclasses.fields(StoryBatch))


def story_stage(config: Config, workspace: Workspace, parameters: Parameters) -> Stage:
    """The story model on cached features of the frozen ViT."""
    features = workspace.features(parameters, workspace.vit_transform)
    own = {name: value for name, value in parameters.items() if name.startswith("story.")}
    return Stage(
        name="story",
        config=config.story,
        optimizer=config.story.optimizer,
        steps=config.story.steps,
        parameters=own,
        trainable=trainable_names("story", config.story.trainable),
        loss=partial(story_loss, config),
        batch=row_batches(config, workspace, features, seed=config.seed, batch_size=config.story.batch_size),
        batch_size=config.story.batch_size,
    )


def story_loss(
    config: Config, parameters: Parameters, batch: Mapping[str, jax.Array], key: jax.Array
) -> tuple[jax.Array, Metrics]:
    """The stage's loss and what the log says of it."""
    total, losses = losses_of(config, parameters, batch, key)
    return total, story_metrics(batch, losses)


def row_batches(
    config: Config, workspace: Workspace, features: np.ndarray, *, seed: int, batch_size: int
) -> Callable[..., dict[str, np.ndarray]]:
    """(step, rows) -> the fields of a StoryBatch, of rows as the story stage's config describes them.

    Beside them `picture` int32 [b i]: each image's place in `workspace.train.image_paths()`.
    """
    stage = config.story
    stories, offsets = workspace.train.stories, workspace.train.offsets
    plan = Plan(
        lengths=tuple(map(len, stories)),
        batch_size=batch_size,
        seed=seed,
        max_turns=stage.max_turns,
        turns=dict.fromkeys(stage.turns.split("+"), 1.0),
        max_position_offset=stage.position_offset,
    )
    layout = SequenceConfig(
        num_image_tokens=config.model.story.num_image_tokens,
        max_tokens=stage.max_length,
        max_images=stage.max_turns,
        supervise=stage.supervise,
    )

    def places(story: int, turns: Sequence[int]) -> np.ndarray:
        return (offsets[story] + np.asarray(turns)).astype(np.int32)

    rows = StoryRows(
        stories, workspace.tokenizer, plan, layout, places, image_key="picture", max_bad=config.data.max_bad
    )

    def batch(step: int, here: Any = ALL_ROWS) -> dict[str, np.ndarray]:
        places = np.arange(step * batch_size, (step + 1) * batch_size)[here]
        fields = stack([rows[place] for place in places.tolist()])
        return {**fields, "image_features": features[fields["picture"]]}

    return batch


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
