"""One training step, set up once from arrays or from shapes: what is trained, what is compiled is the same program."""

import contextlib
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seedstory_jax.data.pipeline import HOST_FIELDS
from seedstory_jax.distributed import place, rows_here
from seedstory_jax.errors import UserError
from seedstory_jax.models.layer_stack import activation_axes
from seedstory_jax.models.parameters import Parameters
from seedstory_jax.sharding import (
    ACTIVATIONS,
    batch_sharding,
    check_batch_divides,
    optimizer_shardings,
    parameter_shardings,
)
from seedstory_jax.training.optimizer import make_optimizer
from seedstory_jax.training.stage import Stage


class TrainStep:
    """The jitted step of a stage on a mesh, and how its arguments are laid out.

    `run(trained, state, frozen, batch, key)` gives (trained, state, metrics) and donates the first two. Raises
    UserError if no parameter trains, or the batch cannot be split over the mesh.
    """

    def __init__(self, stage: Stage, mesh: Mesh):
        self.stage, self.mesh = stage, mesh
        self.micro = stage.config.optimizer.accumulation
        self.rows = stage.batch_size // self.micro  # of a micro-batch
        check_batch_divides(mesh, self.rows, f"stage {stage.name}, batch_size / accumulation")
        self.at = parameter_shardings(mesh, stage.parameters)
        shapes = {name: _shape(value, self.at[name]) for name, value in stage.parameters.items()}
        self.trained = {name: shape for name, shape in shapes.items() if stage.trainable(name)}
        self.frozen = {name: shape for name, shape in shapes.items() if not stage.trainable(name)}
        if not self.trained:
            raise UserError(f"stage {stage.name}: trainable set {stage.config.trainable!r} matches no parameter")
        self.optimizer = make_optimizer(stage.config.optimizer, stage.config.steps)
        state = jax.eval_shape(self.optimizer.init, self.trained)
        self.state_at = optimizer_shardings(mesh, state, self.at)
        self.state = jax.tree.map(_shape, state, self.state_at)
        self.batch_at = batch_sharding(mesh, skip_axes=int(self.micro > 1))
        self.everywhere = NamedSharding(mesh, PartitionSpec())

    @cached_property
    def run(self) -> Any:
        """The jitted step; what it trains and the optimizer's state come back laid out as they were given."""
        loss, optimizer, micro, mesh = self.stage.loss, self.optimizer, self.micro, self.mesh

        def step(trained, state, frozen, batch, key):
            with activation_axes(mesh, ACTIVATIONS) if mesh.size > 1 else contextlib.nullcontext():
                return train_step(loss, optimizer, micro, trained, state, frozen, batch, key)

        trained_at = {name: self.at[name] for name in self.trained}
        return jax.jit(step, donate_argnums=(0, 1), out_shardings=(trained_at, self.state_at, self.everywhere))

    def lower(self) -> jax.stages.Lowered:
        """The step lowered from shapes alone; nothing is allocated on any device of the mesh."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        return self.run.lower(self.trained, self.state, self.frozen, self.batch_shapes(), _shape(key, self.everywhere))

    def batch_shapes(self) -> Any:
        """Shapes of a step's batch where the step wants it, from one row of the first."""

        def whole(x: np.ndarray) -> jax.ShapeDtypeStruct:
            shape = (self.rows, *x.shape[1:])
            return jax.ShapeDtypeStruct(
                (self.micro, *shape) if self.micro > 1 else shape, x.dtype, sharding=self.batch_at
            )

        return jax.tree.map(whole, split_host_fields(self.stage.batch(0, slice(0, 1)))[0])

    def arrays(self) -> tuple[Parameters, Any, Parameters]:
        """(trained, optimizer state, frozen) on the mesh, of the stage's arrays, which survive the step's donation."""
        values = self.stage.parameters
        frozen = {name: place(values[name], self.at[name]) for name in self.frozen}
        trained = {name: jnp.copy(place(values[name], self.at[name])) for name in self.trained}
        return trained, jax.jit(self.optimizer.init, out_shardings=self.state_at)(trained), frozen

    def rows_here(self) -> np.ndarray:
        """The rows of a step's batch that this process's devices work on, micro-batch by micro-batch."""
        here = rows_here(batch_sharding(self.mesh), self.rows)
        return (np.arange(self.micro)[:, None] * self.rows + here).reshape(-1)

    def on_devices(self, batch: Any) -> Any:
        """A step's batch (this process's rows of it) where the step wants it, cut into micro-batches."""
        if self.micro > 1:
            batch = jax.tree.map(lambda x: x.reshape(self.micro, x.shape[0] // self.micro, *x.shape[1:]), batch)
        if jax.process_count() == 1:
            return jax.device_put(batch, self.batch_at)
        axis = int(self.micro > 1)

        def joined(x: np.ndarray) -> jax.Array:
            shape = (*x.shape[:axis], self.rows, *x.shape[axis + 1 :])
            return jax.make_array_from_process_local_data(self.batch_at, x, shape)

        return jax.tree.map(joined, batch)


def split_host_fields(batch: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """(what goes to the devices, what stays on the host) of a batch."""
    if type(batch) is not dict:
        return batch, {}
    host = {name: value for name, value in batch.items() if name in HOST_FIELDS}
    return {name: value for name, value in batch.items() if name not in HOST_FIELDS}, host


def train_step(loss, optimizer, accumulation: int, trained, state, frozen, batch, key):
    """One update. With accumulation the batch has a leading micro-batch axis and gradients are averaged over it.

    A step whose loss or gradient is not finite leaves parameters and optimizer as they were.
    """

    def value(trained, batch, key):
        return loss({**frozen, **trained}, batch, key)

    def gradients(batch, key):
        (total, metrics), grads = jax.value_and_grad(value, has_aux=True)(trained, batch, key)
        return grads, {"loss": total, **metrics}

    if accumulation > 1:

        def add(summed, part):
            return jax.tree.map(jnp.add, summed, gradients(*part)), None

        keys = jax.random.split(key, accumulation)
        shapes = jax.eval_shape(gradients, jax.tree.map(lambda x: x[0], batch), keys[0])
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        summed, _ = jax.lax.scan(add, zeros, (batch, keys))
        grads, metrics = jax.tree.map(lambda x: x / accumulation, summed)
    else:
        grads, metrics = gradients(batch, key)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
    updates, new_state = optimizer.update(grads, state, trained)
    new_trained = optax.apply_updates(trained, updates)
    keep = partial(jax.tree.map, lambda new, old: jnp.where(finite, new, old))
    metrics |= {f"grad_norm/{part}": optax.tree.norm(group) for part, group in _by_part(grads).items()}
    return keep(new_trained, trained), keep(new_state, state), {**metrics, "grad_norm": norm}


def _by_part(values: Parameters) -> dict[str, list[jax.Array]]:
    """ "story.llama.norm.scale" counts for "llama"; a stage that trains one module has no parts."""
    groups: dict[str, list[jax.Array]] = {}
    for name, value in values.items():
        groups.setdefault(".".join(name.split(".")[1:2]), []).append(value)
    return groups if len(groups) > 1 else {}


def _shape(value: Any, at: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=at)
