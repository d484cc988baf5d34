import dataclasses

import numpy as np
import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.evaluation.ablation import plan_runs
from seedstory_jax.evaluation.teacher_forced import COLUMNS, TrueStory, read_scores, score_runs


@pytest.fixture(scope="module")
def stories():
    rng = np.random.default_rng(3)
    lengths = (6, 3, 5)
    texts = [["".join(rng.choice(list("abc"), 2)) for _ in range(length)] for length in lengths]
    return [
        TrueStory(f"s{n}", tuple(own), rng.normal(size=(len(own), 4, 8)).astype(np.float32))
        for n, own in enumerate(texts)
    ]


def test_scores_are_kept_and_added_to(setup, stories, tmp_path):
    runs, said = plan_runs(["window(window=1)", "dense"], [], [4]), []
    score_runs(setup, runs, stories[:1], tmp_path, batch=2)
    score_runs(setup, runs, stories, tmp_path, batch=2, progress=lambda run, what: said.append((run.label, what)))
    assert said == [("window(window=1)", "2 true stories"), ("dense", "2 true stories")]
    scores = {run.label: read_scores(run, tmp_path, ["s0", "s1", "s9"]) for run in runs}
    for own in scores.values():
        assert list(own) == [("s0", 1), ("s0", 2), ("s0", 3), ("s1", 1), ("s1", 2)]
        assert all(set(values) == set(COLUMNS) and values[COLUMNS[0]] > 0 for values in own.values())
    # The first turn after the prompt reads the same under both; the second one has lost the prompt under the window.
    window, dense = scores["window(window=1)"], scores["dense"]
    assert window["s0", 1] == pytest.approx(dense["s0", 1], rel=1e-5)
    assert abs(window["s0", 2][COLUMNS[0]] - dense["s0", 2][COLUMNS[0]]) > 1e-4
    other = dataclasses.replace(stories[0], texts=("a", *stories[0].texts[1:]))
    with pytest.raises(UserError, match="another story 's0'"):
        score_runs(setup, runs, [other], tmp_path)
