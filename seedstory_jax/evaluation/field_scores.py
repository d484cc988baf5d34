"""Scores that benchmarks' own evaluators wrote, read back into our tables and curves.

ViStoryBench leaves a folder a run (see `shot_scores`), MMIE one JSON list with the judge's words, OpenING one with the
winner of every pair; the last two have figures a system and no rows a turn.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from seedstory_jax.errors import UserError
from seedstory_jax.evaluation.bootstrap import bootstrap_mean
from seedstory_jax.evaluation.measure import Measurement
from seedstory_jax.evaluation.shot_scores import Run, find_runs, read_run
from seedstory_jax.files import read_json

MMIE_SCORE = re.compile(r"### Score.*?(-?\d+(?:\.\d+)?)", re.DOTALL)
MMIE_KINDS = ("SA", "PBL", "MSR")  # situational analysis, project-based learning, multi-step reasoning


@dataclass
class FieldScores:
    """`measured` as `measure` gives it, the turns of the longest story, and what a reader of the page must know."""

    measured: Measurement = field(default_factory=Measurement)
    length: int = 2
    notes: list[str] = field(default_factory=list)


def read_scores(paths: Sequence[Path], exports: Path | None = None) -> FieldScores:
    """All scores in some files or below some folders, by system; of several runs of one system the newest counts.

    `exports` is the folder that the stories were exported to; its manifests say which pictures were there (see
    `shot_scores.read_run`).

    Raises UserError for paths without scores.
    """
    found = FieldScores()
    runs: list[Run] = []
    for path in paths:
        if path.is_file():
            _read_list(path, found)
        elif path.is_dir():
            runs += find_runs(path)
        else:
            raise UserError(f"{path} does not exist: give a folder of results or a file of them")
    newest = {(run.method, run.mode, run.language): run for run in sorted(runs, key=lambda run: run.time)}
    if len(newest) < len(runs):
        found.notes.append(f"{len(runs) - len(newest)} older runs are left out.")
    for run, system in _names(list(newest.values())).items():
        _add_run(run, system, exports, found)
    if not found.measured.records and not any(found.measured.figures.values()):
        raise UserError(
            f"{', '.join(map(str, paths))} holds no scores: give ViStoryBench's bench_results, MMIE's eval_result.json "
            "or OpenING's judge results"
        )
    found.length = max((record["frame"] + 1 for record in found.measured.records), default=2)
    return found


def _add_run(run: Run, system: str, exports: Path | None, found: FieldScores) -> None:
    manifest = _manifest(exports, run)
    exported = manifest["stories"] if manifest else None
    scores = read_run(run, system, exported)
    found.measured.records += scores.records
    found.measured.figures[system] = scores.figures
    if scores.unread:
        found.notes.append(f"{system}: {scores.unread} rows are no complete scores of a shot, and count nowhere.")
    if scores.left_out:
        found.notes.append(f"{system}: {scores.left_out} rows are of stories that were not exported: left out.")
    if manifest:
        turns = sum(len(story["missing"]) for story in manifest["stories"].values())
        if manifest["missing"] or turns:
            stories = len(manifest["missing"])
            found.notes.append(f"{system}: {stories} stories and {turns} turns of the others were missing.")


def _names(runs: Sequence[Run]) -> dict[Run, str]:
    """Systems' names: the mode alone where that tells them apart, else with method and language."""
    several_methods = len({run.method for run in runs}) > 1
    several_languages = len({run.language for run in runs}) > 1
    return {
        run: f"{run.method + '/' if several_methods else ''}{run.mode}{'/' + run.language if several_languages else ''}"
        for run in runs
    }


def _manifest(exports: Path | None, run: Run) -> dict | None:
    """The newest export's manifest under the run's names."""
    if exports is None:
        return None
    if not exports.is_dir():
        raise UserError(f"--exports={exports} is no folder: give the --out of `storystream export`")
    found = sorted((exports / run.method / run.mode / run.language).glob("*/manifest.json"))
    return read_json(found[-1]) if found else None


def _read_list(path: Path, found: FieldScores) -> None:
    """MMIE's and OpenING's results: intervals over items, by model."""
    scores: dict[tuple[str, str], dict[str, list]] = {}
    for row in read_json(path, list):
        for model, name, item, value in _mmie(row) + _opening(row) if isinstance(row, Mapping) else ():
            scores.setdefault((model, name), {}).setdefault(item, []).append(value)
    if not scores:
        raise UserError(f"{path} holds no scores: expected MMIE's gpt_feedback or OpenING's winner in its rows")
    for (model, name), groups in scores.items():
        found.measured.figures.setdefault(model, {})[name] = bootstrap_mean(groups)


def _mmie(row: Mapping) -> list[tuple[str, str, str, float]]:
    """A judge's score 0..6, as MMIE finds it in the words."""
    match = MMIE_SCORE.search(str(row.get("gpt_feedback", "")))
    score = float(round(float(match.group(1)))) if match else -1.0
    model, item = str(row.get("model")), str(row.get("id"))
    names = ["mmie", *(f"mmie_{kind}" for kind in MMIE_KINDS if kind in item)]
    return [(model, name, item, score) for name in names] if 0 <= score <= 6 else []


def _opening(row: Mapping) -> list[tuple[str, str, str, float]]:
    """Who won a pair: outright, and with every tie given to the side that the judge leans to."""
    if not {"winner", "model_A", "model_B", "data_id"} <= row.keys():
        return []
    winner, item, found = str(row["winner"]), str(row["data_id"]), []
    for side in "AB":
        model = str(row[f"model_{side}"]["name"])
        found.append((model, "opening_win_rate", item, float(winner == side)))
        found.append((model, "opening_win_rate_ties_divided", item, float(winner in (side, f"Tie({side})"))))
    return found
