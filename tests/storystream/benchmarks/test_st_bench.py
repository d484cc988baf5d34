"""ST-Bench scripts as stories."""

import json

import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.storystream.benchmarks import st_bench
from seedstory_jax.storystream.benchmarks.exports import export_benchmark
from seedstory_jax.storystream.benchmarks.story_set import Options, read_set, write_set


def test_scripts(tmp_path, mock):
    scenes = [
        {"scene_num": 1, "cut": ["True", "False"], "video_prompts": ["A cat wakes.", "It yawns."]},
        {"scene_num": 2, "cut": "True", "video_prompts": "It leaves."},
    ]
    folder = tmp_path / "st" / "story"
    folder.mkdir(parents=True)
    (folder / "cat.json").write_text(json.dumps({"story_overview": "A cat.", "scenes": scenes}))
    (folder / "dog.json").write_text(json.dumps({"story_overview": "A dog.", "scenes": scenes}))
    (folder / "bad.json").write_text(json.dumps({"scenes": [{}]}))
    (folder / "empty.json").write_text(json.dumps({"scenes": []}))
    (folder / "other.json").write_text("[]")
    mock.picture(tmp_path / "own" / "cat" / "00_00_keyframe0.jpg")
    write_set(st_bench.read(tmp_path / "st", Options(pictures=tmp_path / "own")), tmp_path / "set")
    ((story, record),) = read_set(tmp_path / "set", "st-bench")
    assert story.captions == ("A cat.",) and story.continuation == ("A cat wakes.", "It yawns.", "It leaves.")
    assert record["source"]["scenes"] == [1, 1, 2]
    skipped = [json.loads(line) for line in (tmp_path / "set" / "skipped.jsonl").read_text().splitlines()]
    assert [one["id"] for one in skipped] == ["bad", "dog", "empty"] and "dog.png" in skipped[1]["reason"]
    with pytest.raises(UserError, match="scores videos"):
        export_benchmark("st-bench", tmp_path, tmp_path / "set", tmp_path / "out")
    with pytest.raises(UserError, match="holds no ST-Bench"):
        list(st_bench.read(tmp_path, Options()))
