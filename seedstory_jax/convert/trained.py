"""A model on disk, wherever its parameters lie: a converted folder, or a workdir's stages over its base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from seedstory_jax.config import Config, ModelConfig, from_dict
from seedstory_jax.convert.plan import MODULES, module_shapes
from seedstory_jax.convert.store import MANIFEST, ModuleReader, read_manifest
from seedstory_jax.convert.tensor_files import read_json
from seedstory_jax.errors import UserError


@runtime_checkable
class Reader(Protocol):
    """Arrays of one module by dotted path."""

    names: Sequence[str]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one array."""

    def dtype(self, name: str) -> np.dtype:
        """Dtype of one array."""

    def read(self, name: str, layer: int | None = None) -> np.ndarray:
        """One array, or one row of it."""


@dataclass(frozen=True)
class StoredModel:
    """The modules that are there, their config, and the tokenizer's folder if there is one."""

    config: ModelConfig
    modules: Mapping[str, Reader]
    tokenizer: Path | None


class StageReader:
    """The arrays of a stage's newest checkpoint under one prefix, read through tensorstore, never all at once."""

    def __init__(self, folder: Path, prefix: str):
        """`folder` is the checkpoint's `trained` item, a flat dict of arrays saved by Orbax."""
        tree = read_json(folder / "_METADATA")["tree_metadata"]
        keys = [entry["key_metadata"][0]["key"] for entry in tree.values()]
        self._folder, self._prefix = folder.absolute(), prefix
        self.names: Sequence[str] = sorted(key.removeprefix(prefix) for key in keys if key.startswith(prefix))
        self._open: dict[str, Any] = {}

    def _store(self, name: str) -> Any:
        import tensorstore as ts

        if name not in self._open:
            base = {"driver": "file", "path": f"{self._folder}/"}
            kvstore = {"driver": "ocdbt", "base": base, "path": f"{self._prefix}{name}/"}
            self._open[name] = ts.open({"driver": "zarr", "kvstore": kvstore}, open=True, read=True).result()
        return self._open[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one array."""
        return tuple(self._store(name).shape)

    def dtype(self, name: str) -> np.dtype:
        """Dtype of one array."""
        return np.dtype(self._store(name).dtype.numpy_dtype)

    def read(self, name: str, layer: int | None = None) -> np.ndarray:
        """One array, or one row of it."""
        store = self._store(name)
        return (store if layer is None else store[layer]).read().result()


class LayeredReader:
    """Several readers of one module; the last one that has a name counts."""

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

    def read(self, name: str, layer: int | None = None) -> np.ndarray:
        """One array, or one row of it."""
        return self._where[name].read(name, layer)


class FreshReader:
    """Values that were drawn at the start and never trained (position tables above all), drawn again from the seed."""

    def __init__(self, model: ModelConfig, part: str, seed: int, names: Sequence[str]):
        """`names` of `part` are computed at the first read, and nothing else is."""
        self._model, self._part, self._seed = model, part, seed
        self.names: Sequence[str] = sorted(names)
        self._values: dict[str, np.ndarray] | None = None

    def _value(self, name: str) -> np.ndarray:
        if self._values is None:
            from seedstory_jax.training.parts import part_shapes, random_parameters

            shapes = part_shapes(self._model, self._part)
            wanted = {f"{self._part}.{each}": shapes[f"{self._part}.{each}"] for each in self.names}
            drawn = random_parameters(self._model, self._part, self._seed, wanted)
            self._values = {each: np.asarray(drawn[f"{self._part}.{each}"]) for each in self.names}
        return self._values[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one array."""
        return self._value(name).shape

    def dtype(self, name: str) -> np.dtype:
        """Dtype of one array."""
        return self._value(name).dtype

    def read(self, name: str, layer: int | None = None) -> np.ndarray:
        """One array, or one row of it."""
        return self._value(name) if layer is None else self._value(name)[layer]


def open_model(folder: Path) -> StoredModel:
    """Opens a converted folder or a workdir; raises UserError if it is neither."""
    if not folder.is_dir():
        raise UserError(f"no folder {str(folder)!r}")
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        config = from_dict(ModelConfig, manifest["config"], "manifest.config.")
        modules: dict[str, Reader] = {name: ModuleReader(folder / name) for name in manifest["modules"]}
        tokenizer = folder / "tokenizer"
        return StoredModel(config, modules, tokenizer if tokenizer.is_dir() else None)
    return open_workdir(folder)


def open_workdir(workdir: Path) -> StoredModel:
    """The newest checkpoints of a workdir's stages, in the order of training, over the base they started from.

    As in `training.parts.load_parameters`, a part that a stage has trained has its untrained rest from the seed.
    """
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} is neither a workdir (no config.json) nor a converted model (no {MANIFEST})")
    config = from_dict(Config, read_json(workdir / "config.json"), "config.")
    readers: dict[str, list[Reader]] = {name: [] for name in MODULES}
    from seedstory_jax.convert.smollm2 import resolve
    from seedstory_jax.training.parts import TRAINED_BY  # only what a workdir is, and only here
    from seedstory_jax.training.workspace import TOKENIZER

    given = Path(config.data.tokenizer) if config.data.tokenizer else workdir / TOKENIZER
    tokenizer = given if given.is_dir() else None
    if config.model.base:
        base = open_model(resolve(config.model.base))
        for name, reader in base.modules.items():
            readers[name].append(reader)
        tokenizer = tokenizer or base.tokenizer
    for stage, _ in TRAINED_BY:
        newest = _newest_step(workdir / stage / "checkpoints")
        if newest is None:
            continue
        for name in MODULES:
            reader = StageReader(newest / "trained", f"{name}.")
            if reader.names:
                readers[name].append(reader)
    for name, layers in readers.items():
        held = {path for reader in layers for path in reader.names}
        fresh = [path for path in module_shapes(config.model, name) if path not in held]
        if layers and fresh:
            layers.insert(0, FreshReader(config.model, name, config.seed, fresh))
    modules: dict[str, Reader] = {name: LayeredReader(layers) for name, layers in readers.items() if layers}
    if not modules:
        raise UserError(f"{workdir} holds no checkpoint yet; run train.py with this workdir first")
    return StoredModel(config.model, modules, tokenizer)


def _newest_step(folder: Path) -> Path | None:
    if not folder.is_dir():
        return None
    steps = [path for path in folder.iterdir() if path.name.isdigit() and (path / "trained").is_dir()]
    return max(steps, key=lambda path: int(path.name), default=None)
