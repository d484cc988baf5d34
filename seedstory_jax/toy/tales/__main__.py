"""python -m seedstory_jax.toy.tales --out=DIR: a folder of picture-book tales in StoryStream's layout."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from seedstory_jax import cli
from seedstory_jax.toy.tales.build import World, build


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    parser = cli.Parser(prog="python -m seedstory_jax.toy.tales", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    for field in dataclasses.fields(World):
        parser.add_argument(f"--{field.name}", type=field.type, default=field.default, help=f"default {field.default}")
    parser.add_argument("--processes", type=int, default=2, help="that paint at a time; default 2")
    flags, _ = parser.parse_strictly(argv)
    world = World(**{field.name: getattr(flags, field.name) for field in dataclasses.fields(World)})
    print(f"written: {build(flags.out, world, flags.processes)}; train with --config.data.folder={flags.out}")
    return 0


if __name__ == "__main__":
    cli.run(main)
