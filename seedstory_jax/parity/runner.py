"""Parity with the published code: every fixture of a folder run through our modules, every array compared.

    seedstory parity tests/data/fixtures

Each module is built from the fixture's config and reads the fixture's weights through the tables that read real
checkpoints; it runs in float32 at the highest matmul precision. Exit code 1 if anything is off.
"""

import json
import math
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from seedstory_jax.errors import UserError
from seedstory_jax.parity import data, generation, llm, sdxl, vision
from seedstory_jax.parity.fixture import WEIGHTS, Arrays, Fixture, read_fixture, read_outputs

Run = Callable[[Fixture], Arrays]
KINDS: Mapping[str, Run] = data.KINDS | generation.KINDS | llm.KINDS | sdxl.KINDS | vision.KINDS

MODULE_TOLERANCE = 1e-4  # relative, by norm
# (kind, array name) -> another tolerance, the first that matches both.
TOLERANCES = (
    ("schedulers", ".*", 1e-6),
    ("sdxl_adapter", r"gen:(image|decoded_before_clamp|latents_after_step)", 1e-3),  # six guided steps, guidance 7.5
)
# Of the sink script only the intended rule counts; its broken arithmetic is kept as documentation.
COMPARED = {"sink_indices": r".*:(nominal_kept|recomputed_window)"}


@dataclass(frozen=True)
class ArrayResult:
    """One compared array; an integer or boolean one must be equal (tolerance 0)."""

    max_abs: float
    max_rel: float
    tolerance: float
    ok: bool


@dataclass(frozen=True)
class FixtureResult:
    """One fixture; `error` says why nothing could be compared."""

    name: str
    arrays: Mapping[str, ArrayResult] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether every array is within its tolerance, and there was one."""
        return not self.error and bool(self.arrays) and all(array.ok for array in self.arrays.values())

    @property
    def max_abs(self) -> float:
        """Largest absolute difference."""
        return max((array.max_abs for array in self.arrays.values()), default=math.inf)

    @property
    def max_rel(self) -> float:
        """Largest relative difference by norm, over the arrays."""
        return max((array.max_rel for array in self.arrays.values()), default=math.inf)

    @property
    def tolerance(self) -> float:
        """The widest tolerance of its arrays."""
        return max((array.tolerance for array in self.arrays.values()), default=0.0)

    def as_json(self) -> dict[str, Any]:
        """Numbers that JSON knows; what is not finite becomes null."""
        record = {
            "name": self.name,
            "ok": self.ok,
            "max_abs": _finite(self.max_abs),
            "max_rel": _finite(self.max_rel),
            "tolerance": self.tolerance,
            "arrays": {
                name: {
                    "ok": array.ok,
                    "max_abs": _finite(array.max_abs),
                    "max_rel": _finite(array.max_rel),
                    "tolerance": array.tolerance,
                }
                for name, array in self.arrays.items()
            },
            "seconds": round(self.seconds, 3),
        }
        return {**record, "error": self.error} if self.error else record


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def compare(ours: np.ndarray, reference: np.ndarray, tolerance: float) -> ArrayResult:
    """Relative difference ||ours - reference|| / ||reference|| (the absolute one where the reference is all zero)."""
    exact = reference.dtype.kind in "iub"
    tolerance = 0.0 if exact else tolerance
    if ours.shape != reference.shape:
        return ArrayResult(math.inf, math.inf, tolerance, False)
    difference = ours.astype(np.float64) - reference.astype(np.float64)
    if not np.isfinite(difference).all():
        return ArrayResult(math.inf, math.inf, tolerance, False)
    largest = float(np.abs(difference).max(initial=0.0))
    norm = float(np.linalg.norm(reference.astype(np.float64)))
    relative = float(np.linalg.norm(difference)) / norm if norm else largest
    return ArrayResult(largest, relative, tolerance, relative <= tolerance)


def tolerance_of(kind: str, array: str) -> float:
    """Relative tolerance of one array of a kind of fixture."""
    for of_kind, pattern, tolerance in TOLERANCES:
        if of_kind == kind and re.fullmatch(pattern, array):
            return tolerance
    return MODULE_TOLERANCE


def run_fixture(folder: Path, kinds: Mapping[str, Run] | None = None) -> FixtureResult:
    """Runs and compares one fixture, once for every `weights*.safetensors` that it has (other spellings of the names).

    Raises UserError for an unknown kind, a file that cannot be read, or an array that our run does not give.
    """
    kind, kinds = folder.absolute().name, KINDS if kinds is None else kinds
    if kind not in kinds:
        raise UserError(f"{folder}: unknown kind of fixture {kind!r}; known: {', '.join(sorted(kinds))}")
    started = time.perf_counter()
    outputs = read_outputs(folder)
    wanted = [name for name in outputs if re.fullmatch(COMPARED.get(kind, ".*"), name)]
    results = {}
    for weights in sorted(file.name for file in folder.glob("weights*.safetensors")) or [WEIGHTS]:
        suffix = "" if weights == WEIGHTS else f"@{Path(weights).stem}"
        ours = kinds[kind](read_fixture(folder, weights))
        for name in wanted:
            if name not in ours:
                raise UserError(f"{folder}: the run gave no array {name!r}")
            results[name + suffix] = compare(np.asarray(ours[name]), outputs[name], tolerance_of(kind, name))
    return FixtureResult(kind, results, time.perf_counter() - started)


def run_all(
    directory: Path, kinds: Mapping[str, Run] | None = None, *, show_traceback: bool = False
) -> Iterator[FixtureResult]:
    """Results of every folder in `directory` (or of `directory` itself, if it is a fixture), in alphabetical order.

    What goes wrong in one fixture is its result, and the others still run. Raises UserError if there is no fixture.
    """
    if not directory.is_dir():
        raise UserError(f"no folder {str(directory)!r}; give the folder that holds the fixtures")
    folders = sorted(path for path in directory.iterdir() if path.is_dir())
    if (directory / "config.json").is_file():
        folders = [directory]
    if not folders:
        raise UserError(f"{str(directory)!r} holds no fixture folder")
    return (_result(folder, kinds, show_traceback) for folder in folders)


def _result(folder: Path, kinds: Mapping[str, Run] | None, show_traceback: bool) -> FixtureResult:
    try:
        with jax.default_matmul_precision("highest"):
            return run_fixture(folder, kinds)
    except Exception as error:
        if show_traceback:
            traceback.print_exc()
        what, *_ = str(error).splitlines() or [""]
        return FixtureResult(folder.name, error=f"{type(error).__name__}: {what}")


HEADER = f"{'fixture':<22}{'arrays':>7}{'max abs':>11}{'max rel':>11}{'tolerance':>11}{'seconds':>9}  result"


def table_row(result: FixtureResult) -> str:
    """One line of the table, and below it each array that is off."""
    if result.error:
        return f"{result.name:<22}{'':>49}  ERROR {result.error}"
    exact = f"{result.tolerance:>11.0e}" if result.tolerance else f"{'exact':>11}"
    lines = [
        f"{result.name:<22}{len(result.arrays):>7}{result.max_abs:>11.1e}{result.max_rel:>11.1e}"
        f"{exact}{result.seconds:>9.1f}  {'ok' if result.ok else 'OFF'}"
    ]
    for name, array in result.arrays.items():
        if not array.ok:
            lines.append(f"    {name}: max abs {array.max_abs:.2e}, rel {array.max_rel:.2e} > {array.tolerance:.0e}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    from seedstory_jax.cli import Parser

    parser = Parser(prog="seedstory parity", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder of fixtures, or one fixture")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON list")
    parser.add_argument("--traceback", action="store_true", help="show where a failing run broke")
    flags, _ = parser.parse_strictly(argv)

    results = []
    running = run_all(flags.directory, show_traceback=flags.traceback)
    if not flags.json:
        print(HEADER)
    for result in running:
        results.append(result)
        if not flags.json:
            print(table_row(result), flush=True)
    if flags.json:
        print(json.dumps([result.as_json() for result in results], indent=1))
    return 0 if all(result.ok for result in results) else 1
