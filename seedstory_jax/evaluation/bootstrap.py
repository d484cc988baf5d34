"""Means with error bars, by the bootstrap over stories: frames of one story are not independent of each other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its percentile interval; `count` is the number of observations behind it.

    All three numbers are None where nothing was observed; the bounds are None where one story alone was.
    """

    mean: float | None
    low: float | None
    high: float | None
    count: int

    def __str__(self) -> str:
        if self.mean is None:
            return "-"
        if self.low is None:
            return f"{self.mean:.3g}"
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def bootstrap_mean(
    groups: Mapping[object, Sequence] | Sequence[Sequence],
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """The mean over all observations of all groups (stories), resampling whole groups; None is no observation."""
    lists = list(groups.values()) if isinstance(groups, Mapping) else list(groups)
    lists = [[float(value) for value in values if value is not None] for values in lists]
    lists = [values for values in lists if values]
    if not lists:
        return Interval(None, None, None, 0)
    sums = np.array([sum(values) for values in lists])
    counts = np.array([len(values) for values in lists])
    mean, total = float(sums.sum() / counts.sum()), int(counts.sum())
    if len(lists) < 2:
        return Interval(mean, None, None, total)
    picks = np.random.default_rng(seed).integers(len(lists), size=(resamples, len(lists)))
    low, high = _bounds(sums[picks].sum(1) / counts[picks].sum(1), confidence)
    return Interval(mean, low, high, total)


def jackknife(groups: Sequence, statistic: Callable[[Sequence], float]) -> Interval:
    """Any smooth statistic of a list of groups, with its 95 % interval by leaving out one group at a time.

    For distances between distributions: resampling with replacement repeats pictures, and a set with repetitions is
    further from everything, so a bootstrap's interval would lie above the estimate itself.
    """
    if not groups:
        return Interval(None, None, None, 0)
    mean, count = float(statistic(groups)), len(groups)
    if count < 3:
        return Interval(mean, None, None, count)
    without = np.array([statistic([*groups[:place], *groups[place + 1 :]]) for place in range(count)])
    error = float(np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum()))
    return Interval(mean, mean - 1.96 * error, mean + 1.96 * error, count)


def _bounds(values: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
