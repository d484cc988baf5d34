"""The stages' steps lowered from shapes alone: compiled ahead of time, for a machine that is not there."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seedstory_jax.checkpoints.parts import TRAINED_BY, frozen_and_trained, part_shapes, trainable_names
from seedstory_jax.config import Config
from seedstory_jax.sharding import batch_sharding, check_batch_divides, optimizer_shardings, parameter_shardings
from seedstory_jax.training.loop import compiled_step
from seedstory_jax.training.optimizer import make_optimizer
from seedstory_jax.training.stages.adapt import adapt_loss
from seedstory_jax.training.stages.detokenizer import detokenizer_loss
from seedstory_jax.training.stages.story import story_loss

LOSSES = {"detokenizer": detokenizer_loss, "story": story_loss, "adapt": adapt_loss}
OWN_PARTS = {"detokenizer": ("detokenizer",), "story": ("story",), "adapt": ("detokenizer", "story")}

Shapes = dict[str, jax.ShapeDtypeStruct]


def batch_shapes(config: Config, stage: str, rows: int) -> Shapes:
    """What a batch of `rows` rows of a stage holds."""
    model = config.model
    queries, width = model.vit.n_queries, model.vit.output_dim
    side = model.image_size // model.vae.downscale
    moments = (side, side, 2 * model.vae.latent_channels)
    if stage == "detokenizer":
        return {
            "features": jax.ShapeDtypeStruct((rows, queries, width), jnp.float32),
            "moments": jax.ShapeDtypeStruct((rows, *moments), jnp.float32),
        }
    tokens, images = config.story.max_length, config.story.max_turns
    facts = ("ids", "labels", "position", "segment", "generated_block", "image_slot", "target_slot")
    shapes = {name: jax.ShapeDtypeStruct((rows, tokens), jnp.int32) for name in facts}
    shapes["image_features"] = jax.ShapeDtypeStruct((rows, images, queries, width), jnp.float32)
    shapes["image_valid"] = jax.ShapeDtypeStruct((rows, images), jnp.bool_)
    if stage == "adapt":
        shapes["moments"] = jax.ShapeDtypeStruct((rows, images, *moments), jnp.float32)
    return shapes


def abstract_step(config: Config, stage: str, mesh: Mesh) -> jax.stages.Lowered:
    """The compiled step of `stage` as `run_stage` runs it on `mesh`, from shapes; nothing is allocated.

    Raises UserError if the stage's batch cannot be split over the mesh.
    """
    section = getattr(config, stage)
    trains = trainable_names(dict(TRAINED_BY)[stage], section.trainable)
    layout = frozen_and_trained(mesh, trains, config.model.frozen_dtype)
    shapes: Shapes = {}
    for part in OWN_PARTS[stage]:
        shapes |= {name: layout(name, shape) for name, shape in part_shapes(config.model, part).items()}
    trained = {name: shape for name, shape in shapes.items() if trains(name)}
    frozen = {name: shape for name, shape in shapes.items() if not trains(name)}

    micro = section.optimizer.accumulation
    rows = section.batch_size // getattr(section, "images_per_row", 1) // micro
    check_batch_divides(mesh, rows, f"stage {stage}, batch_size / accumulation")
    batch = batch_shapes(config, stage, rows)
    if micro > 1:
        batch = {name: jax.ShapeDtypeStruct((micro, *x.shape), x.dtype) for name, x in batch.items()}

    at = parameter_shardings(mesh, trained)
    optimizer = make_optimizer(section.optimizer, section.steps)
    state = jax.eval_shape(optimizer.init, trained)
    state_at = optimizer_shardings(mesh, state, at)
    everywhere = NamedSharding(mesh, PartitionSpec())
    step = compiled_step(partial(LOSSES[stage], config), optimizer, micro, mesh, (at, state_at))
    return step.lower(
        trained,
        jax.tree.map(placed, state, state_at),
        frozen,
        {name: placed(x, batch_sharding(mesh, skip_axes=int(micro > 1))) for name, x in batch.items()},
        placed(jax.eval_shape(lambda: jax.random.key(0)), everywhere),
    )


def placed(shape: Any, at: NamedSharding) -> jax.ShapeDtypeStruct:
    """The shape with a sharding."""
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=at)
