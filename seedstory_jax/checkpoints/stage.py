"""Orbax checkpoints of one stage: what it trains, its optimizer, and the step, which is the data state too."""

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from seedstory_jax.data.array_cache import digest
from seedstory_jax.errors import UserError
from seedstory_jax.models.parameters import Parameters

log = logging.getLogger(__name__)
FOLDER = "checkpoints"
BEST = "best"  # beside them: what did best on held-out stories
FULL = "No space left on device"


class Checkpoints:
    """The checkpoints below one stage's folder: saved in the background, committed by a rename, the newest kept."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = folder
        self._last: int | None = None
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(
            (folder / FOLDER).absolute(), options=options, item_names=("trained", "optimizer", "facts")
        )

    def save(self, step: int, trained: Parameters, optimizer: Any, facts: Mapping[str, Any]) -> None:
        """Starts saving; returns when the arrays are copied, before they are on disk. A step that is there stays.

        Raises UserError if the disk is full, also for the save before, which was still under way.
        """
        if step in self._manager.all_steps():
            return
        with self._told_if_full(step):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    trained=ocp.args.StandardSave(trained),
                    optimizer=ocp.args.StandardSave(jax.tree.leaves(optimizer)),
                    facts=ocp.args.JsonSave(dict(facts)),
                ),
            )
        self._last = step

    def restore(self, trained: Any, optimizer: Any) -> tuple[int, Parameters, Any, dict[str, Any]] | None:
        """The newest checkpoint that can be read, onto the shapes and shardings of the arguments; None without any.

        A damaged newest one is passed over with a warning that names it and the one taken instead.
        """
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        trained=ocp.args.StandardRestore(_abstract(trained)),
                        optimizer=ocp.args.StandardRestore(_abstract(jax.tree.leaves(optimizer))),
                        facts=ocp.args.JsonRestore(),
                    ),
                )
            except Exception as error:  # whatever a torn file makes orbax, tensorstore or json raise
                damaged.append(f"step {step} ({type(error).__name__})")
                continue
            if damaged:
                log.warning("damaged checkpoint in %s: %s; going on from step %d", self.folder, damaged, step)
            state = jax.tree.unflatten(jax.tree.structure(optimizer), restored.optimizer)
            return step, restored.trained, state, restored.facts
        if damaged:
            raise UserError(
                f"every checkpoint in {self.folder / FOLDER} is damaged: {', '.join(damaged)}; "
                "delete that folder to train the stage again"
            )
        return None

    def newest_fact(self, name: str) -> Any:
        """One of the facts saved with the newest checkpoint; None without a readable one."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            path = self.folder / FOLDER / str(step) / "facts" / "metadata"
            with contextlib.suppress(OSError, ValueError):
                return json.loads(path.read_text()).get(name)
        return None

    def wait(self) -> None:
        """Returns when everything that was saved is on disk. Raises UserError if the disk is full."""
        with self._told_if_full(self._last):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of the folder."""
        with self._told_if_full(self._last):
            self._manager.close()

    @contextlib.contextmanager
    def _told_if_full(self, step: int | None) -> Iterator[None]:
        """A full disk as one line: orbax raises it in many forms, from a thread, at the next call."""
        try:
            yield
        except Exception as error:
            if not any(FULL in str(one) for one in _causes(error)):
                raise
            folder = (self.folder / FOLDER).absolute()
            good = sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())
            kept = f"those of steps {good} are good" if good else "there is no older one"
            raise UserError(
                f"the disk of {folder} is full ({shutil.disk_usage(folder).free / 1e6:.1f} MB free): the checkpoint of "
                f"step {step} was not written; {kept}; free some space and give the same command again"
            ) from error


def latest_step(folder: Path) -> int | None:
    """The newest committed step below a stage's folder, None without any."""
    root = folder / FOLDER
    steps = [int(path.name) for path in root.glob("*") if path.name.isdigit()] if root.is_dir() else []
    return max(steps, default=None)


def load_trained(folder: Path, abstract: Mapping[str, Any], prefix: str = "") -> Parameters:
    """What a stage trained under `prefix`, from its newest readable checkpoint, with `abstract`'s shapes and shardings.

    `abstract` may cover more names than were trained. Raises UserError for names that it lacks, for other shapes, and
    if no checkpoint can be read.
    """
    root = (folder / FOLDER).absolute()
    problems = []
    for step in sorted((int(path.name) for path in root.glob("*") if path.name.isdigit()), reverse=True):
        try:
            with quiet_orbax(), ocp.StandardCheckpointer() as reader:
                saved = {**reader.metadata(root / str(step) / "trained").item_metadata.tree}
                stored = {name: found for name, found in saved.items() if name.startswith(prefix)}
                if not stored:
                    raise UserError(
                        f"checkpoint {root / str(step)} holds nothing of {prefix.rstrip('.')!r} but, for example, "
                        f"{sorted(saved)[:2]}; it belongs to another stage"
                    )
                unknown = sorted(set(stored) - set(abstract))
                if unknown:
                    raise UserError(
                        f"checkpoint {root / str(step)} holds {len(unknown)} parameters that this config has not, "
                        f"{unknown[:3]} for example; sample with the config it was trained with"
                    )
                for name, found in stored.items():
                    if tuple(found.shape) != tuple(abstract[name].shape):
                        raise UserError(
                            f"checkpoint {root / str(step)}: {name} has shape {tuple(found.shape)}, "
                            f"the config says {tuple(abstract[name].shape)}"
                        )
                others = {n: jax.ShapeDtypeStruct(found.shape, found.dtype) for n, found in saved.items()}
                wanted = _abstract({name: abstract.get(name, others[name]) for name in saved})
                restored = reader.restore(root / str(step) / "trained", wanted)
                return {name: restored[name] for name in stored}
        except UserError:
            raise
        except Exception as error:  # whatever a torn file makes orbax or tensorstore raise
            problems.append(f"step {step}: {type(error).__name__}")
    if problems:
        raise UserError(f"no readable checkpoint in {root} ({'; '.join(problems)}); train the stage again")
    raise UserError(f"no checkpoint in {root}; run train.py with this workdir first")


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Orbax warns that an item read by itself has no metadata file of a whole checkpoint, which it needs not."""
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    try:
        yield
    finally:
        absl.setLevel(level)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from; of a group, all of them."""
    while error is not None:
        yield error
        for one in getattr(error, "exceptions", ()):
            yield from _causes(one)
        error = error.__cause__ or error.__context__


@jax.jit
def _checksums(parameters: Parameters) -> dict[str, jax.Array]:
    """A 32-bit sum over each array's bits, weighted by place: whole numbers, so that no layout changes it."""

    def one(value: jax.Array) -> jax.Array:
        kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[value.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(value, kind).astype(jnp.uint32).reshape(-1)
        return jnp.sum(bits * (jnp.arange(bits.size, dtype=jnp.uint32) * jnp.uint32(2654435761) + jnp.uint32(1)))

    return jax.tree.map(one, parameters)


def frozen_hash(parameters: Parameters) -> str:
    """Sixteen hex digits of parameters that a checkpoint refers to but does not hold."""
    sums = jax.device_get(_checksums(parameters))
    facts = {name: [list(parameters[name].shape), str(parameters[name].dtype), int(sums[name])] for name in sums}
    return digest(facts)


def write_json(path: Path, value: Any) -> None:
    """Writes beside and renames, so that a reader never sees half a file."""
    beside = path.with_name(path.name + ".partial")
    beside.write_text(json.dumps(value, indent=1) + "\n")
    beside.replace(path)


def _abstract(tree: Any) -> Any:
    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(shape, tree)
