"""A run's loss curves from its `metrics.jsonl`: one line a step and stage, thinned to what a plot can show."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from seedstory_jax.report.plots import Line, line_plot

POINTS = 120  # bins a line is thinned to


def read_metrics(path: Path) -> dict[str, list[dict]]:
    """The lines by stage, in order of step; lines that a kill tore are left out."""
    stages: dict[str, list[dict]] = {}
    if not path.is_file():
        return stages
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and "stage" in row and "step" in row:
            stages.setdefault(str(row["stage"]), []).append(row)
    return {stage: sorted(rows, key=lambda row: row["step"]) for stage, rows in stages.items()}


def loss_plots(rows: Sequence[Mapping], stage: str) -> list[str]:
    """SVGs of a stage's losses: the total with its parts in one plot; a log axis where a loss falls tenfold."""
    names = [name for name in dict.fromkeys(key for row in rows for key in row) if "loss" in name]
    lines = [line for name in names if (line := thinned(rows, name)) is not None]
    if len(lines) == 2 and lines[0].y == lines[1].y:  # a stage of one loss logs it as the total, too
        lines = lines[1:]
    values = [v for line in lines for v in line.y if v is not None]
    if not values:
        return []
    log = min(values) > 0 and max(values) > 10 * min(values)
    title = f"{stage}: {lines[0].name}" if len(lines) == 1 else stage
    return [line_plot(lines, title=title, x_label="step", log_y=log)]


def thinned(rows: Sequence[Mapping], name: str, points: int = POINTS) -> Line | None:
    """Means over equal stretches of steps, with the 10 % and 90 % quantiles as a band; None without a number."""
    pairs = [(row["step"], float(row[name])) for row in rows if isinstance(row.get(name), int | float)]
    pairs = [(step, value) for step, value in pairs if math.isfinite(value)]
    if not pairs:
        return None
    steps, values = np.array(pairs).T
    bins = np.array_split(np.arange(len(steps)), min(points, len(steps)))
    low, high = np.array([np.quantile(values[b], (0.1, 0.9)) for b in bins]).T
    x, y = [float(steps[b].mean()) for b in bins], [float(values[b].mean()) for b in bins]
    return Line(name.replace("_", " "), x, y, low.tolist(), high.tolist())
