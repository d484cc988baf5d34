"""torch's `.bin`, `.pt` and `.pth` archives, read without torch and without running anything that they hold.

Since torch 1.6 such a file is a zip archive: `data.pkl` names the tensors, `data/N` are their storages, uncompressed,
with a CRC-32 each. The pickle is interpreted here and knows tensors alone; storages are mapped, and each is checked
against its CRC before its first number is given out.
"""

import pickletools
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from seedstory_jax.errors import UserError

STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
    "UntypedStorage": np.dtype(np.uint8),
}
WRAPPERS = ("state_dict", "module", "model")  # keys under which training scripts nest the tensors
OLD_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # what files before torch 1.6 begin with
PIECE = 64 << 20  # bytes that a CRC takes at a time


@dataclass(frozen=True)
class _Global:
    """A name in the pickle; it is looked up in no module."""

    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    count: int


@dataclass(frozen=True)
class _Tensor:
    """A view into a storage: offset, shape and strides count elements."""

    storage: _Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchArchive(Mapping[str, np.ndarray]):
    """One archive of named tensors; each is a read-only view of the mapped file."""

    def __init__(self, path: Path):
        """Reads names and shapes; raises UserError for a file that is damaged, too old, or not only tensors."""
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self._records = {info.filename: info for info in archive.infolist()}
                pickles = [name for name in self._records if name.endswith("/data.pkl")]
                if len(pickles) != 1 or any("/code/" in name for name in self._records):
                    raise UserError(
                        f"{path}: a zip archive, but no file of tensors (it holds a program, or no data.pkl)"
                    )
                self._folder = pickles[0].removesuffix("data.pkl")
                order = self._folder + "byteorder"
                if order in self._records and archive.read(order).strip() != b"little":
                    raise UserError(f"{path}: written on a big-endian machine, which is not supported")
                program = archive.read(pickles[0])
        except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: {_what_else(path, error)}") from error
        try:
            state = _interpret(program)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
            raise UserError(f"{path}: damaged: its list of tensors cannot be read ({error})") from error
        self._tensors: dict[str, _Tensor] = self._named(state)
        self._checked: set[str] = set()
        self._bytes: np.ndarray | None = None

    def _named(self, state: Any) -> dict[str, _Tensor]:
        while isinstance(state, dict) and (key := next((key for key in WRAPPERS if key in state), None)):
            if not isinstance(state[key], dict):
                break
            state = state[key]
        if not isinstance(state, dict):
            raise UserError(f"{self.path}: holds a {type(state).__name__.strip('_')}, not tensors by name")
        strangers = [str(name) for name, value in state.items() if not isinstance(value, _Tensor)]
        if strangers:
            raise UserError(f"{self.path}: {len(strangers)} entries are no tensors: {', '.join(strangers[:5])}")
        for name, tensor in state.items():
            last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides))
            record = self._records.get(f"{self._folder}data/{tensor.storage.key}")
            held = tensor.storage.count * tensor.storage.dtype.itemsize
            inside = min(tensor.offset, *tensor.shape, *tensor.strides, 0) == 0 and (
                0 in tensor.shape or (last + 1) * tensor.dtype.itemsize <= held
            )
            if record is None or record.file_size != held or not inside or len(tensor.shape) != len(tensor.strides):
                raise UserError(f"{self.path}: damaged: tensor {name} does not lie in its storage")
        return {str(name): tensor for name, tensor in state.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        values = self._storage(tensor.storage.key).view(tensor.dtype)
        strides = tuple(stride * tensor.dtype.itemsize for stride in tensor.strides)
        return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides, writeable=False)

    def _storage(self, key: str) -> np.ndarray:
        """The bytes of one storage; compared with the archive's CRC the first time."""
        record = self._records[f"{self._folder}data/{key}"]
        if self._bytes is None:
            self._bytes = np.memmap(self.path, dtype=np.uint8, mode="r")
        header = bytes(self._bytes[record.header_offset : record.header_offset + 30])
        name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
        start = record.header_offset + 30 + name + extra
        values = self._bytes[start : start + record.file_size]
        if key not in self._checked:
            crc = 0
            for piece in range(0, len(values), PIECE):
                crc = zlib.crc32(values[piece : piece + PIECE], crc)
            stored = record.compress_type == zipfile.ZIP_STORED
            if header[:4] != b"PK\x03\x04" or not stored or len(values) != record.file_size or crc != record.CRC:
                names = [name for name, tensor in self._tensors.items() if tensor.storage.key == key]
                raise UserError(
                    f"{self.path}: damaged: the numbers of {names[0]} are not those that the archive's checksum "
                    "was made of; download it again"
                )
            self._checked.add(key)
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> np.dtype:
        """Dtype of a tensor, without reading it."""
        return self._tensors[name].dtype


def _what_else(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(OLD_MAGIC):
        return (
            "written before torch 1.6; load it with torch once and save it again (torch.save), or take a .safetensors"
        )
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the file itself; fetch it with `git lfs pull` or `hf download`"
    if start.startswith(b"PK"):
        return f"damaged or cut short ({error}); download it again"
    return "damaged, or no torch archive; download it again"


def _interpret(program: bytes) -> Any:
    """What a pickle describes, of dicts, lists, numbers, texts and tensors; raises UserError for anything else.

    Its own stack machine over the opcodes: no name is imported, nothing is called but what stands in `_reduce`.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for code, argument, _ in pickletools.genops(program):
        name = code.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": ()}[name])
        elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
        elif name in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"):
            stack.append(argument)
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack[-int(name[-1]) :] = [tuple(stack[-int(name[-1]) :])]
        elif name == "GLOBAL":
            stack.append(_Global(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_Global(f"{module}.{attribute}"))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("SETITEM", "SETITEMS"):
            items = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name in ("APPEND", "APPENDS"):
            items = since_mark() if name == "APPENDS" else [stack.pop()]
            stack[-1].extend(items)
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_reduce(stack.pop(), arguments))
        elif name == "BUILD" and isinstance(stack[-2], dict):
            stack.pop()  # a state dict's versions of modules
        else:
            raise UserError(f"refused: it holds other things than tensors, which loading might run (opcode {name})")
    raise ValueError("no end")


def _storage(identity: Any) -> _Storage:
    kind, storage, key, _, count = identity
    dtype = STORAGES.get(storage.name.rpartition(".")[2])
    if kind != "storage" or dtype is None or not isinstance(key, str) or type(count) is not int or count < 0:
        raise UserError(f"refused: a storage of the kind {storage.name}, which is not supported")
    return _Storage(key, dtype, count)


def _reduce(function: Any, arguments: tuple) -> Any:
    name = function.name
    if name == "collections.OrderedDict":
        return dict(*arguments)
    if name == "torch.Size":
        return tuple(*arguments)
    if name == "torch._utils._rebuild_parameter":
        return arguments[0]
    if name == "torch._utils._rebuild_tensor_v2":
        storage, offset, shape, strides = arguments[:4]
        return _Tensor(storage, storage.dtype, int(offset), _integers(shape), _integers(strides))
    if name == "torch._utils._rebuild_tensor_v3":  # dtypes younger than the typed storages
        storage, offset, shape, strides, _, _, dtype = arguments[:7]
        dtype = np.dtype(
            getattr(ml_dtypes, dtype.name.removeprefix("torch."), None) or dtype.name.removeprefix("torch.")
        )
        return _Tensor(storage, dtype, int(offset), _integers(shape), _integers(strides))
    raise UserError(f"refused: it holds {name} beside tensors, which loading would run")


def _integers(values: Any) -> tuple[int, ...]:
    if not all(type(value) is int for value in values):
        raise ValueError(f"{values!r} is no shape")
    return tuple(values)
