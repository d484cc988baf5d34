"""Names that come from data: story ids as folder names, and picture names as files of a folder.

Nothing else makes a path of a text that a data file holds. An id becomes one name that every file system can store; a
picture's name is followed only to a regular file below its root.
"""

import hashlib
import os
import re
import stat
import unicodedata
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote_to_bytes

from seedstory_jax.errors import UserError

LONGEST_NAME = 200  # bytes of a folder's name; file systems take 255, and temporary names beside it are longer
MAX_BYTES = 512 * 1024 * 1024  # of a picture file
RESERVED = {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(10)}  # Windows'


class FileFault(UserError):
    """A file that cannot be used: `reason` says why in words that follow its name."""

    def __init__(self, name: object, reason: str):
        super().__init__(f"{name} {reason}")
        self.reason = reason


def folder_name(identifier: int | str) -> str:
    """The folder name of a story id: different ids have different names, also where upper and lower case are one.

    Lower-case letters, digits, `-`, `_` and inner dots stay; `A` becomes `+a`, and every other byte of UTF-8 `%xx`, so
    that `story_id` gives the id back. Names longer than 200 bytes end in a digest in place of their rest.
    """
    text = str(identifier)
    name = "".join(_escape(byte) for byte in text.encode("utf-8", "surrogatepass")) or "%"
    if name[0] == "." or name.partition(".")[0] in RESERVED:
        name = f"%{ord(name[0]):02x}{name[1:]}"
    if name[-1] == ".":
        name = f"{name[:-1]}%2e"
    if len(name) > LONGEST_NAME:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        name = f"{name[: LONGEST_NAME - 65]}~{digest}"
    return name


def _escape(byte: int) -> str:
    letter = chr(byte)
    if (letter.islower() and byte < 128) or (letter.isdigit() and byte < 128) or letter in "-_.":
        return letter
    return f"+{letter.lower()}" if "A" <= letter <= "Z" else f"%{byte:02x}"


def story_id(name: str) -> str:
    """The id that `folder_name` made a folder's name of; any other folder's name as it is."""
    raised = re.sub(r"\+([a-z])", lambda match: match[1].upper(), name)
    try:
        found = "" if name == "%" else unquote_to_bytes(raised).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return name
    return found if folder_name(found) == name else name


def path_fault(path: str) -> str | None:
    """Why a picture's name may not be followed (it must stay below the image root), or None."""
    if "\0" in path:
        return "the path holds a zero byte"
    if any("\ud800" <= letter <= "\udfff" for letter in path):
        return "the path holds half a surrogate pair"
    if path.startswith(("/", "\\")) or (len(path) > 1 and path[1] == ":"):
        return f"absolute path {path!r}"
    if "://" in path:
        return f"an address, not a path: {path!r}"
    if ".." in PurePosixPath(path.replace("\\", "/")).parts:
        return f"path with '..' {path!r}"
    return None


def path_below(root: Any, name: str) -> Any:
    """The path of a named file below `root`, local or of an object store; it need not exist.

    Where there is no such file, the name is tried with Windows' separators and as other systems compose accents.
    Raises FileFault for a name, or a symlink, that leads out of `root`.
    """
    fault = path_fault(name)
    if fault:
        raise FileFault(root, f"holds no file of that name: {fault}")
    path = root / name
    if not isinstance(root, Path):
        return path
    try:
        real, spellings = path.resolve(), _spellings(name)
        while not real.exists() and spellings:
            other = root / spellings.pop()
            if other.exists():
                path, real = other, other.resolve()
        inside = real.is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name that is too long
        raise FileFault(path, f"cannot be opened ({_reason(error)})") from None
    if not inside:
        raise FileFault(path, f"leads out of {root} by a symlink: give the folder that holds it as the image root")
    return path


def _spellings(name: str) -> list[str]:
    plain = name.replace("\\", "/")
    return [unicodedata.normalize(form, plain) for form in ("NFD", "NFC")] + [plain]


def read_regular(path: Any, *, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file, local or of an object store; never waits for a pipe, never reads a device.

    Raises FileFault if it does not exist, is a folder, a pipe, a device or a loop of links, is empty or larger than
    `max_bytes`, or may not be read.
    """
    try:
        if not isinstance(path, Path):
            data = path.read_bytes()
        else:
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
            with open(handle, "rb") as file:
                facts = os.fstat(handle)
                if not stat.S_ISREG(facts.st_mode):
                    raise FileFault(path, "is no regular file")
                if facts.st_size > max_bytes:
                    raise FileFault(path, f"has {facts.st_size:,} bytes, more than {max_bytes:,}")
                data = file.read()
    except FileFault:
        raise
    except FileNotFoundError:
        raise FileFault(path, "does not exist") from None
    except (OSError, RuntimeError, ValueError) as error:
        regular = isinstance(error, IsADirectoryError)  # object stores and Windows say so at once
        raise FileFault(path, "is no regular file" if regular else f"cannot be opened ({_reason(error)})") from None
    if not data:
        raise FileFault(path, "is empty")
    return data


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
