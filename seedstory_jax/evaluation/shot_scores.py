"""ViStoryBench's results as our records: a row a shot.

`<method>/<mode>/<language>/<time>/metrics/<metric>/{items.jsonl, story_results.json, scores.json}`, the last two of
which are figures of stories and of all of them.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from seedstory_jax.evaluation.bootstrap import Interval, bootstrap_mean
from seedstory_jax.files import read_json

BY_POSITION = ("aesthetic",)  # metrics whose rows number a story's pictures from 0; the others have the data's index


@dataclass(frozen=True)
class Run:
    """One run's results: where they lie and what they are of."""

    folder: Path
    method: str
    mode: str
    language: str
    time: str


@dataclass
class ShotScores:
    """A run's records (see `policy_table`), its figures, and how many rows counted nowhere."""

    records: list[dict] = field(default_factory=list)
    figures: dict[str, Interval] = field(default_factory=dict)
    unread: int = 0
    left_out: int = 0


def find_runs(path: Path) -> list[Run]:
    """Every run below a folder of results."""
    runs = []
    for metrics in sorted(folder for folder in path.rglob("metrics") if folder.is_dir()):
        folder = metrics.parent
        about = read_json(folder / "metadata.json").get("run") or {} if (folder / "metadata.json").is_file() else {}
        method, mode, language, time = (["?"] * 4 + list(folder.resolve().parts))[-4:]
        if mode in ("en", "ch"):  # the other order is allowed
            mode, language = language, mode
        names = {"method": method, "mode": mode, "language": language, "timestamp": time}
        names |= {key: str(about[key]) for key in names if about.get(key)}
        runs.append(Run(folder, *names.values()))
    return runs


def read_run(run: Run, system: str, exported: Mapping[str, Mapping] | None) -> ShotScores:
    """A run's scores under a system's name.

    `exported` are the stories of an export's manifest: positions become the data's indices, and stories that are not
    in it, for which some evaluators write 0, are left out.
    """
    found = ShotScores()
    values: dict[tuple[str, int], dict[tuple[str, str], float]] = {}
    stories: dict[str, dict[str, list[float]]] = {}
    for metric in sorted(path for path in (run.folder / "metrics").iterdir() if path.is_dir()):
        for story, index, name, value in _shots(metric, exported, found):
            values.setdefault((story, index), {})[name] = value  # an evaluator that ran again appends: the last counts
        results = read_json(metric / "story_results.json") if (metric / "story_results.json").is_file() else {}
        for story, result in results.items():
            if exported is None or story in exported:
                for name, value in _numbers(result.get("metrics") if isinstance(result, Mapping) else None):
                    stories.setdefault(name, {})[story] = [value]
        if not results and (metric / "scores.json").is_file():
            scores = dict(_numbers(read_json(metric / "scores.json")))
            found.figures |= {name: Interval(value, None, None, 1) for name, value in scores.items()}
    found.figures |= {name: bootstrap_mean(own) for name, own in stories.items()}
    for (story, index), by_name in sorted(values.items()):
        means: dict[str, list[float]] = {}
        for (name, _), value in by_name.items():  # of several characters in a shot: their mean
            means.setdefault(name, []).append(value)
        columns = {name: sum(own) / len(own) for name, own in means.items()}
        found.records.append({"policy": system, "story": story, "frame": index, **columns})
    return found


def _shots(
    metric: Path, exported: Mapping[str, Mapping] | None, found: ShotScores
) -> Iterator[tuple[str, int, tuple[str, str], float]]:
    """(story, the data's index, (name, character), value) of every row that can be read."""
    rows, torn = _lines(metric / "items.jsonl")
    found.unread += torn
    shots = []
    for row in rows:
        try:
            scope, of = row["scope"], row["metric"]
            name = (str(of.get("submetric") or of["name"]), _character(scope))
            shots.append((str(scope["story_id"]), int(scope["shot_index"]), name, _number(row["value"])))
            complete = row.get("status", "complete") == "complete" and shots[-1][-1] is not None
        except (KeyError, TypeError, ValueError, AttributeError):
            found.unread += 1
            continue
        if not complete:
            shots.pop()
            found.unread += 1
    by_position = metric.name in BY_POSITION or any(index == 0 for _, index, _, _ in shots)
    for story, index, name, value in shots:
        if exported is not None and story not in exported:
            found.left_out += 1
            continue
        if by_position:
            known = sorted(map(int, exported[story]["shots"])) if exported else range(1, index + 2)
            if not 0 <= index < len(known):
                found.unread += 1
                continue
            index = known[index]
        yield story, index, name, value


def _character(scope: Mapping) -> str:
    return str(scope.get("character_key") or scope.get("character_name") or "")


def _lines(path: Path) -> tuple[Sequence[Mapping], int]:
    """The objects of a JSONL file, and how many lines are none (a kill may tear the last one)."""
    rows: list[Mapping] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    lines = [line for line in lines if line.strip()]
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows += [row] if isinstance(row, dict) else []
    return rows, len(lines) - len(rows)


def _numbers(value: object, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number below a JSON object, with its path as its name."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}_{key}".strip("_"))
    elif (number := _number(value)) is not None:
        yield name, number


def _number(value: object) -> float | None:
    real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if real else None
