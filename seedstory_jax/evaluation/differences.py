"""Differences of every system from a named reference, paired over stories: both wrote (or read) the very same ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from seedstory_jax.evaluation.bootstrap import Interval, bootstrap_mean
from seedstory_jax.evaluation.policy_table import KEYS


@dataclass(frozen=True)
class Difference:
    """Mean over stories of a system's value less the reference's.

    Attributes:
        interval: the mean with 95 % of bootstrap resamples over stories, and the number of stories.
        effect_size: the mean in standard deviations of the stories' differences (Cohen's d for pairs); None where all
            stories differ by the same, or there is one.
    """

    interval: Interval
    effect_size: float | None


def paired_differences(
    records: Sequence[Mapping], reference: str, metrics: Sequence[str] | None = None
) -> dict[str, dict[str, Difference]]:
    """By system and metric, without the reference itself.

    A story counts by its mean over the frames that both systems answer (the prompt is none); one that either lacks is
    left out.
    """
    values: dict[str, dict[str, dict[tuple[str, int], float]]] = {}
    for record in records:
        for name, value in record.items():
            if name not in KEYS and value is not None and record["frame"] > 0:
                own = values.setdefault(str(record["policy"]), {}).setdefault(name, {})
                own[record["story"], record["frame"]] = float(value)
    base = values.get(reference, {})
    return {
        system: {
            metric: _paired(own[metric], base[metric])
            for metric in (own if metrics is None else metrics)
            if metric in own and metric in base
        }
        for system, own in values.items()
        if system != reference
    }


def _paired(ours: Mapping[tuple[str, int], float], theirs: Mapping[tuple[str, int], float]) -> Difference:
    stories: dict[str, list[float]] = {}
    for key in ours.keys() & theirs.keys():
        stories.setdefault(key[0], []).append(ours[key] - theirs[key])
    means = [float(np.mean(stories[name])) for name in sorted(stories)]
    spread = float(np.std(means, ddof=1)) if len(means) > 1 else 0.0
    return Difference(bootstrap_mean([[mean] for mean in means]), float(np.mean(means)) / spread if spread else None)
