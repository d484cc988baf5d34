import json
from dataclasses import replace

import pytest

from seedstory_jax.config import SampleConfig
from seedstory_jax.errors import UserError
from seedstory_jax.evaluation.ablation import (
    DEFAULT_POLICIES,
    Run,
    generate_runs,
    plan_runs,
    read_run,
    timing_figures,
)
from seedstory_jax.generation.policies import POLICIES
from seedstory_jax.generation.policy_names import parse_named


def test_the_plan():
    runs = plan_runs(["dense", "multimodal_sink"], ["head=0:0,4:4", "window=3"], [5, 9])
    assert [run.name for run in runs[: len(runs) // 2]] == [
        "dense-5",
        "multimodal-sink-5",
        "multimodal-sink-head-0-0-5",
        "multimodal-sink-head-4-4-5",
        "multimodal-sink-window-3-5",
    ]
    assert runs[5] == Run(parse_named("dense"), 9)
    policies = {run.label: run.policy.make(SampleConfig(window=2)) for run in runs}
    assert policies["multimodal_sink(head=0:0)"].head == (0, 0)
    assert policies["multimodal_sink(window=3)"].window == 3 and policies["multimodal_sink"].window == 2


def test_a_grid_is_a_product_of_what_a_policy_has():
    runs = plan_runs(
        ["dense", "window", "multimodal_sink(start=1)"], ["window=4,8 x image_sink_cap=0,2 x start=0,3"], [5]
    )
    assert [run.label for run in runs[3:]] == [
        "window(window=4)",
        "window(window=8)",
        "multimodal_sink(window=4,start=1,image_sink_cap=0)",
        "multimodal_sink(window=4,start=1,image_sink_cap=2)",
        "multimodal_sink(window=8,start=1,image_sink_cap=0)",
        "multimodal_sink(window=8,start=1,image_sink_cap=2)",
    ]


def test_policies_by_default_and_all():
    labels = [run.label for run in plan_runs(DEFAULT_POLICIES, [], [5])]
    assert {"sink", "sink(positions=absolute)", "multimodal_sink(positions=absolute)"} < set(labels)
    assert {*POLICIES, *labels} == {run.label for run in plan_runs(["all", "window"], [], [5])}


def test_two_policies_of_one_folder(tmp_path):
    for name in ("a-b.py", "a_b.py"):
        source = "from seedstory_jax.generation.policies import Window\n\nclass Mine(Window):\n    pass\n"
        (tmp_path / name).write_text(source)
    with pytest.raises(UserError, match="would both lie in"):
        plan_runs([f"{tmp_path}/a-b.py:Mine", f"{tmp_path}/a_b.py:Mine"], [], [5])


@pytest.mark.parametrize(
    "policies, grids, lengths, complaint",
    [
        (["windw"], [], [5], "did you mean 'window'"),
        ([], [], [5], "one or more"),
        (["dense"], [], [1], "lengths from 2"),
        (["sink"], ["hed=1"], [5], "no policy of this table has the setting 'hed'"),
        (["sink"], ["start"], [5], "has no values"),
        (["sink"], ["start=a"], [5], "start=a cannot be"),
        (["sink"], ["positions=left"], [5], "unknown positions"),
        (["window"], ["start=1"], [5], "no policy"),
    ],
)
def test_what_cannot_be_planned(policies, grids, lengths, complaint):
    with pytest.raises(UserError, match=complaint):
        for run in plan_runs(policies, grids, lengths):
            run.policy.make()


def test_another_source_of_the_same_policy_is_refused(setup, requests, tmp_path):
    source = "from seedstory_jax.generation.policies import Window\n\nclass Mine(Window):\n    pass\n"
    (tmp_path / "mine.py").write_text(source)
    (run,) = plan_runs([f"{tmp_path}/mine.py:Mine(window=1)"], [], [3])
    generate_runs(setup, [run], requests[:1], tmp_path / "out", drawn=0, timed=False)
    (tmp_path / "mine.py").write_text(source + "# changed\n")
    with pytest.raises(UserError, match=r"another .*mine\.py:Mine"):
        generate_runs(setup, [run], requests[:1], tmp_path / "out", drawn=0, timed=False)
    generate_runs(setup, plan_runs(["window"], [], [3]), requests[:1], tmp_path / "out", drawn=0, timed=False)


def test_runs_go_on_where_they_stopped(setup, requests, tmp_path):
    runs = plan_runs(["window", "dense"], [], [4])
    done = []

    def stop(folder, story):
        done.append(folder)
        if len(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_runs(setup, runs, requests, tmp_path, drawn=1, batch=2, after=stop)
    first = (tmp_path / "stories" / "window-4" / "s0" / "story.json").stat().st_mtime_ns
    said = []
    generate_runs(
        setup, runs, requests, tmp_path, drawn=1, batch=2, progress=lambda run, what: said.append((run.name, what))
    )
    assert (tmp_path / "stories" / "window-4" / "s0" / "story.json").stat().st_mtime_ns == first
    assert ("dense-4", "3 stories") in said and ("dense-4", "timing") in said
    stories = {run.label: read_run(run, tmp_path, [one.name for one in requests]) for run in runs}
    for told in stories.values():
        assert [len(story) for story in told] == [4, 4, 4]
        assert told[0].pictures() is not None and told[1].pictures() is None
        assert int(told[0].pictures()[2][0, 0, 0]) == 2  # the same noise: by story and frame
    # Before anything is evicted all policies tell the same.
    assert stories["window"][1].texts[:3] == stories["dense"][1].texts[:3]
    figures = timing_figures(runs[0], tmp_path)
    assert figures["kv_slots"].mean == 128 and figures["llm_calls"].mean >= 3 and figures["seconds"].mean > 0
    assert figures["buffer_mb"].mean == pytest.approx(2 * 128 * 16 * 4 / 1e6)
    said.clear()
    generate_runs(setup, runs, requests, tmp_path, drawn=1, progress=lambda run, what: said.append(what))
    assert said == []
    with pytest.raises(UserError, match="another checkpoint"):
        generate_runs(replace(setup, identity={"checkpoint": 2}), runs, requests, tmp_path)
    with pytest.raises(UserError, match="another window"):
        generate_runs(replace(setup, sample=SampleConfig(window=3)), runs, requests, tmp_path)


def test_a_run_that_was_not_timed_has_no_seconds(tmp_path):
    run = Run(parse_named("window"), 4)
    assert timing_figures(run, tmp_path) == {}
    (tmp_path / "timing").mkdir()
    timing = {"seconds": 1.5, "llm_calls": [2, 5, 7], "kv_slots": 128, "buffer_bytes": 2_000_000, "peak_bytes": None}
    (tmp_path / "timing" / "window-4.json").write_text(json.dumps(timing))
    figures = timing_figures(run, tmp_path)
    assert figures["llm_calls"].mean == 6 and figures["buffer_mb"].mean == 2 and figures["peak_mb"].mean is None
