"""Programs that are started (ffmpeg, voices): found, run with a time limit, their failure as one line."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from seedstory_jax.errors import UserError


def find_program(name: str) -> str | None:
    """The path of a program on PATH or beside this Python; None where it is not installed."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(name) or shutil.which(name, path=beside)


def need_program(name: str, why: str) -> str:
    """As `find_program`; UserError, which says `why`, where it is not installed."""
    found = find_program(name)
    if found is None:
        raise UserError(f"{name} was not found, {why}")
    return found


def run_program(
    command: Sequence[str], *, what: str, folder: Path, stdin: bytes = b"", seconds: float | int = 300
) -> bytes:
    """What the program prints; no shell is involved. `folder`: where it runs.

    Raises UserError, which names `what` was asked for, if it cannot be started, fails, or runs past `seconds`.
    """
    try:
        done = subprocess.run(list(command), input=stdin, capture_output=True, cwd=folder, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise UserError(f"{what}: {command[0]} was still running after {seconds:.0f} s") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{what}: {command[0]} cannot be started ({error})") from None
    if done.returncode:
        raise UserError(f"{what}: {os.path.basename(command[0])} failed with {done.returncode}{last_line(done.stderr)}")
    return done.stdout


def last_line(said: bytes) -> str:
    """`: ` and the last line that a program said, for a message; "" if it said nothing."""
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return f": {lines[-1].strip()[:200]}" if lines else ""
