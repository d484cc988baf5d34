"""The loop that every stage runs in: step, hooks, resume, stop cleanly.

A stage's batch is a pure function of the step, so the step is the whole data state, and a run that was killed goes on
exactly where its last checkpoint stands.
"""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from seedstory_jax.checkpoints.digest import digest_of
from seedstory_jax.checkpoints.stage import Checkpoints
from seedstory_jax.config import WatchConfig
from seedstory_jax.data.pipeline import read_ahead
from seedstory_jax.distributed import place
from seedstory_jax.errors import UserError
from seedstory_jax.models.parameters import Parameters
from seedstory_jax.sharding import batch_sharding
from seedstory_jax.training.hooks import Evaluate, Hook, Log, Preview, Save, StepResult, UnreadableCounter
from seedstory_jax.training.metrics import MetricsWriter
from seedstory_jax.training.stage import Stage
from seedstory_jax.training.step import TrainStep, split_host_fields
from seedstory_jax.training.validation import Validation

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupted(Exception):
    """The run was asked to stop (SIGTERM, SIGINT, SIGHUP) and has saved everything; the message says how to go on."""


def run_stage(
    stage: Stage, workdir: Path, *, seed: int, mesh: Mesh, workers: int = 0, watch: WatchConfig | None = None
) -> Parameters:
    """Trains `stage` to its last step, from its newest checkpoint if there is one; returns all its parameters.

    Writes a line a step to workdir/metrics.jsonl and TensorBoard events. Raises Interrupted after a signal to stop, and
    UserError for a loss or gradient that is not finite (with on_nonfinite = "skip" such a step changes nothing).
    """
    step = TrainStep(stage, mesh)
    trained, state, frozen = step.arrays()
    folder = workdir / stage.name
    checkpoints = Checkpoints(folder, stage.config.keep)
    first = 0
    facts = {**(stage.facts or {}), "frozen": digest_of(frozen)}
    restored = checkpoints.restore(trained, state)
    if restored is not None:
        first, trained, state, found = restored
        check_frozen(found, facts, folder)
    writer = None
    if jax.process_index() == 0:
        writer = MetricsWriter(workdir, stage.name, first, stage.config.steps, stage.size, watch)
    try:
        if first < stage.config.steps:
            trainer = Trainer(
                dataclasses.replace(stage, facts=facts), step, checkpoints, writer, workdir, seed, workers
            )
            trained = trainer.run(trained, state, frozen, first)
    finally:
        if writer is not None:
            writer.close()
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


class Trainer:
    """Steps and the hooks around them."""

    def __init__(
        self,
        stage: Stage,
        step: TrainStep,
        checkpoints: Checkpoints,
        writer: MetricsWriter | None,
        workdir: Path,
        seed: int,
        workers: int,
    ):
        self.stage, self.step, self.checkpoints, self.writer = stage, step, checkpoints, writer
        self.folder, self.workers = workdir / stage.name, workers
        self.key = jax.random.fold_in(jax.random.key(seed), sum(stage.name.encode()))

    def run(self, trained: Parameters, state: Any, frozen: Parameters, first: int) -> Parameters:
        """From step `first` to the last; what was trained. Raises Interrupted where it was asked to stop before."""
        stage, steps = self.stage, self.stage.config.steps
        unreadable = UnreadableCounter(stage.max_bad)
        with StopSignals() as stop, self._hooks(first, frozen) as hooks:
            for number, batch in enumerate(self._batches(first), first):
                batch, host_fields = split_host_fields(batch)
                batch = self.step.on_devices(batch)
                started = time.perf_counter()
                key = jax.random.fold_in(self.key, number)
                trained, state, metrics = self.step.run(trained, state, frozen, batch, key)
                metrics = {**metrics, **unreadable.count(host_fields)}
                done = number + 1
                stopping = stop.requested_at(done)
                result = StepResult(done, trained, state, frozen, metrics, started, done == steps, stopping)
                for hook in hooks:
                    hook(result)
                if stopping and done < steps:
                    self.checkpoints.wait()
                    raise Interrupted(f"{stage.name} saved at step {done}; the same command goes on from there")
        self.checkpoints.wait()
        return trained

    @contextlib.contextmanager
    def _hooks(self, first: int, frozen: Parameters) -> Iterator[list[Hook]]:
        """The stage's hooks in the order in which they are called."""
        stage, config = self.stage, self.stage.config
        save = Save(self.checkpoints, stage, first)
        log, preview = Log(stage, save, self.writer), Preview(stage, self.folder / "previews", self.writer)
        if stage.held_out is None or not config.eval_every:
            yield [log.previous, log, save, preview]
            return
        validation = Validation(stage.held_out, frozen, self.folder, self._placed)
        try:
            yield [log.previous, Evaluate(validation, config.eval_every, self.writer), log, save, preview]
        finally:
            validation.close()

    def _batches(self, first: int) -> Iterator[Any]:
        """Batches from step `first` on, read ahead by grain; the step is the whole state of the data."""
        import grain

        batch = self.stage.batch
        if jax.process_count() > 1:
            batch = partial(_rows_of, batch, rows=self.step.rows_here())
        return read_ahead(grain.MapDataset.range(first, self.stage.config.steps).map(batch), self.workers)

    def _placed(self, batch: Any) -> Any:
        """A batch of the held-out stories: as large as a step's, in one piece."""
        at = batch_sharding(self.step.mesh)
        return jax.tree.map(lambda x: place(x, at), split_host_fields(batch)[0])


def _rows_of(batch: Callable[..., Any], step: int, rows: np.ndarray) -> Any:
    return batch(step, rows)


class StopSignals:
    """SIGTERM, SIGINT and SIGHUP ask for a checkpoint and a clean end; a second SIGINT ends at once.

    Among several processes jax's own handler tells all of them of SIGTERM, and they agree on the step to stop at.
    """

    requested = False

    def requested_at(self, step: int) -> bool:
        """Whether to end after `step`; every process asks after every step."""
        if jax.process_count() == 1:
            return self.requested
        from jax.experimental.multihost_utils import reached_preemption_sync_point

        return reached_preemption_sync_point(step)

    def __enter__(self):
        self._before: dict[int, Any] = {}
        if jax.process_count() > 1:
            return self
        with contextlib.suppress(ValueError):  # not in the main thread: whoever runs us there handles signals
            for number in STOP_SIGNALS:
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_):
        for number, before in self._before.items():
            signal.signal(number, before)

    def _request(self, number: int, _frame: Any) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
