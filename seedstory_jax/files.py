"""Atomic writing and JSON: a file or a folder appears under its name only when it is whole."""

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from seedstory_jax.errors import UserError
from seedstory_jax.locks import owned

T = TypeVar("T")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A new file's path beside `path`, for the block to write; renamed to `path` if the block ends well, else removed.

    The name beside it starts with a dot, ends in the file's own suffix (writers choose formats by it) and is nobody
    else's, so that two processes that write the same file cannot mix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem[:100]}.partial-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        umask = os.umask(0)
        os.umask(umask)
        beside.chmod(0o666 & ~umask)  # as open() would have made it; mkstemp's own is private
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Writes a UTF-8 text file atomically; its path."""
    with atomic_path(path) as beside:
        beside.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path, kind: type[T] = dict) -> T:
    """The JSON object (or another `kind` of value) in a file. Raises UserError if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, kind):
        raise UserError(f"{path}: holds no JSON {'object' if kind is dict else kind.__name__}")
    return value


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, for the block to fill; renamed to `path` if the block ends well, else removed.

    Raises UserError if `path` is there already, and is no empty folder, or if another process is making it.
    """
    with owned(path, by=Path(sys.argv[0]).name, beside=True):
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise UserError(f"{path} exists: name a new folder, or remove it first")
        beside = path.absolute().with_name(f".{path.name}.partial")
        shutil.rmtree(beside, ignore_errors=True)  # left by a run that was killed
        beside.mkdir(parents=True)
        try:
            yield beside
            beside.replace(path)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
