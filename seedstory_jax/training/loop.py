"""The loop that every stage runs in: step, log, save, resume, stop cleanly.

A stage's batch is a pure function of the step, so the step is the whole data state, and a run that was killed goes on
exactly where its last checkpoint stands.
"""

import contextlib
import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from seedstory_jax.config import OptimizerConfig, StageConfig
from seedstory_jax.distributed import place, rows_here
from seedstory_jax.errors import UserError
from seedstory_jax.models.layer_stack import activation_axes
from seedstory_jax.models.parameters import Parameters
from seedstory_jax.sharding import (
    ACTIVATIONS,
    batch_sharding,
    check_rows,
    optimizer_shardings,
    parameter_shardings,
)
from seedstory_jax.training.checkpoint import Checkpoints
from seedstory_jax.training.optimizer import learning_rate, make_optimizer

log = logging.getLogger(__name__)
Metrics = dict[str, jax.Array]
ALL_ROWS = slice(None)
PREFETCH = 2  # batches made ahead, in threads


@dataclass(frozen=True)
class Stage:
    """What one training stage is: parameters by dotted name, which of them train, the loss, the batches.

    `batch(step, rows)` gives numpy arrays with a leading batch axis, of the rows that `rows` picks from the step's
    `batch_size` (all of them by default), and must depend on nothing else;
    `loss(parameters, batch, key)` gives a scalar and further scalars to log; `preview` draws pictures into a folder.
    """

    name: str
    config: StageConfig
    optimizer: OptimizerConfig
    steps: int
    parameters: Parameters
    trainable: Callable[[str], bool]
    loss: Callable[[Parameters, Any, jax.Array], tuple[jax.Array, Metrics]]
    batch: Callable[..., Any]
    batch_size: int
    preview: Callable[[Parameters, int, Path], None] | None = None
    facts: Mapping[str, Any] | None = None


class Interrupted(Exception):
    """The run was asked to stop (SIGTERM) and has saved everything; the message says how to go on."""


def run_stage(stage: Stage, workdir: Path, *, seed: int, mesh: Mesh) -> Parameters:
    """Trains `stage` to its last step, from its newest checkpoint if there is one; returns all its parameters.

    Writes a line a step to workdir/metrics.jsonl and TensorBoard events. Raises Interrupted after SIGTERM, and
    UserError for a loss or gradient that is not finite (with on_nonfinite = "skip" such a step changes nothing).
    """
    trained = {name: value for name, value in stage.parameters.items() if stage.trainable(name)}
    frozen = {name: value for name, value in stage.parameters.items() if not stage.trainable(name)}
    if not trained:
        raise UserError(f"stage {stage.name}: trainable set {stage.config.trainable!r} matches no parameter")
    at = parameter_shardings(mesh, stage.parameters)
    frozen = {name: place(value, at[name]) for name, value in frozen.items()}
    # The step donates what it trains; the caller's arrays must survive it.
    trained = {name: jnp.copy(place(value, at[name])) for name, value in trained.items()}
    optimizer = make_optimizer(stage.optimizer, stage.steps)
    state_at = optimizer_shardings(mesh, jax.eval_shape(optimizer.init, trained), at)
    state = jax.jit(optimizer.init, out_shardings=state_at)(trained)
    folder = workdir / stage.name
    checkpoints = Checkpoints(folder, stage.config.keep)
    first = 0
    restored = checkpoints.restore(trained, state)
    if restored is not None:
        first, trained, state, _ = restored
    log_file = MetricsLog(workdir, stage.name, first) if jax.process_index() == 0 else None
    try:
        if first < stage.steps:
            steps = _Steps(stage, optimizer, frozen, seed, mesh, ({name: at[name] for name in trained}, state_at))
            trained = steps.run(trained, state, first, checkpoints, log_file, workdir)
    finally:
        if log_file is not None:
            log_file.close()
        checkpoints.close()
    return {**frozen, **trained}


class _Steps:
    """The compiled step and the loop around it."""

    def __init__(
        self,
        stage: Stage,
        optimizer: optax.GradientTransformation,
        frozen: Parameters,
        seed: int,
        mesh: Mesh,
        shardings: tuple[Any, Any],
    ):
        self.stage, self.frozen, self.mesh = stage, frozen, mesh
        self.key = jax.random.fold_in(jax.random.key(seed), sum(stage.name.encode()))
        self.schedule = learning_rate(stage.optimizer, stage.steps)
        self.micro = stage.optimizer.accumulation
        self.batch_at = batch_sharding(mesh, skip_axes=int(self.micro > 1))
        check_rows(mesh, stage.batch_size // self.micro, f"stage {stage.name}, batch_size / accumulation")
        self.step = compiled_step(stage.loss, optimizer, self.micro, mesh, shardings)

    def run(self, trained, state, first: int, checkpoints: Checkpoints, metrics: "MetricsLog | None", workdir: Path):
        stage, config = self.stage, self.stage.config
        stop = _StopSignal()
        bar = tqdm(
            total=stage.steps,
            initial=first,
            desc=f"{stage.name:>13}",
            unit="step",
            mininterval=1.0,
            disable=jax.process_index() > 0,
        )
        pending = None  # the step before, whose metrics are read while the device works on this one
        saved = first
        with stop:
            for step, batch in enumerate(self._batches(first), first):
                batch = self._on_devices(batch)
                started = time.perf_counter()
                key = jax.random.fold_in(self.key, step)
                trained, state, values = self.step(trained, state, self.frozen, batch, key)
                if pending is not None:
                    self._report(metrics, bar, *pending, saved)
                pending = (step + 1, values, started)
                done = step + 1
                stops = stop.requested_at(done)
                save = done % config.save_every == 0 or done == stage.steps or stops
                if save:
                    self._report(metrics, bar, *pending, saved)
                    pending = None
                    checkpoints.save(done, trained, state, {"stage": stage.name, "step": done, **(stage.facts or {})})
                    saved = done
                due = config.preview_every and done % config.preview_every == 0
                if stage.preview is not None and (due or done == stage.steps) and not stops:
                    stage.preview({**self.frozen, **trained}, done, workdir / stage.name / "previews")
                if stops and done < stage.steps:
                    checkpoints.wait()
                    bar.close()
                    raise Interrupted(f"{stage.name} saved at step {done}; the same command goes on from there")
        checkpoints.wait()
        bar.close()
        return trained

    def _batches(self, first: int) -> Iterator[Any]:
        """Batches from step `first` on, read ahead by grain; the step is the whole state of the data."""
        import grain

        batch = self.stage.batch
        if jax.process_count() > 1:
            batch = partial(_rows_of, batch, rows=self._rows_here())
        steps = grain.MapDataset.range(first, self.stage.steps).map(batch)
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=PREFETCH, prefetch_buffer_size=PREFETCH)))

    def _rows_here(self) -> np.ndarray:
        """The rows of a batch that this process's devices work on, micro-batch by micro-batch."""
        size = self.stage.batch_size // self.micro
        here = rows_here(batch_sharding(self.mesh), size)
        return (np.arange(self.micro)[:, None] * size + here).reshape(-1)

    def _on_devices(self, batch: Any) -> Any:
        if self.micro > 1:
            batch = jax.tree.map(lambda x: x.reshape(self.micro, x.shape[0] // self.micro, *x.shape[1:]), batch)
        if jax.process_count() == 1:
            return jax.device_put(batch, self.batch_at)
        rows = self.stage.batch_size // self.micro
        axis = int(self.micro > 1)

        def joined(x: np.ndarray) -> jax.Array:
            shape = (*x.shape[:axis], rows, *x.shape[axis + 1 :])
            return jax.make_array_from_process_local_data(self.batch_at, x, shape)

        return jax.tree.map(joined, batch)

    def _report(
        self, metrics: "MetricsLog | None", bar: tqdm, step: int, values: Metrics, started: float, saved: int
    ) -> None:
        numbers = {name: float(value) for name, value in jax.device_get(values).items()}
        numbers["learning_rate"] = float(self.schedule(step - 1))
        if metrics is not None:
            metrics.write(step, numbers, time.perf_counter() - started)
        bar.update(1)
        bar.set_postfix_str(f"loss {numbers['loss']:.4f}", refresh=False)
        if not (math.isfinite(numbers["loss"]) and math.isfinite(numbers["grad_norm"])):
            message = (
                f"stage {self.stage.name}, step {step}: loss {numbers['loss']}, gradient norm {numbers['grad_norm']}; "
                f"last good checkpoint: {f'step {saved}' if saved else 'none'}"
            )
            if self.stage.config.on_nonfinite == "stop":
                raise UserError(message + "; lower the learning rate, or set on_nonfinite=skip")
            log.warning("%s; the step was skipped", message)


def _rows_of(batch: Callable[..., Any], step: int, rows: np.ndarray) -> Any:
    return batch(step, rows)


def compiled_step(loss, optimizer, accumulation: int, mesh: Mesh, shardings: tuple[Any, Any]) -> Any:
    """`train_step` of (trained, state, frozen, batch, key) on a mesh; the first two are donated.

    `shardings`: of what is trained and of the optimizer's state, which come back laid out as they were given.
    """

    def step(trained, state, frozen, batch, key):
        with activation_axes(mesh, ACTIVATIONS) if mesh.size > 1 else contextlib.nullcontext():
            return train_step(loss, optimizer, accumulation, trained, state, frozen, batch, key)

    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=(0, 1), out_shardings=(*shardings, everywhere))


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
    return keep(new_trained, trained), keep(new_state, state), {**metrics, "grad_norm": norm}


class MetricsLog:
    """workdir/metrics.jsonl, one line a step and none twice, and the same numbers as TensorBoard events."""

    def __init__(self, workdir: Path, stage: str, first: int):
        self.path, self.stage = workdir / "metrics.jsonl", stage
        self._drop_after(first)
        self._file = self.path.open("a", buffering=1)
        from tensorboardX import SummaryWriter

        self._events = SummaryWriter(str(workdir / "tensorboard" / stage), purge_step=first + 1, flush_secs=30)

    def _drop_after(self, first: int) -> None:
        """Cuts off this stage's lines past the restored step, and a last line that a kill tore."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if row["stage"] != self.stage or row["step"] <= first:
                kept.append(line + "\n")
        beside = self.path.with_name("metrics.jsonl.partial")
        beside.write_text("".join(kept))
        beside.replace(self.path)

    def write(self, step: int, numbers: Mapping[str, float], seconds: float) -> None:
        """Appends one line; `step_seconds` is the only field that differs between two runs."""
        self._file.write(json.dumps({"stage": self.stage, "step": step, **numbers, "step_seconds": seconds}) + "\n")
        for name, value in numbers.items():
            self._events.add_scalar(f"{self.stage}/{name}", value, step)

    def close(self) -> None:
        """Flushes both."""
        self._file.close()
        self._events.close()


class _StopSignal:
    """SIGTERM asks for a checkpoint and a clean end, while the loop runs.

    Among several processes jax's own handler tells all of them, and they agree on the step to stop at.
    """

    requested = False

    def requested_at(self, step: int) -> bool:
        """Whether to end after `step`; every process asks after every step."""
        if jax.process_count() == 1:
            return self.requested
        from jax.experimental.multihost_utils import reached_preemption_sync_point

        return reached_preemption_sync_point(step)

    def __enter__(self):
        self._before = None
        if jax.process_count() > 1:
            return self
        with contextlib.suppress(ValueError):  # not in the main thread: whoever runs us there handles signals
            self._before = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, *_):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _request(self, *_):
        self.requested = True
