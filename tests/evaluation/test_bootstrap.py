import numpy as np
import pytest

from seedstory_jax.evaluation.bootstrap import Interval, bootstrap_mean, jackknife


def test_mean_over_observations_not_over_groups():
    assert bootstrap_mean([[True, False, None], [1.0]]).mean == pytest.approx(2 / 3)
    assert bootstrap_mean({"a": [True, False], "b": []}) == Interval(0.5, None, None, 2)
    assert bootstrap_mean([[None], []]) == Interval(None, None, None, 0)


def test_interval_of_many_independent_groups_is_the_normal_one():
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    interval = bootstrap_mean([[v] for v in values], resamples=4000)
    half = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)


def test_frames_of_one_story_do_not_make_the_interval_narrower():
    stories = [[float(v)] * 30 for v in np.random.default_rng(2).integers(0, 2, 40)]
    once = bootstrap_mean([story[:1] for story in stories])
    whole = bootstrap_mean(stories)
    assert (whole.low, whole.high) == pytest.approx((once.low, once.high))


def test_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(3).normal(2.0, 3.0, 50)
    interval = jackknife(list(values), lambda some: float(np.mean(some)))
    half = 1.96 * values.std(ddof=1) / np.sqrt(50)
    assert (interval.low, interval.high) == pytest.approx((values.mean() - half, values.mean() + half))
    assert interval.count == 50 and jackknife([], len) == Interval(None, None, None, 0)
    assert jackknife([1, 2], sum) == Interval(3.0, None, None, 2)


def test_as_text():
    assert str(Interval(None, None, None, 0)) == "-"
    assert str(Interval(0.5, 0.25, 1.0, 9)) == "0.5 [0.25, 1]" and str(Interval(2.0, None, None, 1)) == "2"
