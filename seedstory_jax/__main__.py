"""seedstory COMMAND: one entry point of all commands; `seedstory COMMAND --help` tells each one's flags.

train      train the stages of a config
sample     generate and render stories
ablate     every policy on the same stories, measured
evaluate   measure, judge and compare stories
convert    published weights to ours and back
describe   parameters, operations and bytes of a config
parity     our arrays beside recorded ones
data       StoryStream datasets: check, count, cut, build
book       a story as PDF, EPUB, CBZ, HTML, GIF, WebP or narrated MP4
demo       the toy, whole
env        versions, devices and flags, for a bug report
"""

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from seedstory_jax import __version__, cli
from seedstory_jax.errors import UserError, nearest

# Modules by command, imported when they are asked for: `seedstory --help` needs no jax.
COMMANDS = {
    "train": "seedstory_jax.train",
    "sample": "seedstory_jax.sample",
    "ablate": "seedstory_jax.ablate",
    "evaluate": "seedstory_jax.evaluate",
    "convert": "seedstory_jax.convert.__main__",
    "describe": "seedstory_jax.describe",
    "parity": "seedstory_jax.parity.runner",
    "data": "seedstory_jax.storystream.__main__",
    "book": "seedstory_jax.book",
    "demo": "seedstory_jax.demo",
    "env": "seedstory_jax.environment",
}
# What computes for minutes gains from a tuned allocator; the others start faster without the restart that it takes.
COMPUTING = ("train", "sample", "ablate", "evaluate", "demo")


def main(arguments: Sequence[str]) -> int | None:
    """Runs a command; its exit code. Raises UserError for one that is not there."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(__doc__.strip())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"seedstory_jax {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}: {nearest(name, list(COMMANDS))}")
    if name in COMPUTING:
        cli.tune_allocator()
    sys.argv = [f"seedstory {name}", *rest]  # what a parser calls itself in --help
    return importlib.import_module(COMMANDS[name]).main(rest)


def start() -> NoReturn:
    """The console script `seedstory`, and `python -m seedstory_jax`."""
    cli.run(main)


if __name__ == "__main__":
    start()
