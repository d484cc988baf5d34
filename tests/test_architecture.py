"""Imports run one way: what each folder and module may know, read off the sources."""

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "seedstory_jax"
BASE = {
    "errors",
    "limits",
    "files",
    "locks",
    "outputs",
    "config",
    "cli",
    "sharding",
    "distributed",
}  # known to all that do not say less
# What a folder may import from the others. A new arrow is a decision: it is written here first.
MAY_IMPORT = {
    "models": {"errors", "limits"},
    "config": {"errors", "limits", "models"},
    "locks": {"errors"},
    "data": {"errors", "files", "outputs"},
    "toy": {*BASE, "data"},
    "checkpoints": {"config", "errors", "files", "models"},
    "features": {*BASE, "models", "data", "checkpoints", "toy"},
    "convert": {*BASE, "models", "data", "checkpoints"},
    "generation": {*BASE, "models", "data", "checkpoints"},
    "training": {*BASE, "models", "data", "checkpoints", "features", "convert", "generation"},
    "parity": {*BASE, "models", "data", "convert", "generation"},
    "storystream": {*BASE, "chat_client", "data", "checkpoints", "features"},
    "evaluation": {*BASE, "chat_client", "models", "data", "convert", "generation", "storystream", "toy"},
    "report": {*BASE, "data", "evaluation", "training"},
    "export": {*BASE, "data", "report"},
    "pipeline": {*BASE, "models", "data", "checkpoints", "features", "convert", "generation"},
}
# Commands use everything and are used by commands alone.
COMMANDS = {"ablate", "book", "demo", "describe", "evaluate", "sample", "sampling", "train", "environment", "__main__"}


def unit(module: str) -> str:
    """The folder or module below the package that a dotted name lies in."""
    return module.split(".")[1] if "." in module else ""


def arrows() -> dict[str, dict[str, set[str]]]:
    """importer -> imported -> the files that do it, between units; imports inside functions count."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                whole = node.module == "seedstory_jax"
                names = [f"seedstory_jax.{alias.name}" for alias in node.names] if whole else [node.module]
            for name in names:
                other = unit(name) if name.startswith("seedstory_jax") else ""
                if other and other not in (own, "__version__"):
                    found[own][other].add(str(path.relative_to(PACKAGE)))
    return found


ARROWS = arrows()


def test_there_is_no_circle():
    order = list(TopologicalSorter({own: set(others) for own, others in ARROWS.items()}).static_order())
    assert order.index("models") < order.index("generation") < order.index("report")


@pytest.mark.parametrize("own", MAY_IMPORT)
def test_a_folder_knows_only_what_is_below_it(own):
    strangers = {other: files for other, files in ARROWS.get(own, {}).items() if other not in MAY_IMPORT[own]}
    assert not strangers


def test_every_folder_has_its_contract():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert folders <= MAY_IMPORT.keys()


def test_commands_are_imported_by_commands_alone():
    for own, others in ARROWS.items():
        assert own in COMMANDS or not COMMANDS & others.keys(), (own, COMMANDS & others.keys())


def test_a_module_below_is_checked_whole():
    """The reader of the sources sees imports in functions, of modules and of packages."""
    assert "training/stages/story.py" in ARROWS["training"]["checkpoints"]
    assert "sample.py" in ARROWS["sample"]["sampling"]
