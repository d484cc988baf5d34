import numpy as np
import pytest

from seedstory_jax.evaluation.bootstrap import bootstrap_mean
from seedstory_jax.evaluation.differences import paired_differences


def records(policy, values):
    """values[story][frame]; the prompt's frame comes first."""
    return [
        {"policy": policy, "story": str(story), "frame": frame, "loss": value}
        for story, row in enumerate(values)
        for frame, value in enumerate(row)
    ]


def test_what_stories_have_in_common_cancels():
    rng = np.random.default_rng(0)
    stories = rng.normal(0, 10, (40, 1)) + np.zeros((1, 4))
    better = stories - 0.5 + rng.normal(0, 0.2, stories.shape)
    found = paired_differences(records("dense", stories) + records("sink", better), "dense")
    (difference,) = found["sink"].values()
    assert list(found) == ["sink"] and difference.interval.count == 40
    own = (better - stories)[:, 1:].mean(1)
    assert difference.interval.mean == pytest.approx(own.mean())
    assert difference.effect_size == pytest.approx(own.mean() / own.std(ddof=1))
    assert -0.6 < difference.interval.low < -0.5 < difference.interval.high < -0.4
    unpaired = bootstrap_mean(better.tolist())
    assert unpaired.high - unpaired.low > 3, "unpaired, nothing would show"


def test_only_frames_that_both_answer_count():
    one = records("a", [[9, 1, 2], [9, 3, None], [9, None, None]])
    two = records("b", [[0, 2, None], [0, 4, 7], [0, 1, 1]])
    difference = paired_differences([*one, *two], "a")["b"]["loss"]
    assert (difference.interval.mean, difference.interval.count, difference.effect_size) == (1.0, 2, None)
    assert paired_differences(one, "a") == {} and paired_differences(one, "b") == {"a": {}}
