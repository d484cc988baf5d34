"""Public benchmarks of story generation: their data as StoryStream JSONL, our stories in their layouts.

A format is a module with `read(folder, options)`, which yields `Item`s and `Skipped`s, and (where the benchmark scores
pictures and texts) `write(exports, folder, target)`, which lays generated stories out as the benchmark's own reader
wants them. `import_benchmark` and `export_benchmark` do the rest; docs/benchmarks.md has the commands.
"""

from importlib import import_module
from types import ModuleType

from seedstory_jax.config import nearest
from seedstory_jax.errors import UserError

FORMATS = {
    "vistorybench": "vistorybench",
    "opening": "opening",
    "mmie": "mmie",
    "interleavedbench": "interleavedbench",
    "st-bench": "st_bench",
}


def format_of(name: str) -> ModuleType:
    """The module of a format's name. Raises UserError for an unknown one."""
    if name not in FORMATS:
        raise UserError(f"unknown format {name!r}: {nearest(name, list(FORMATS))}")
    return import_module(f"{__name__}.{FORMATS[name]}")
