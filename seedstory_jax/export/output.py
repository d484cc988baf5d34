"""Files that appear whole or not at all, and never over another unless that was asked for."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seedstory_jax.errors import UserError


def refuse_existing(target: Path, *, overwrite: bool) -> None:
    """Raises UserError if `target` cannot become a new file: it exists, is a folder, or its folder is none."""
    if target.is_dir():
        raise UserError(f"{target} is a folder: give a file name")
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists: add --overwrite, or give another name")
    for folder in target.absolute().parents:
        if folder.exists():
            if not folder.is_dir():
                raise UserError(f"{target} cannot be written: {folder} is a file")
            return


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to, moved to `target` when the block ends and removed if it fails.

    Raises UserError where the disk refuses.
    """
    beside = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix)
        os.close(handle)
        beside = Path(name)
        yield beside
        os.chmod(beside, 0o644)
        os.replace(beside, target)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror or error})") from error
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)
