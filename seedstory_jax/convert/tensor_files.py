"""Files of named tensors, read lazily: safetensors and torch's archives, both mapped into memory.

Nothing is read before a tensor is asked for, and what is read belongs to the page cache, not to the process.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from seedstory_jax.convert.rules import contiguous
from seedstory_jax.convert.torch_archive import TorchArchive
from seedstory_jax.errors import UserError
from seedstory_jax.files import read_json

SAFETENSORS_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
# What DistributedDataParallel, torch.compile and FSDP put into the names of what they wrap.
WRAPPED = re.compile(r"^module\.|_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})$")


class SafetensorsFile(Mapping[str, np.ndarray]):
    """One `.safetensors` file; each tensor is a read-only view of the mapped file."""

    def __init__(self, path: Path):
        """Reads the header; raises UserError if it is broken or the file is shorter than it promises."""
        self.path = path
        size = path.stat().st_size
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if size < 8 or length > size - 8:
                    raise UserError(
                        f"{path}: truncated: its header alone needs {length + 8} bytes, the file has {size}"
                    )
                header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            self._start = 8 + length
            self._tensors = {name: _entry(name, entry) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: no safetensors file: its header cannot be read ({error})") from error
        end = self._start + max((stop for *_, stop in self._tensors.values()), default=0)
        if end > size:
            raise UserError(
                f"{path}: truncated: its header promises {end} bytes, the file has {size}; download it again"
            )
        self._bytes: np.ndarray | None = None

    def __getitem__(self, name: str) -> np.ndarray:
        dtype, shape, start, stop = self._tensors[name]
        if self._bytes is None:
            self._bytes = np.memmap(self.path, dtype=np.uint8, mode="r")
        return self._bytes[self._start + start : self._start + stop].view(dtype).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return self._tensors[name][1]

    def dtype(self, name: str) -> np.dtype:
        """Dtype of a tensor, from the header."""
        return self._tensors[name][0]


def _entry(name: str, entry: Mapping[str, Any]) -> tuple[np.dtype, tuple[int, ...], int, int]:
    if entry["dtype"] not in SAFETENSORS_DTYPES:
        raise UserError(f"tensor {name} has the dtype {entry['dtype']}, which is not supported")
    dtype, shape = SAFETENSORS_DTYPES[entry["dtype"]], tuple(int(n) for n in entry["shape"])
    start, stop = entry["data_offsets"]
    if stop - start != math.prod(shape) * dtype.itemsize or start < 0:
        raise UserError(f"tensor {name}: {stop - start} bytes do not hold {list(shape)} of {entry['dtype']}")
    return dtype, shape, start, stop


class ArrayFile(dict[str, np.ndarray]):
    """Arrays in memory where a file's tensors are expected."""

    path = Path("(computed)")

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array."""
        return self[name].shape

    def dtype(self, name: str) -> np.dtype:
        """Dtype of an array."""
        return self[name].dtype


TensorFile = SafetensorsFile | TorchArchive | ArrayFile


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of one or more files, e.g. of all shards of a model; a name may stand in one of them only."""

    def __init__(self, files: Sequence[Any], keep: Callable[[str], bool] = lambda name: True):
        """`keep` filters names (without wrappers' prefixes), e.g. for the part of a larger model that is wanted."""
        self.files = tuple(files)
        self._where: dict[str, tuple[Any, str]] = {}
        for file in files:
            for stored in file:
                name = unwrapped(stored)
                if name in self._where:
                    raise UserError(f"tensor {name} stands in {self._where[name][0].path} and in {file.path}")
                if keep(name):
                    self._where[name] = file, stored

    def __getitem__(self, name: str) -> np.ndarray:
        file, stored = self._where[name]
        return file[stored]

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        file, stored = self._where[name]
        return file.shape(stored)

    def dtype(self, name: str) -> np.dtype:
        """Dtype of a tensor, without reading it."""
        file, stored = self._where[name]
        return file.dtype(stored)

    def filtered(self, keep: Callable[[str], bool]) -> "Tensors":
        """Those whose names `keep` accepts."""
        return Tensors(self.files, keep)


def unwrapped(name: str) -> str:
    """A tensor's name without what training wrappers put into it."""
    while (shorter := WRAPPED.sub("", name)) != name:
        name = shorter
    return name


def open_file(path: Path) -> TensorFile:
    """One file of tensors, by its ending; raises UserError if there is none or it is broken."""
    if not path.is_file():
        raise UserError(f"no file {path}")
    return SafetensorsFile(path) if path.suffix == ".safetensors" else TorchArchive(path)


def weight_files(folder: Path, stem: str = "*") -> list[Path]:
    """The files that make up one model in a folder: safetensors before `.bin`, full precision before the fp16 variant.

    An index (`*.index.json`) or shard names (`...-00001-of-00003`) say what belongs together. Raises UserError if a
    shard is missing; an empty list means that there are no weights.
    """
    for ending in ("safetensors", "bin"):
        for variant in ("", ".fp16"):
            index = sorted(folder.glob(f"{stem}.{ending}.index{variant}.json"))
            index = [path for path in index if variant or ".fp16." not in path.name]
            if index:
                names = sorted(set(read_json(index[0]).get("weight_map", {}).values()))
                return [_present(folder / name, index[0]) for name in names]
            files = sorted(folder.glob(f"{stem}{variant}.{ending}"))
            files = [path for path in files if path.name not in NO_WEIGHTS and (variant or ".fp16" not in path.name)]
            shards = [path for path in files if SHARD.match(path.name.removesuffix(f".{ending}"))]
            if shards:
                parts = SHARD.match(shards[0].name.removesuffix(f".{ending}"))
                if parts is not None and len(shards) != int(parts[2]):
                    raise UserError(f"{folder}: {len(shards)} of {int(parts[2])} shards of {parts[1]} are there")
                return shards
            if files:
                return files[:1]
    return []


# What training scripts and hub folders put beside the weights under the same endings.
NO_WEIGHTS = (
    "training_args.bin",
    "optimizer.bin",
    "optimizer.pt",
    "scheduler.bin",
    "scheduler.pt",
    "consolidated.safetensors",
)


def _present(path: Path, index: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path} is missing, though {index.name} lists it; download it again")
    return path


def checksum(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Outgoing:
    """One tensor to be written: its shape and dtype are known beforehand, its values only when its turn comes."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(path: Path, tensors: Mapping[str, Outgoing], done: Callable[[int], Any] = lambda _: None) -> None:
    """Writes a `.safetensors` file one tensor at a time; `done` hears the size of each."""
    codes = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in tensors.items():
        offsets = [start, start + tensor.bytes]
        header[name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        start += tensor.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            values = contiguous(tensor.read(), tensor.dtype)
            if values.shape != tensor.shape:
                raise ValueError(f"{name}: {values.shape} was read, {tensor.shape} was announced")
            file.write(values.reshape(-1).view(np.uint8).data)
            done(tensor.bytes)
