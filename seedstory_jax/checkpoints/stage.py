"""Orbax checkpoints of one stage: what it trains, its optimizer, and the step, which is the data state too."""

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from seedstory_jax.checkpoints.digest import digest_of
from seedstory_jax.checkpoints.layout import (
    CHECKPOINTS,
    FACTS,
    OPTIMIZER,
    TRAINED,
    checkpoint_folder,
    committed_steps,
)
from seedstory_jax.errors import UserError
from seedstory_jax.models.parameters import Parameters

log = logging.getLogger(__name__)
FULL = "No space left on device"


class Checkpoints:
    """The checkpoints below one stage's folder: saved in the background, committed by a rename, the newest kept."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = folder
        self._last: int | None = None
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(
            (folder / CHECKPOINTS).absolute(), options=options, item_names=(TRAINED, OPTIMIZER, FACTS)
        )

    def save(self, step: int, trained: Parameters, optimizer: Any, facts: Mapping[str, Any]) -> None:
        """Starts saving; returns when the arrays are copied, before they are on disk. A step that is there stays.

        Raises UserError if the disk is full, also for the save before, which was still under way.
        """
        if step in committed_steps(self.folder):
            return
        facts = {**facts, "digest": digest_of(trained), "optimizer_digest": digest_of(_numbered(optimizer))}
        with self._one_line_if_full(step):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    trained=ocp.args.StandardSave(trained),
                    optimizer=ocp.args.StandardSave(jax.tree.leaves(optimizer)),
                    facts=ocp.args.JsonSave(facts),
                ),
            )
        self._last = step

    def restore(self, trained: Any, optimizer: Any) -> tuple[int, Parameters, Any, dict[str, Any]] | None:
        """The newest checkpoint that is whole, onto the shapes and shardings of the arguments; None without any.

        Whole: it can be read, and its arrays have the digests that were saved. A damaged one is passed over with a
        warning that names it and the one taken instead, and moved aside (N.damaged), so that its step is saved again.
        """
        damaged: list[str] = []
        for step in committed_steps(self.folder):
            try:
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        trained=ocp.args.StandardRestore(_abstract(trained)),
                        optimizer=ocp.args.StandardRestore(_abstract(jax.tree.leaves(optimizer))),
                        facts=ocp.args.JsonRestore(),
                    ),
                )
                found = digest_of(restored.trained), digest_of(_numbered(restored.optimizer))
                saved = tuple(restored.facts.get(name) for name in ("digest", "optimizer_digest"))
                if found != saved:
                    raise ValueError(f"its arrays have the digests {found}, {saved} were saved")
            except Exception as error:  # whatever a torn file makes orbax, tensorstore or json raise
                damaged.append(f"step {step} ({type(error).__name__}: {str(error).splitlines()[0][:200]})")
                continue
            if damaged:
                log.warning(
                    "damaged checkpoint in %s: %s; going on from step %d", self.folder, "; ".join(damaged), step
                )
                self._move_aside(newer_than=step)
            state = jax.tree.unflatten(jax.tree.structure(optimizer), restored.optimizer)
            return step, restored.trained, state, restored.facts
        if damaged:
            raise UserError(
                f"every checkpoint in {self.folder / CHECKPOINTS} is damaged: {'; '.join(damaged)}; "
                "delete that folder to train the stage again"
            )
        return None

    def _move_aside(self, newer_than: int) -> None:
        if jax.process_index() == 0:
            for step in committed_steps(self.folder):
                if step > newer_than:
                    at = checkpoint_folder(self.folder, step)
                    at.rename(at.with_name(f"{step}.damaged-{time.time_ns()}"))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints moved aside")
        self._manager.reload()

    def newest_fact(self, name: str) -> Any:
        """One of the facts saved with the newest checkpoint; None without a readable one."""
        for step in committed_steps(self.folder):
            path = checkpoint_folder(self.folder, step) / FACTS / "metadata"
            with contextlib.suppress(OSError, ValueError):
                return json.loads(path.read_text()).get(name)
        return None

    def wait(self) -> None:
        """Returns when everything that was saved is on disk. Raises UserError if the disk is full."""
        with self._one_line_if_full(self._last):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of the folder."""
        with self._one_line_if_full(self._last):
            self._manager.close()

    @contextlib.contextmanager
    def _one_line_if_full(self, step: int | None) -> Iterator[None]:
        """A full disk as one line: orbax raises it in many forms, from a thread, at the next call."""
        try:
            yield
        except Exception as error:
            if not any(FULL in str(one) for one in _causes(error)):
                raise
            folder = (self.folder / CHECKPOINTS).absolute()
            good = committed_steps(self.folder)[::-1]
            kept = f"those of steps {good} are good" if good else "there is no older one"
            raise UserError(
                f"the disk of {folder} is full ({shutil.disk_usage(folder).free / 1e6:.1f} MB free): the checkpoint of "
                f"step {step} was not written; {kept}; free some space and give the same command again"
            ) from error


def _numbered(optimizer: Any) -> dict[str, Any]:
    """The optimizer state's leaves by number, as they are saved."""
    return {str(number): leaf for number, leaf in enumerate(jax.tree.leaves(optimizer))}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from; of a group, all of them."""
    while error is not None:
        yield error
        for one in getattr(error, "exceptions", ()):
            yield from _causes(one)
        error = error.__cause__ or error.__context__


def _abstract(tree: Any) -> Any:
    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(shape, tree)
