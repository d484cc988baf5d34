"""What commands wrote into folders of the user: only that is ever overwritten or removed.

Beside its files a folder keeps `.written-by-seedstory`, a line a file: its name, its SHA-256 and the command that wrote
it. A file that is not listed as that command's, or was changed since, belongs to somebody else. The list is appended to
before a file takes its name, so that a process that is killed in between, or two that write at once, lose nothing.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from seedstory_jax.errors import UserError
from seedstory_jax.files import atomic_path

LIST = ".written-by-seedstory"


def claim(*paths: Path, by: str, inputs: Iterable[Path] = ()) -> None:
    """Raises UserError if writing one of `paths` would destroy an input or a file that command `by` did not write.

    Commands call it before their work; `written_whole` calls it again.
    """
    sources = [source for source in inputs if source.exists()]
    for number, path in enumerate(paths):
        if any(path.absolute() == other.absolute() for other in paths[:number]):
            raise UserError(f"{path} is given for two outputs: name two files")
        if not path.exists() and not path.is_symlink():
            continue
        if any(path.exists() and path.samefile(source) for source in sources):
            raise UserError(f"{path} is what is read, writing it would destroy it: name another file to write")
        if not is_written(path, by):
            raise UserError(
                f"{path} is there and was not written by `{by}`, or was changed since: "
                "name another place to write, or move it away"
            )


def claim_folder(folder: Path, *, by: str) -> None:
    """Makes `folder` command `by`'s own, with all that is in it. UserError if somebody else's files are there."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is no folder: name another place to write")
    if _listed(folder, by):
        return
    if folder.exists() and any(path.name != LIST for path in folder.iterdir()):  # a list alone: killed before its line
        raise UserError(f"{folder} holds files that `{by}` did not write: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    record(folder, {LIST: folder / LIST}, by)


def is_written(path: Path, by: str) -> bool:
    """Whether command `by` wrote this file and nobody changed it since."""
    if path.is_symlink() or not path.is_file():
        return False
    known = _listed(path.parent, by).get(path.name)
    return known is not None and _digest(path) in known


def _listed(folder: Path, by: str) -> dict[str, set[str]]:
    """Digests by name: all that command `by` ever wrote under it."""
    found: dict[str, set[str]] = {}
    with contextlib.suppress(OSError):
        for line in (folder / LIST).read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                record = json.loads(line)  # a line that a kill tore is none
                if record["by"] == by and Path(record["file"]).name == record["file"]:  # of no other folder
                    found.setdefault(record["file"], set()).add(record["sha256"])
    return found


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record(folder: Path, files: Mapping[str, Path], by: str) -> None:
    """Lists files that are about to take their names in `folder`; `files`: where each lies now, by that name."""
    place = folder / LIST
    place.touch()
    lines = [json.dumps({"file": name, "sha256": _digest(path), "by": by}) for name, path in files.items()]
    with place.open("a", encoding="utf-8") as file:
        file.write("".join(f"\n{line}" for line in lines))  # a blank line where the last was not torn


@contextlib.contextmanager
def written_whole(path: Path, *, by: str | None, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """A new file beside `path` for the block to write, which takes its name, and a line in the list, if all goes well.

    Raises UserError as `claim` does. `by` is None for files in a folder that is the command's own (`claim_folder`).
    """
    if by is not None:
        claim(path, by=by, inputs=inputs)
    with atomic_path(path) as beside:
        yield beside
        if by is not None:
            record(path.parent, {path.name: beside}, by)


def put_in_place(beside: Path, folder: Path, *, by: str, last: str) -> None:
    """Moves a new folder's files into `folder`, over those that a command wrote there before; file `last` comes last.

    Of an older set what is not replaced is removed if a command wrote it; all other files stay. Raises UserError,
    before anything is moved, if a file of the user stands in the way.
    """
    names = sorted((file.name for file in beside.iterdir()), key=lambda name: (name == last, name))
    if not folder.exists():
        record(beside, {name: beside / name for name in names}, by)
        os.replace(beside, folder)
        return
    claim(*(folder / name for name in names), by=by)
    (folder / last).unlink(missing_ok=True)
    for old in _listed(folder, by).keys() - set(names):
        if is_written(folder / old, by):
            (folder / old).unlink()
    record(folder, {name: beside / name for name in names}, by)
    for name in names:
        os.replace(beside / name, folder / name)
    beside.rmdir()


def agree(folder: Path, name: str, asked: Mapping[str, Any], *, by: str) -> None:
    """Notes in `folder/name` what shapes all outputs there; raises UserError naming what differs from a note there."""
    path, asked = folder / name, json.loads(json.dumps(dict(asked)))
    if not path.is_file():
        with written_whole(path, by=by) as beside:
            beside.write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): give another --out") from None
    known = known if isinstance(known, dict) else {}
    differing = [key for key in {**asked, **known} if known.get(key) != asked.get(key)]
    if differing:
        raise UserError(f"{folder} holds outputs of another {', '.join(differing)}: give another --out or remove it")
