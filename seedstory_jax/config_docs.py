"""Every key of a config as a Markdown page: python -m seedstory_jax.config_docs > docs/config.md.

What a key means is said once, in the source: in the comment behind its field or above it, or in its class's docstring.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

from seedstory_jax.config import Config
from seedstory_jax.limits import limits, marked_hints

HEAD = """# Every key of a config

`--config.KEY=VALUE` sets a key from the command line; a config file sets it as `configs/toy.py` does.
Defaults are the published sizes. All keys given are applied together and then checked; numbers must be finite.

This page is made by `python -m seedstory_jax.config_docs > docs/config.md`.
"""


def meanings(cls: type) -> dict[str, str]:
    """What each field of a dataclass means, by name; a field that says nothing means what its base class's does."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _own_meanings(base)
    return found


def _own_meanings(cls: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(cls))
    lines, tree = source.splitlines(), ast.parse(source).body[0]
    found = {}
    for names, text in re.findall(r"^ *(\w+(?:, \w+)*): ((?:.|\n(?! *\w+(?:, \w+)*: |\n))+)", cls.__doc__ or "", re.M):
        found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    for node in tree.body:
        if not isinstance(node, ast.AnnAssign):
            continue
        behind = re.match(r"\s*# (.+)", lines[node.end_lineno - 1][node.end_col_offset :])
        above, at = [], node.lineno - 2
        while at > 0 and lines[at].lstrip().startswith("# "):
            above.insert(0, lines[at].strip()[2:])
            at -= 1
        if behind or above:
            found[node.target.id] = behind[1] if behind else " ".join(above)
    return found


def rows(config: Any, path: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(key, type and limits, default, meaning) of every leaf below a dataclass; "" for a meaning that nobody wrote."""
    said, hints = meanings(type(config)), typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from rows(value, f"{key}.")
            continue
        hint = hints[field.name]
        options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        kind = " or ".join(str(option) if typing.get_args(option) else option.__name__ for option in options)
        kind = kind.replace("NoneType", "None")
        limit = "; ".join(map(str, limits(marked_hints(type(config))[field.name])))
        yield key, f"{kind}: {limit}" if limit else kind, repr(value), said.get(field.name, "").rstrip(".")


def page() -> str:
    """The whole page."""
    table = ["| Key | Type | Default | Meaning |", "| --- | --- | --- | --- |"]
    for key, kind, default, meaning in rows(Config()):
        cells = (f"`{key}`", kind, f"`{default}`", meaning)
        table.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([HEAD, *table, ""])


if __name__ == "__main__":
    print(page(), end="")
