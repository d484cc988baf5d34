"""The engine's programs lowered from shapes alone: compiled ahead of time, for a machine that is not there."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from seedstory_jax.generation import decode
from seedstory_jax.generation.policies import Policy, split_policy


def lower_programs(
    shape: decode.Shape,
    parameters: Mapping[str, jax.ShapeDtypeStruct],
    policy: Policy,
    *,
    batch: int,
    slots: int,
    dtype: str,
) -> dict[str, Callable[[], jax.stages.Lowered]]:
    """What lowers each program: "read_text", "write_text", "draw_image", "read_image", "forget".

    Args:
        shape: what the programs share; with a mesh, the buffer is laid out on it.
        parameters: shapes of the story model's, with their shardings where they have any.
        policy: whose compaction "forget" is.
        batch: stories told at once.
        slots: of each buffer.
        dtype: of keys and values.

    Example:
        lower_programs(...)["write_text"]().compile().memory_analysis()
    """
    telling = jax.eval_shape(lambda: decode.begin(shape, batch, slots, dtype))
    if shape.mesh is not None:
        at = decode.telling_sharding(shape.mesh, telling)
        telling = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), telling, at
        )
    output, entry = shape.config.output_resampler, shape.config.input_resampler
    rows = jax.ShapeDtypeStruct((batch,), jnp.bool_)
    counts = jax.ShapeDtypeStruct((batch,), jnp.int32)
    ids = jax.ShapeDtypeStruct((batch, shape.max_text_tokens + 1), jnp.int32)
    features = jax.ShapeDtypeStruct((batch, output.grid_size**2, entry.kv_dim), jnp.float32)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    sampling = decode.Sampling(number, number, jax.ShapeDtypeStruct((batch,), jnp.uint32))
    parameters = dict(parameters)
    calls: dict[str, tuple[Any, ...]] = {
        "read_text": (decode.read_text, parameters, telling, ids, counts),
        "write_text": (decode.write_text, parameters, telling, rows, sampling),
        "draw_image": (decode.draw_image, parameters, telling, rows),
        "read_image": (decode.read_image, parameters, telling, features, rows),
        "forget": (decode.forget, *split_policy(policy), telling),
    }
    return {name: lambda call=call: call[0].lower(shape, *call[1:]) for name, call in calls.items()}
