"""Stacks of equal layers: one set of parameters with a leading layer axis, run by one `lax.scan`."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seedstory_jax.models.attention import ATTENDED
from seedstory_jax.models.dense import PROJECTED

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    # By name, since an adapter's products are not worth their memory: of a projection only the sum is kept.
    "dots": jax.checkpoint_policies.save_only_these_names(PROJECTED, ATTENDED),
}


def stack_layers(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """Builds `count` layers as one module whose every Param has a leading [l] axis, each layer drawn on its own."""
    if count < 1:
        raise ValueError(f"a stack of {count} layers: at least 1 is needed")

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def build(layer_rngs: nnx.Rngs) -> nnx.Module:
        return make(layer_rngs)

    return build(rngs)


def scan_layers(
    layers: nnx.Module,
    step: Callable[[Any, Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: Any = None,
    *,
    remat: str = "none",
    unroll: bool | int = 1,
) -> tuple[Any, Any]:
    """Runs `carry, y = step(layer, carry, x)` through a stack in order.

    Args:
        layers: what `stack_layers` gave; it is read, never changed.
        step: one layer's work; traced once, however many layers there are.
        carry: the first carry.
        xs: a pytree with a leading [l] axis, one slice a layer, or None.
        remat: what the backward pass recomputes: "none", "full" (all of it), "dots" (all but what
            linear layers and the LLaMA's attention return).
        unroll: passed to `lax.scan`; True writes the layers out one after the other.

    Returns:
        The last carry, and the ys stacked on a leading [l] axis.
    """
    if remat not in REMAT_POLICIES:
        raise ValueError(f"remat {remat!r} is unknown; choose one of {', '.join(REMAT_POLICIES)}")
    graph, state = nnx.split(layers)

    def body(carry: Any, inputs: tuple[Any, Any]) -> tuple[Any, Any]:
        layer_state, x = inputs
        return step(nnx.merge(graph, layer_state), carry, x)

    if remat != "none":
        # Inside a scan nothing can be merged across the two passes, so the costly barrier is not needed.
        body = jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=False)
    return jax.lax.scan(body, carry, (state, xs), unroll=unroll)


_activation_axes: contextvars.ContextVar[tuple[Mesh, Mapping[str, Any]] | None] = contextvars.ContextVar(
    "activation_axes", default=None
)


@contextlib.contextmanager
def activation_axes(mesh: Mesh, axes: Mapping[str, Any]) -> Iterator[None]:
    """While tracing in this context, `constrain` lays activations out: axis letter -> mesh axis (or a tuple, or None).

    Example: `with activation_axes(mesh, {"b": ("data", "fsdp"), "n": "tensor", "f": "tensor"}): jitted.lower(...)`.
    The context is read when a function is traced, not when it is run.
    """
    token = _activation_axes.set((mesh, axes))
    try:
        yield
    finally:
        _activation_axes.reset(token)


def constrain(x: jax.Array, letters: str) -> jax.Array:
    """Marks activation `x`, one axis letter a dimension ("btd"), with the layout in force; does nothing without one."""
    active = _activation_axes.get()
    if active is None:
        return x
    mesh, axes = active
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*(axes.get(a) for a in letters))))
