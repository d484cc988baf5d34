"""A converted model on disk, written a layer at a time and read in any part.

    DIR/manifest.json                     what it is, and which files it came from
    DIR/{vit,story,detokenizer,vae}/      one Orbax checkpoint a module: a flat dict, dotted path -> array
    DIR/tokenizer/                        the tokenizer's files

A module's folder is an ordinary Orbax checkpoint (zarr arrays, no OCDBT), which Orbax restores, whole or in part, onto
any sharding and dtype. But Orbax saves only leaves that lie in memory, all of them at once. So it is asked to save
one-element arrays under the right names, and each of them is then replaced by an array of the right shape that
tensorstore fills slot by slot.
"""

import contextlib
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seedstory_jax.errors import UserError
from seedstory_jax.files import read_json, write_json

MANIFEST = "manifest.json"
FORMAT = 1
CHUNK_BYTES = 32 << 20  # a chunk is what one read, and one shard of a sharded restore, has to touch


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax warns of every save without OCDBT that there is nothing to merge."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _dtype_name(dtype: np.dtype) -> str:
    return dtype.name if dtype.name == "bfloat16" else dtype.str


def _chunks(shape: tuple[int, ...], itemsize: int, stacked: bool) -> list[int]:
    """One layer at most, and rows of it up to `CHUNK_BYTES`."""
    chunks = [max(1, size) for size in shape]
    first = 1 if stacked and len(shape) > 1 else 0
    if stacked and shape:
        chunks[0] = 1
    if first < len(shape):
        row = int(np.prod(chunks[first + 1 :], dtype=np.int64)) * itemsize
        chunks[first] = max(1, min(chunks[first], CHUNK_BYTES // max(1, row)))
    return chunks


class ModuleWriter:
    """Writes one module's folder; the arrays are filled in any order, each slot once."""

    def __init__(self, folder: Path, names: Mapping[str, np.dtype]):
        """Lets Orbax lay out the tree for `names` (path -> dtype)."""
        import orbax.checkpoint as ocp

        self.folder = folder.absolute()
        placeholders = {name: np.zeros(1, dtype) for name, dtype in names.items()}
        with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
            checkpointer.save(self.folder, args=ocp.args.PyTreeSave(placeholders))

    def create(self, name: str, shape: tuple[int, ...], dtype: np.dtype, *, stacked: bool) -> Any:
        """An empty array in place of the placeholder: a tensorstore, to be written by `store[layer].write(...)`."""
        import tensorstore as ts

        shutil.rmtree(self.folder / name)
        metadata = {
            "shape": list(shape),
            "chunks": _chunks(shape, dtype.itemsize, stacked),
            "dtype": _dtype_name(dtype),
            "compressor": None,  # weights shrink by a fifth at most, and loading would wait for it
            "dimension_separator": ".",
        }
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": str(self.folder / name)},
            "metadata": metadata,
            "store_data_equal_to_fill_value": True,  # Orbax takes an absent chunk for damage
        }
        return ts.open(spec, create=True, open=False).result()


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes `manifest.json`."""
    write_json(folder / MANIFEST, {"format": FORMAT, **facts})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads `manifest.json`; raises UserError if the folder is no converted model of this format."""
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} is no converted model: it has no {MANIFEST} (seedstory convert import)")
    manifest = read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise UserError(f"{folder} has the format {manifest.get('format')}, this version reads {FORMAT}; convert again")
    return manifest
