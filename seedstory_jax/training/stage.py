"""What a training stage is: `StageSpec` before it is made (the registry's entry), `Stage` once it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from seedstory_jax.config import Config, StageConfig
from seedstory_jax.features.run_data import RunData
from seedstory_jax.models.parameters import Parameters
from seedstory_jax.training.metrics import StepSize
from seedstory_jax.training.validation import HeldOut

Metrics = dict[str, jax.Array]


@dataclass(frozen=True)
class Stage:
    """One stage, ready to train.

    Attributes:
        config: its section.
        parameters: by dotted name; arrays, or shapes with shardings where nothing is to be run.
        trainable: which of them train, by name.
        loss: (parameters, batch, key) -> a scalar, and further scalars to log.
        batch: (step, rows=all) -> numpy arrays with a leading batch axis, of those of the step's `batch_size` rows that
            `rows` picks; it must depend on nothing else. Fields named in HOST_FIELDS stay on the host.
        batch_size: rows of a step.
        preview: writes images of (parameters, step) into a folder.
        facts: saved with every checkpoint.
        held_out: the loss on held-out stories.
        size: what a step works on, for rates.
        max_bad: stories or images that cannot be read before the run stops.
    """

    name: str
    config: StageConfig
    parameters: Parameters
    trainable: Callable[[str], bool]
    loss: Callable[[Parameters, Any, jax.Array], tuple[jax.Array, Metrics]]
    batch: Callable[..., Any]
    batch_size: int
    preview: Callable[[Parameters, int, Path], None] | None = None
    facts: Mapping[str, Any] | None = None
    held_out: HeldOut | None = None
    size: StepSize = StepSize()
    max_bad: int = 100


@dataclass(frozen=True)
class StageSpec:
    """What is known of a stage before anything is loaded.

    Attributes:
        name: its section of the config and its folder in a workdir.
        summary: what it learns, in one sentence.
        trains: the part that it trains.
        make: (config, data, parameters of `needs`) -> the stage.
        reads: further parts that run in its step, frozen.
        encoders: parts whose encodings of images it reads (from the cache, or online in the step).
    """

    name: str
    summary: str
    trains: str
    make: Callable[[Config, RunData, Parameters], Stage]
    reads: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """All parts that it asks for."""
        return (*self.encoders, *self.reads, self.trains)
