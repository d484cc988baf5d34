"""The door of every command: flags in, one-line errors out (exit code 2), no traceback for what a user can mend."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from seedstory_jax.errors import UserError, nearest


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are UserErrors that name the nearest known flag."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.register("type", Path, _given_path)

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the usage."""
        raise UserError(f"{message} (see --help)")

    def parse_strictly(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
        """The flags, and the dotted `--config.key=value` overrides by key."""
        overrides, rest = {}, []
        pending = list(arguments)
        while pending:
            argument = pending.pop(0)
            if not argument.startswith("--config."):
                rest.append(argument)
                continue
            key, equals, value = argument.removeprefix("--config.").partition("=")
            if not equals:
                if not pending:
                    raise UserError(f"--config.{key} needs a value: --config.{key}=...")
                value = pending.pop(0)
            overrides[key] = value
        known, unknown = self.parse_known_args(rest)
        if unknown:
            flags = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
            name = unknown[0].partition("=")[0]
            raise UserError(f"unknown flag {name!r}: {nearest(name, flags)}")
        return known, overrides


def _given_path(text: str) -> Path:
    """A flag's path; `Path("")` would be the current folder, which an empty variable in a script does not mean."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; name a file or folder, or '.' for the current folder")
    return Path(text)


def run(main: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Runs `main(argv)` and exits: 0, what it returned, 2 after a UserError, 130 after Ctrl-C."""
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:
        code = 141
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code or 0)


# glibc gives large blocks back to the kernel at every free; XLA's CPU steps then spend half their time on page faults.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def tune_allocator() -> None:
    """Starts this program again with malloc settings that XLA gains from; only on Linux without an accelerator.

    The settings are read when a process begins, hence the restart. Does nothing where they are set already.
    """
    accelerator = any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0", "/dev/kfd"))
    if not sys.platform.startswith("linux") or accelerator or os.environ.keys() & ALLOCATOR.keys():
        return
    os.execve(sys.executable, sys.orig_argv, {**os.environ, **ALLOCATOR})
