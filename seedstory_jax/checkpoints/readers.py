"""A stored model, wherever its parameters lie: a converted folder, or a run's stages over its base.

One layering everywhere: base < stages in the order of training < (what nothing stores) random values from the seed.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from seedstory_jax.checkpoints.bases import base_folder
from seedstory_jax.checkpoints.converted import MANIFEST, read_manifest
from seedstory_jax.checkpoints.digest import combined, host_sum
from seedstory_jax.checkpoints.layout import (
    BEST,
    CHECKPOINTS,
    CONFIG_FILE,
    FACTS,
    TOKENIZER,
    TRAINED,
    checkpoint_folder,
    committed_steps,
    is_run,
    latest_step,
    read_config,
)
from seedstory_jax.checkpoints.parts import PARTS, module_shapes, part_shapes, random_parameters
from seedstory_jax.config import STAGES, ModelConfig, from_dict
from seedstory_jax.errors import UserError
from seedstory_jax.files import read_json

log = logging.getLogger(__name__)
NEWEST = "newest"
WHICH = (NEWEST, BEST)


@runtime_checkable
class Reader(Protocol):
    """Arrays of one part by their path inside it."""

    @property
    def names(self) -> Sequence[str]:
        """The paths, sorted."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one array."""
        ...

    def dtype(self, name: str) -> np.dtype:
        """Dtype of one array."""
        ...

    def read(self, name: str, index: Any = None) -> np.ndarray:
        """One array, or what a numpy index (a layer's number, slices) picks of it; no more than that is read."""
        ...


class StoreReader:
    """Arrays that tensorstore reads in pieces: an Orbax item of one flat dict, in either of Orbax's formats."""

    def __init__(self, folder: Path, prefix: str = ""):
        """`folder` is the item's; only names under `prefix` are there, without it. UserError if it is no such item."""
        self.folder, self._prefix = folder.absolute(), prefix
        if not (folder / "_METADATA").is_file():
            raise UserError(f"{folder} holds no stored arrays: it has no _METADATA")
        metadata = read_json(folder / "_METADATA")
        keys = [entry["key_metadata"][0]["key"] for entry in metadata["tree_metadata"].values()]
        self.names: Sequence[str] = sorted(key.removeprefix(prefix) for key in keys if key.startswith(prefix))
        self._ocdbt = (self.folder / "manifest.ocdbt").is_file()
        self._open: dict[str, Any] = {}

    def store(self, name: str) -> Any:
        """The tensorstore of one array. Raises UserError if it is missing or damaged."""
        import tensorstore as ts

        if name not in self._open:
            key = f"{self._prefix}{name}"
            store: dict[str, Any] = {"driver": "file", "path": str(self.folder / key)}
            if self._ocdbt:
                base = {"driver": "file", "path": f"{self.folder}/"}
                store = {"driver": "ocdbt", "base": base, "path": f"{key}/"}
            try:
                self._open[name] = ts.open({"driver": "zarr", "kvstore": store}, open=True, read=True).result()
            except ValueError as error:
                raise UserError(f"{self.folder / key}: missing or damaged: {str(error).splitlines()[0]}") from error
        return self._open[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one array."""
        return tuple(self.store(name).shape)

    def dtype(self, name: str) -> np.dtype:
        """Dtype of one array."""
        return np.dtype(self.store(name).dtype.numpy_dtype)

    def read(self, name: str, index: Any = None) -> np.ndarray:
        """One array or a piece of it. Raises UserError if that cannot be read."""
        store = self.store(name)
        try:
            return (store if index is None else store[index]).read().result()
        except ValueError as error:
            raise UserError(f"{self.folder / (self._prefix + name)}: damaged: {str(error).splitlines()[0]}") from error

    def digest(self) -> str:
        """`digest_of` the stored arrays, one in memory at a time."""
        return combined(
            (f"{self._prefix}{name}", self.shape(name), self.dtype(name), host_sum(self.read(name)))
            for name in self.names
        )


class LayeredReader:
    """Several readers of one part; the last one that has a name counts."""

    def __init__(self, readers: Sequence[Reader]):
        """`readers` from the base to the last stage."""
        self._where = {name: reader for reader in readers for name in reader.names}
        self.names: Sequence[str] = sorted(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one array."""
        return self._where[name].shape(name)

    def dtype(self, name: str) -> np.dtype:
        """Dtype of one array."""
        return self._where[name].dtype(name)

    def read(self, name: str, index: Any = None) -> np.ndarray:
        """One array or a piece of it."""
        return self._where[name].read(name, index)


class FreshReader:
    """Values that were random at the start and never trained (position tables above all), made again from the seed."""

    def __init__(self, model: ModelConfig, part: str, seed: int, names: Sequence[str]):
        """`names` of `part` are computed at the first read, and nothing else is."""
        self._model, self._part, self._seed = model, part, seed
        self.names: Sequence[str] = sorted(names)
        self._values: dict[str, np.ndarray] | None = None

    def _value(self, name: str) -> np.ndarray:
        if self._values is None:
            shapes = part_shapes(self._model, self._part)
            wanted = {f"{self._part}.{each}": shapes[f"{self._part}.{each}"] for each in self.names}
            made = random_parameters(self._model, self._part, self._seed, wanted)
            self._values = {each: np.asarray(made[f"{self._part}.{each}"]) for each in self.names}
        return self._values[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one array."""
        return self._value(name).shape

    def dtype(self, name: str) -> np.dtype:
        """Dtype of one array."""
        return self._value(name).dtype

    def read(self, name: str, index: Any = None) -> np.ndarray:
        """One array or a piece of it."""
        return self._value(name) if index is None else self._value(name)[index]


@dataclass(frozen=True)
class StoredModel:
    """The parts that are there, their config, and the tokenizer's folder if there is one."""

    config: ModelConfig
    modules: Mapping[str, Reader]
    tokenizer: Path | None


def open_model(folder: Path, which: str = NEWEST) -> StoredModel:
    """Opens a converted folder or a run's workdir.

    Args:
        folder: either of them.
        which: "newest", or "best": of a run's stages that were evaluated, what did best on held-out stories.

    Raises UserError if it is neither, or holds nothing that can be read.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {str(folder)!r}")
    if which not in WHICH:
        raise UserError(f"checkpoint={which!r}: choose one of {', '.join(WHICH)}")
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        config = from_dict(ModelConfig, manifest["config"], "manifest.config.")
        modules: dict[str, Reader] = {name: StoreReader(folder / name) for name in manifest["modules"]}
        tokenizer = folder / "tokenizer"
        return StoredModel(config, modules, tokenizer if tokenizer.is_dir() else None)
    if not is_run(folder):
        raise UserError(f"{folder} is neither a workdir (no {CONFIG_FILE}) nor a converted model (no {MANIFEST})")
    config = read_config(folder)
    layers = layers_of(config.model, PARTS, folder, which=which)
    modules = {}
    for part, readers in layers.items():
        held = {name for reader in readers for name in reader.names}
        fresh = [name for name in module_shapes(config.model, part) if name not in held]
        if fresh:  # a part that a stage has trained has its untrained rest from the seed
            readers = [FreshReader(config.model, part, config.seed, fresh), *readers]
        modules[part] = LayeredReader(readers)
    if not modules:
        raise UserError(f"{folder} holds no checkpoint yet; run train.py with this workdir first")
    given = Path(config.data.tokenizer) if config.data.tokenizer else folder / TOKENIZER
    tokenizer = given if given.is_dir() else None
    if tokenizer is None and config.model.base:
        tokenizer = open_model(base_folder(config.model.base)).tokenizer
    return StoredModel(config.model, modules, tokenizer)


def layers_of(
    model: ModelConfig,
    parts: Sequence[str] | Mapping[str, Any],
    workdir: Path,
    *,
    stages: Sequence[str] = STAGES,
    which: str = NEWEST,
) -> dict[str, list[Reader]]:
    """What is stored of each of `parts`: its base's reader, then those of the stages of `workdir` that trained it.

    A part of which nothing is stored is left out. `stages`: those that count, in the order of training. Raises
    UserError for a base that lacks a part, and for a stage of which no checkpoint can be read.
    """
    layers: dict[str, list[Reader]] = {}
    for stage in stages:
        for part, reader in _open_stage(workdir / stage, parts, which).items():
            layers.setdefault(part, []).append(reader)
    trained = {part: {name for reader in layers.get(part, ()) for name in reader.names} for part in parts}
    lacking = [part for part in parts if set(module_shapes(model, part)) - trained[part]]
    if model.base and lacking:
        base = base_folder(model.base)
        stored = open_model(base)
        for part in lacking:
            if part in stored.modules:
                layers.setdefault(part, []).insert(0, stored.modules[part])
            elif is_run(base):  # a converted language model alone has no other part
                raise UserError(f"model.base={base} is a run without a trained {part}: choose a base that has one")
    return layers


def _open_stage(folder: Path, parts: Sequence[str] | Mapping[str, Any], which: str) -> dict[str, Reader]:
    """A reader for each of `parts` that the stage trained, of its newest checkpoint that is whole."""
    folder, damaged = _chosen(folder, which), []
    for step in committed_steps(folder):
        at = checkpoint_folder(folder, step)
        try:
            readers = {part: StoreReader(at / TRAINED, f"{part}.") for part in parts}
            if not any(reader.names for reader in readers.values()):
                return {}  # of another stage's part: not worth reading
            check_digest(at)
        except UserError as error:
            damaged.append(f"step {step} ({error})")
            continue
        if damaged:
            log.warning("damaged checkpoint in %s: %s; taking step %d", folder, "; ".join(damaged), step)
        return {part: reader for part, reader in readers.items() if reader.names}
    if damaged:
        raise UserError(
            f"every checkpoint in {folder / CHECKPOINTS} is damaged: {'; '.join(damaged)}; train the stage again"
        )
    return {}


def _chosen(folder: Path, which: str) -> Path:
    return folder / BEST if which == BEST and latest_step(folder / BEST) is not None else folder


def fingerprint(workdir: Path, which: str = NEWEST) -> dict[str, list[Any]]:
    """[step, digest] of every trained stage: what tells two states of a workdir apart."""
    found = {}
    for stage in STAGES:
        folder = _chosen(workdir / stage, which)
        step = latest_step(folder)
        if step is not None:
            facts = read_json(checkpoint_folder(folder, step) / FACTS / "metadata")
            found[stage] = [step, facts.get("digest")]
    return found


def check_digest(checkpoint: Path) -> None:
    """Reads a checkpoint's trained arrays. Raises UserError if one cannot be read, or they are not what was saved."""
    facts = read_json(checkpoint / FACTS / "metadata")
    found = StoreReader(checkpoint / TRAINED).digest()
    if facts.get("digest", found) != found:
        raise UserError(f"{checkpoint}: the arrays have the digest {found}, {facts['digest']} was saved")
