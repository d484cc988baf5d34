"""InterleavedBench in and out: its own form both ways."""

import json

import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.storystream.benchmarks import interleavedbench
from seedstory_jax.storystream.benchmarks.exports import export_benchmark
from seedstory_jax.storystream.benchmarks.story_set import Options, Skipped, read_set, write_set


@pytest.fixture
def data(tmp_path, mock):
    """80 items of two tasks; ids repeat, one has a mark too many, every tenth no picture."""
    items = []
    for number in range(80):
        count = number % 3 + 1 if number % 10 else 0
        images = [f"set_{number % 4}/{number}_{k}.jpg" for k in range(count + 2)]
        for k, path in enumerate(images):
            mock.picture(tmp_path / "data" / "zipped_images" / path, 20 * k)
        marks = ". ".join(f"Step {k}: <image>" for k in range(count))
        asked = {"from": "human", "value": f"{marks}. Go on with the story."}
        if number == 11:
            asked["value"] = "<image> " * 9
        answer = {"from": "gpt", "value": "Then <image> and then <image>."}
        task = "visual_story_completion" if number % 2 else "wikihow_next_step"
        items.append({"id": f"x{number % 7}", "image": images, "conversations": [asked, answer], "task_name": task})
    (tmp_path / "data" / "interleaved_bench.json").write_text(json.dumps([*items, {"id": 3}]))
    return tmp_path / "data"


def test_80_items_in_and_out(data, tmp_path, mock):
    write_set(interleavedbench.read(data, Options(tasks=("all",))), tmp_path / "set")
    lines = {story.id: record for story, record in read_set(tmp_path / "set", "interleavedbench")}
    assert len(lines) == 80 - 8 - 1 and "0011" not in lines and "0010" not in lines
    assert lines["0002"]["captions"] == ["Step 0:", "Step 1:", "Step 2: Go on with the story."]
    generated = mock.generate(tmp_path / "set", tmp_path / "generated", without=(3,))
    done = export_benchmark("interleavedbench", generated, tmp_path / "set", tmp_path / "out")
    rows = json.loads((done.folder / "predictions.json").read_text())
    assert len(rows) == len(lines)
    for row, record in zip(rows, lines.values(), strict=True):
        asked, answer = row["conversations"]
        given = asked["value"].count("<image>")
        assert given == record["given"] and answer["from"] == "gpt" and row["task_name"] and row["id"]
        assert given + answer["value"].count("<image>") == len(row["image"])  # a picture a mark, in their order
        red = [mock.shade(done.folder / path) for path in row["image"]]
        turns = [turn for turn in (given, given + 1) if turn != 3]
        assert [abs(a - b) < 12 for a, b in zip(red, [*(20 * k for k in range(given)), *(100 + t for t in turns)])]
        assert len(red) == given + len(turns)


def test_story_tasks_are_the_default(data, tmp_path):
    found = list(interleavedbench.read(data, Options()))
    assert len(found) == 41 and [one.name for one in found if isinstance(one, Skipped)] == ["0011", "0080"]
    with pytest.raises(UserError, match="holds no InterleavedBench"):
        list(interleavedbench.read(tmp_path, Options()))
