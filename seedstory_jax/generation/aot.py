"""AOT lowering of the engine's programs from abstract shapes, e.g. for a TPU topology without the hardware."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from seedstory_jax.generation import decode
from seedstory_jax.generation.policies import Policy, split_policy
from seedstory_jax.generation.sampling import Sampling


def lower_programs(
    spec: decode.EngineSpec,
    parameters: Mapping[str, jax.ShapeDtypeStruct],
    policy: Policy,
    *,
    batch: int,
    slots: int,
    dtype: str,
) -> dict[str, Callable[[], jax.stages.Lowered]]:
    """Functions that lower each program: "prefill_text", "decode_text", "predict_image", "append_image", "evict".

    Args:
        spec: static arguments of the programs; with a mesh, the state is laid out on it.
        parameters: shapes of the story model's, with their shardings where they have any.
        policy: whose compaction "evict" is.
        batch: stories generated at once.
        slots: of each buffer.
        dtype: of keys and values.

    Example:
        lower_programs(...)["decode_text"]().compile().memory_analysis()
    """
    state = jax.eval_shape(lambda: decode.init_state(spec, batch, slots, dtype))
    if spec.mesh is not None:
        at = decode.state_sharding(spec.mesh, state)
        state = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state, at
        )
    output, entry = spec.config.output_resampler, spec.config.input_resampler
    active = jax.ShapeDtypeStruct((batch,), jnp.bool_)
    counts = jax.ShapeDtypeStruct((batch,), jnp.int32)
    ids = jax.ShapeDtypeStruct((batch, spec.max_text_tokens + 1), jnp.int32)
    features = jax.ShapeDtypeStruct((batch, output.grid_size**2, entry.kv_dim), jnp.float32)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    sampling = Sampling(number, number, jax.ShapeDtypeStruct((batch,), jnp.uint32))
    parameters = dict(parameters)
    calls: dict[str, tuple[Any, ...]] = {
        "prefill_text": (decode.prefill_text, parameters, state, ids, counts),
        "decode_text": (decode.decode_text, parameters, state, active, sampling),
        "predict_image": (decode.predict_image, parameters, state, active),
        "append_image": (decode.append_image, parameters, state, features, active),
        "evict": (decode.evict, *split_policy(policy), state),
    }
    return {name: lambda call=call: call[0].lower(spec, *call[1:]) for name, call in calls.items()}
