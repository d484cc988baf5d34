"""Hooks of the training loop: evaluate, log, save, preview; each is called after every step, in order."""

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from seedstory_jax.checkpoints.stage import Checkpoints
from seedstory_jax.errors import UserError
from seedstory_jax.models.parameters import Parameters
from seedstory_jax.training.metrics import MetricsWriter
from seedstory_jax.training.optimizer import learning_rate
from seedstory_jax.training.stage import Metrics, Stage
from seedstory_jax.training.validation import Validation

log = logging.getLogger(__name__)


@dataclass
class StepResult:
    """One finished step, as hooks see it.

    Attributes:
        done: steps done.
        trained, state, frozen: parameters and the optimizer's state after it.
        metrics: scalars to log, on the devices; hooks may add to them.
        started: when it was begun, by `time.perf_counter`.
        last: whether it is the stage's last.
        stopping: whether the run was asked to stop after it.
    """

    done: int
    trained: Parameters
    state: Any
    frozen: Parameters
    metrics: Metrics
    started: float
    last: bool
    stopping: bool
    read_now: bool = field(default=False)  # its metrics may not wait for the next step


@runtime_checkable
class Hook(Protocol):
    """One concern of a run."""

    def __call__(self, step: StepResult) -> None:
        """Called after every step."""
        ...


class Evaluate:
    """Adds the loss on held-out stories to the metrics, every `eval_every` steps."""

    def __init__(self, validation: Validation, every: int, writer: MetricsWriter | None):
        self.validation, self.every, self.writer = validation, every, writer

    def __call__(self, step: StepResult) -> None:
        """Evaluates if it is time."""
        if step.done % self.every == 0:
            step.metrics.update(self.validation(step.done, step.trained))
            step.read_now = True
            if self.writer is not None:
                self.writer.throughput.pause()


class Save:
    """Saves a checkpoint every `save_every` steps, at the last, and where the run is asked to stop."""

    def __init__(self, checkpoints: Checkpoints, stage: Stage, first: int):
        self.checkpoints, self.stage, self.saved = checkpoints, stage, first

    def due(self, step: StepResult) -> bool:
        """Whether this step is saved."""
        return step.done % self.stage.config.save_every == 0 or step.last or step.stopping

    def __call__(self, step: StepResult) -> None:
        """Saves if it is time."""
        if self.due(step):
            facts = {"stage": self.stage.name, "step": step.done, **(self.stage.facts or {})}
            self.checkpoints.save(step.done, step.trained, step.state, facts)
            self.saved = step.done


class Preview:
    """Writes images every `preview_every` steps and at the end."""

    def __init__(self, stage: Stage, folder: Path, writer: MetricsWriter | None):
        self.stage, self.folder, self.writer = stage, folder, writer

    def __call__(self, step: StepResult) -> None:
        """Writes them if it is time."""
        every = self.stage.config.preview_every
        due = bool(every) and step.done % every == 0
        if self.stage.preview is not None and (due or step.last) and not step.stopping:
            self.stage.preview({**step.frozen, **step.trained}, step.done, self.folder)
            if self.writer is not None:
                self.writer.images(self.folder, step.done)
        if due and self.writer is not None:
            self.writer.throughput.pause()


class Log:
    """Reads each step's metrics while the devices work on the next, and refuses or reports what is not finite."""

    def __init__(self, stage: Stage, save: Save, writer: MetricsWriter | None):
        self.stage, self.save, self.writer = stage, save, writer
        self.schedule = learning_rate(stage.config.optimizer, stage.config.steps)
        self._pending: StepResult | None = None
        self._reported = 0.0  # when the newest step was finished
        self._skipped = 0  # steps that were not finite, up to the newest, in a row

    def previous(self, _: StepResult) -> None:
        """Writes the step before this one, whose metrics are there by now."""
        if self._pending is not None:
            self._write(self._pending)
            self._pending = None

    def __call__(self, step: StepResult) -> None:
        """Writes this step, too, if it was evaluated or is to be saved; else it waits for the next."""
        if step.read_now or self.save.due(step):
            self._write(step)
        else:
            self._pending = step

    def _write(self, step: StepResult) -> None:
        numbers = {name: float(value) for name, value in jax.device_get(step.metrics).items()}
        numbers["learning_rate"] = float(self.schedule(step.done - 1))
        # A step is begun before the one before has been waited for: its own time begins when that one was done.
        started, self._reported = max(step.started, self._reported), time.perf_counter()
        if self.writer is not None:
            self.writer.step(step.done, numbers, self._reported - started)
        if math.isfinite(numbers["loss"]) and math.isfinite(numbers["grad_norm"]):
            self._skipped = 0
        else:
            self._report(step.done, numbers)

    def _report(self, done: int, numbers: Mapping[str, float]) -> None:
        """Warns of a step that was skipped. Raises UserError if it may not be, or too many were in a row."""
        config, saved = self.stage.config, self.save.saved
        message = (
            f"stage {self.stage.name}, step {done}: loss {numbers['loss']}, gradient norm "
            f"{numbers['grad_norm']}; last good checkpoint: {f'step {saved}' if saved else 'none'}"
        )
        if config.on_nonfinite == "stop":
            raise UserError(message + "; lower the learning rate, or set on_nonfinite=skip")
        self._skipped += 1
        if self._skipped >= config.max_skipped:
            raise UserError(
                f"{message}; {self._skipped} steps in a row were skipped, {self.stage.name}.max_skipped allows no "
                "more: the weights do not move any longer; lower the learning rate, lengthen the warm-up, "
                "or compute in float32"
            )
        log.warning("%s; the step was skipped", message)


class UnreadableCounter:
    """Counts what batches say could not be read, over all worker processes. Raises UserError past `max_bad`."""

    def __init__(self, max_bad: int):
        self.max_bad, self.seen = max_bad, set()

    def count(self, host_fields: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Counters for the log; empty if the batch reports nothing."""
        numbers = {}
        if "unreadable" in host_fields:
            said = [str(note) for note in host_fields["unreadable"] if note]
            self.seen.update(note.partition(":")[0] for note in said)
            numbers["replaced_rows"] = float(len(said))
            if len(self.seen) > self.max_bad:
                raise UserError(
                    f"{len(self.seen)} stories or pictures cannot be read, data.max_bad {self.max_bad} are allowed; "
                    f"the last: {said[-1]}"
                )
        if "over_length" in host_fields:
            numbers["over_length_rows"] = float(host_fields["over_length"].sum())
        return numbers
