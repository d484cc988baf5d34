"""Files that appear whole or not at all, and never over another unless that was asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seedstory_jax.errors import UserError
from seedstory_jax.files import atomic_path


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
    try:
        with atomic_path(target) as beside:
            yield beside
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror or error})") from error
