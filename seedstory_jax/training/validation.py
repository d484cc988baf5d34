"""A stage's loss on stories that it does not train on, and the checkpoint that did best."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from seedstory_jax.checkpoints.layout import BEST
from seedstory_jax.checkpoints.stage import Checkpoints
from seedstory_jax.models.parameters import Parameters

Loss = Callable[[Parameters, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


@dataclass(frozen=True)
class HeldOut:
    """The loss without dropout, and the same batches every time: `batch(0)` ... `batch(batches - 1)`."""

    loss: Loss
    batch: Callable[[int], Any]
    batches: int


class Validation:
    """Evaluates now and then; keeps what has the lowest loss in `folder/best`, beside the stage's own checkpoints."""

    def __init__(self, held_out: HeldOut, frozen: Parameters, folder: Path, place: Callable[[Any], Any]):
        self.held_out, self.frozen, self._place = held_out, frozen, place
        self._checkpoints = Checkpoints(folder / BEST, keep=1)
        self.best = self._checkpoints.newest_fact("validation_loss")

        def evaluate(trained: Parameters, frozen: Parameters, batch: Any, key: jax.Array):
            total, metrics = held_out.loss({**frozen, **trained}, batch, key)
            return {"loss": total, **metrics}

        self._evaluate = jax.jit(evaluate)

    def __call__(self, step: int, trained: Parameters) -> dict[str, float]:
        """Means over the held-out batches, as `validation_<name>`; noise is drawn alike each time."""
        sums: dict[str, jax.Array] = {}
        for number in range(self.held_out.batches):
            key = jax.random.key(number)
            values = self._evaluate(trained, self.frozen, self._place(self.held_out.batch(number)), key)
            sums = {name: sums.get(name, jnp.float32(0)) + value for name, value in values.items()}
        numbers = {f"validation_{name}": float(value) / self.held_out.batches for name, value in sums.items()}
        loss = numbers["validation_loss"]
        if self.best is None or loss < self.best:
            self.best = loss
            self._checkpoints.save(step, trained, {"step": jnp.int32(step)}, {"step": step, "validation_loss": loss})
        return numbers

    def close(self) -> None:
        """Waits for the best checkpoint to be on disk."""
        self._checkpoints.close()
