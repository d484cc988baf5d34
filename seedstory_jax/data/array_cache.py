"""Large derived arrays on disk: made once in chunks, read back by memory map, told apart by a hash of their makers."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_dtypes import bfloat16
from tqdm import tqdm

from seedstory_jax.files import write_text

# numpy's file format does not know bfloat16: its bits are stored.
STORED_AS = {np.dtype(bfloat16): np.dtype(np.uint16)}


def digest(key: Mapping[str, Any]) -> str:
    """Sixteen hex digits that stand for everything in `key` (JSON values)."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def digest_arrays(arrays: Mapping[str, Any]) -> str:
    """Sixteen hex digits over names, shapes, dtypes and bytes of named arrays, whatever their order."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {value.shape} {value.dtype}".encode())
        total.update(value.view(np.uint8).reshape(-1).data)
    return total.hexdigest()[:16]


def cached_array(
    folder: Path,
    name: str,
    key: Mapping[str, Any],
    shape: tuple[int, ...],
    dtype: Any,
    produce: Callable[[int, int], np.ndarray],
    chunk: int = 256,
) -> np.ndarray:
    """name-<digest of key>.npy in `folder` as a read-only memory map, made by `produce(start, stop)` if missing.

    Rows are produced `chunk` at a time into a file beside, renamed when whole; a run that was stopped goes on behind
    the last chunk it finished. bfloat16 is stored by its bits, see `open_array`.
    """
    dtype = np.dtype(dtype)
    stored = STORED_AS.get(dtype, dtype)
    path = array_path(folder, name, key)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        beside, progress = path.with_suffix(".partial"), path.with_suffix(".rows")
        start = _rows_done(progress) if beside.exists() else 0
        mode = "r+" if start else "w+"
        rows = np.lib.format.open_memmap(
            beside, mode=mode, dtype=None if start else stored, shape=None if start else shape
        )
        with tqdm(total=shape[0], initial=start, desc=f"{name:>13}", unit="image", mininterval=1.0) as bar:
            for first in range(start, shape[0], chunk):
                stop = min(first + chunk, shape[0])
                rows[first:stop] = np.ascontiguousarray(produce(first, stop), dtype).view(stored)
                rows.flush()
                write_text(progress, str(stop))
                bar.update(stop - first)
        del rows
        beside.replace(path)
        progress.unlink(missing_ok=True)
    return open_array(path, dtype)


def _rows_done(progress: Path) -> int:
    """Rows that a run before this one finished; 0 if it was killed before or while it said so."""
    try:
        return int(progress.read_text())
    except (OSError, ValueError):
        return 0


def array_path(folder: Path, name: str, key: Mapping[str, Any]) -> Path:
    """Where `cached_array` keeps the array of that name and key."""
    return folder / f"{name}-{digest(key)}.npy"


def open_array(path: Path, dtype: Any) -> np.ndarray:
    """The read-only memory map of an array that was stored as `dtype`."""
    return np.load(path, mmap_mode="r").view(np.dtype(dtype))
