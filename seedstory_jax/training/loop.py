"""The loop that every stage runs in: step, log, save, resume, stop cleanly.

A stage's batch is a pure function of the step, so the step is the whole data state, and a run that was killed goes on
exactly where its last checkpoint stands.
"""

import contextlib
import dataclasses
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

from seedstory_jax.checkpoints.stage import Checkpoints, frozen_hash
from seedstory_jax.config import OptimizerConfig, StageConfig, WatchConfig
from seedstory_jax.data.pipeline import HOST_FIELDS, read_ahead
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
from seedstory_jax.training.metrics import StepSize, Watch
from seedstory_jax.training.optimizer import learning_rate, make_optimizer
from seedstory_jax.training.validation import HeldOut, Validation

log = logging.getLogger(__name__)
Metrics = dict[str, jax.Array]
ALL_ROWS = slice(None)


@dataclass(frozen=True)
class Stage:
    """What one training stage is: parameters by dotted name, which of them train, the loss, the batches.

    `batch(step, rows)` gives numpy arrays with a leading batch axis, of the rows that `rows` picks from the step's
    `batch_size` (all of them by default), and must depend on nothing else;
    `loss(parameters, batch, key)` gives a scalar and further scalars to log; `preview` draws pictures into a folder.
    The fields HOST_FIELDS of a batch stay on the host.
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
    held_out: HeldOut | None = None
    size: StepSize = StepSize()
    max_bad: int = 100  # stories or pictures that cannot be read before the run stops


class Interrupted(Exception):
    """The run was asked to stop (SIGTERM) and has saved everything; the message says how to go on."""


def run_stage(
    stage: Stage, workdir: Path, *, seed: int, mesh: Mesh, workers: int = 0, watch: WatchConfig | None = None
) -> Parameters:
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
    facts = {**(stage.facts or {}), "frozen": frozen_hash(frozen)}
    restored = checkpoints.restore(trained, state)
    if restored is not None:
        first, trained, state, found = restored
        check_frozen(found, facts, folder)
    shown = None
    if jax.process_index() == 0:
        shown = Watch(workdir, stage.name, first, stage.steps, stage.size, watch)
    try:
        if first < stage.steps:
            shardings = ({name: at[name] for name in trained}, state_at)
            steps = Steps(dataclasses.replace(stage, facts=facts), optimizer, frozen, seed, mesh, shardings, workers)
            trained = steps.run(trained, state, first, checkpoints, shown, workdir)
    finally:
        if shown is not None:
            shown.close()
        checkpoints.close()
    return {**frozen, **trained}


def check_frozen(found: Mapping[str, Any], facts: Mapping[str, Any], folder: Path) -> None:
    """Raises UserError if a checkpoint was trained over other frozen weights than these."""
    if found.get("frozen", facts["frozen"]) != facts["frozen"]:
        raise UserError(
            f"the checkpoint in {folder} was trained over frozen weights with the hash {found['frozen']} "
            f"(model.base {found.get('base') or 'empty'!r}); those that are here have {facts['frozen']} "
            f"(model.base {facts.get('base') or 'empty'!r}): give it the weights it began with, or another --workdir"
        )


class Steps:
    """The compiled step and the loop around it."""

    def __init__(
        self,
        stage: Stage,
        optimizer: optax.GradientTransformation,
        frozen: Parameters,
        seed: int,
        mesh: Mesh,
        shardings: tuple[Any, Any],
        workers: int,
    ):
        self.stage, self.frozen, self.mesh, self.workers = stage, frozen, mesh, workers
        self.key = jax.random.fold_in(jax.random.key(seed), sum(stage.name.encode()))
        self.schedule = learning_rate(stage.optimizer, stage.steps)
        self.micro = stage.optimizer.accumulation
        self.batch_at = batch_sharding(mesh, skip_axes=int(self.micro > 1))
        check_batch_divides(mesh, stage.batch_size // self.micro, f"stage {stage.name}, batch_size / accumulation")
        self.step = compiled_step(stage.loss, optimizer, self.micro, mesh, shardings)
        self._reported = 0.0  # when the newest step was, by the clock

    def run(self, trained, state, first: int, checkpoints: Checkpoints, watch: Watch | None, workdir: Path):
        """From step `first` to the last, saving and reporting on the way; what was trained."""
        stage, config = self.stage, self.stage.config
        stop = _StopSignal()
        validation = None
        if stage.held_out is not None and config.eval_every:
            validation = Validation(stage.held_out, self.frozen, workdir / stage.name, self._placed)
        pending = None  # the step before, whose metrics are read while the device works on this one
        saved = first
        bad = _Bad(stage.max_bad)
        with stop:
            for step, batch in enumerate(self._batches(first), first):
                notes = {name: batch.pop(name) for name in HOST_FIELDS if name in batch} if type(batch) is dict else {}
                batch = self.on_devices(batch)
                started = time.perf_counter()
                key = jax.random.fold_in(self.key, step)
                trained, state, values = self.step(trained, state, self.frozen, batch, key)
                if pending is not None:
                    self._report(watch, *pending, saved)
                pending = (step + 1, {**values, **bad.count(notes)}, started)
                done = step + 1
                stops = stop.requested_at(done)
                save = done % config.save_every == 0 or done == stage.steps or stops
                evaluate = validation is not None and done % config.eval_every == 0
                if evaluate:
                    pending[1].update(validation(done, trained))
                if save or evaluate:
                    self._report(watch, *pending, saved)
                    pending = None
                if save:
                    checkpoints.save(done, trained, state, {"stage": stage.name, "step": done, **(stage.facts or {})})
                    saved = done
                due = config.preview_every and done % config.preview_every == 0
                if stage.preview is not None and (due or done == stage.steps) and not stops:
                    folder = workdir / stage.name / "previews"
                    stage.preview({**self.frozen, **trained}, done, folder)
                    if watch is not None:
                        watch.pictures(folder, done)
                if (evaluate or due) and watch is not None:
                    watch.rates.pause()
                if stops and done < stage.steps:
                    checkpoints.wait()
                    raise Interrupted(f"{stage.name} saved at step {done}; the same command goes on from there")
        checkpoints.wait()
        if validation is not None:
            validation.close()
        return trained

    def _batches(self, first: int) -> Iterator[Any]:
        """Batches from step `first` on, read ahead by grain; the step is the whole state of the data."""
        import grain

        batch = self.stage.batch
        if jax.process_count() > 1:
            batch = partial(_rows_of, batch, rows=self._rows_here())
        steps = grain.MapDataset.range(first, self.stage.steps).map(batch)
        return read_ahead(steps, self.workers)

    def _rows_here(self) -> np.ndarray:
        """The rows of a batch that this process's devices work on, micro-batch by micro-batch."""
        size = self.stage.batch_size // self.micro
        here = rows_here(batch_sharding(self.mesh), size)
        return (np.arange(self.micro)[:, None] * size + here).reshape(-1)

    def on_devices(self, batch: Any) -> Any:
        """A step's batch where the step wants it, cut into micro-batches."""
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

    def _placed(self, batch: Any) -> Any:
        """A batch of the held-out stories: as large as a step's, in one piece."""
        batch = {name: value for name, value in batch.items() if name not in HOST_FIELDS}
        return jax.tree.map(lambda x: place(x, batch_sharding(self.mesh)), batch)

    def _report(self, watch: Watch | None, step: int, values: Metrics, started: float, saved: int) -> None:
        numbers = {name: float(value) for name, value in jax.device_get(values).items()}
        numbers["learning_rate"] = float(self.schedule(step - 1))
        # A step is begun before the one before has been waited for: its own time begins when that one was done.
        started, self._reported = max(started, self._reported), time.perf_counter()
        if watch is not None:
            watch.step(step, numbers, self._reported - started)
        if not (math.isfinite(numbers["loss"]) and math.isfinite(numbers["grad_norm"])):
            message = (
                f"stage {self.stage.name}, step {step}: loss {numbers['loss']}, gradient norm {numbers['grad_norm']}; "
                f"last good checkpoint: {f'step {saved}' if saved else 'none'}"
            )
            if self.stage.config.on_nonfinite == "stop":
                raise UserError(message + "; lower the learning rate, or set on_nonfinite=skip")
            log.warning("%s; the step was skipped", message)


class _Bad:
    """Counts what batches say could not be read, over all worker processes. Raises UserError past `max_bad`."""

    def __init__(self, max_bad: int):
        self.max_bad, self.seen = max_bad, set()

    def count(self, notes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Numbers for the log: of a batch that says nothing, none."""
        numbers = {}
        if "unreadable" in notes:
            said = [str(note) for note in notes["unreadable"] if note]
            self.seen.update(note.partition(":")[0] for note in said)
            numbers["replaced_rows"] = float(len(said))
            if len(self.seen) > self.max_bad:
                raise UserError(
                    f"{len(self.seen)} stories or pictures cannot be read, data.max_bad {self.max_bad} are allowed; "
                    f"the last: {said[-1]}"
                )
        if "over_length" in notes:
            numbers["over_length_rows"] = float(notes["over_length"].sum())
        return numbers


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
    metrics |= {f"grad_norm/{part}": optax.tree.norm(group) for part, group in _by_part(grads).items()}
    return keep(new_trained, trained), keep(new_state, state), {**metrics, "grad_norm": norm}


def _by_part(values: Parameters) -> dict[str, list[jax.Array]]:
    """ "story.llama.norm.scale" counts for "llama"; a stage that trains one module has no parts."""
    groups: dict[str, list[jax.Array]] = {}
    for name, value in values.items():
        groups.setdefault(".".join(name.split(".")[1:2]), []).append(value)
    return groups if len(groups) > 1 else {}


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
