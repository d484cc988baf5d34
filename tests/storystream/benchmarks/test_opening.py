"""OpenING in and out, by the rules of its judges."""

import json
from pathlib import Path

import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.storystream.benchmarks import opening
from seedstory_jax.storystream.benchmarks.exports import export_benchmark
from seedstory_jax.storystream.benchmarks.story_set import Options, read_set, write_set


@pytest.fixture
def data(tmp_path, mock) -> Path:
    """80 items: 1 to 4 pictures given, every eighth none; tasks of stories and others; a torn line."""
    lines = []
    for number in range(1, 81):
        count = number % 5 if number % 8 else 0
        given = []
        for k in range(1, max(count, 1) + 1):
            path = f"./images/Storybook Completion/{number}-i-{k}.jpg" if count else None
            if path:
                mock.picture(tmp_path / "data" / path, 10 * k)
            begin = "Please complete the story. <BEGIN> " if k == 1 else ""
            given.append({"image": path, "text": f"{begin}Given {k} of {number}.{' <image>' if path else ''}"})
        output = [{"image": f"./images/{number}-o-{k}.jpg", "text": f"Truth {k}."} for k in range(1, 2 + number % 3)]
        task = "Storybook Completion" if number % 4 else "Recipe"
        keys = {"meta_task_id": "3", "meta_task_name": "Completion", "subtask_id": "1", "subtask_name": task}
        conversations = [{"input": given}, {"output": output}]
        lines.append(json.dumps({**keys, "data_id": str(number), "conversations": conversations}))
    (tmp_path / "data" / "test_data.jsonl").write_text("\n".join([*lines, "{torn", '{"subtask_name": "Story"}']) + "\n")
    return tmp_path / "data"


def judged(folder: Path, uid: str) -> tuple[list, list, list, list]:
    """What the judges take from a model's answer; raises where they do."""
    content = json.loads((folder / f"{uid}.json").read_text(encoding="utf-8"))
    given, answer = content["conversations"][0]["input"], content["conversations"][1]["output"]
    texts = [part["text"].strip() for part in answer]
    for part in answer:
        if part["image"] is not None:
            assert (folder / part["image"].split("/")[-1]).is_file()
    return [part["text"].strip() for part in given], [part["image"] for part in given], texts, answer


def test_80_items_in_and_out(data, tmp_path, mock):
    counts = write_set(opening.read(data, Options()), tmp_path / "set")
    lines = {record["source"]["uid"]: record for _, record in read_set(tmp_path / "set", "opening")}
    skipped = [json.loads(line) for line in (tmp_path / "set" / "skipped.jsonl").read_text().splitlines()]
    assert counts.written == len(lines) == 60 - sum(n % 4 != 0 and n % 5 == 0 for n in range(1, 81))
    assert {"line 81"} < {one["id"] for one in skipped} and any("text only" in one["reason"] for one in skipped)
    record = lines["0301003"]
    assert record["captions"] == ["Given 1 of 3.", "Given 2 of 3.", "Given 3 of 3."] and record["given"] == 3

    generated = mock.generate(tmp_path / "set", tmp_path / "generated", without=(4,))
    done = export_benchmark("opening", generated, tmp_path / "set", tmp_path / "out")
    assert done.folder == tmp_path / "out" / "seedstory_jax-multimodal_sink_output"
    truth = {
        opening.uid_of(row): row for row in map(json.loads, (data / "test_data.jsonl").read_text().splitlines()[:80])
    }
    for uid, record in lines.items():
        given, images, texts, answer = judged(done.folder, uid)
        asked = truth[uid]["conversations"][0]["input"]
        assert given == [part["text"].strip() for part in asked] and images == [part["image"] for part in asked]
        assert len(texts) == len(truth[uid]["conversations"][1]["output"])
        for k, part in enumerate(answer):
            turn = record["given"] + k
            assert part["image"] == (None if turn == 4 else f"{uid}-o-{k}.jpg")
            assert turn == 4 or abs(mock.shade(done.folder / part["image"]) - 100 - turn) < 12  # JPEG
    assert (done.shots, done.missing_shots) == (sum(r["source"]["outputs"] for r in lines.values()), 0)


def test_text_only_items_begin_with_a_picture_of_ones_own(data, tmp_path, mock):
    mock.picture(tmp_path / "own" / "0301005.png", 77)
    write_set(opening.read(data, Options(pictures=tmp_path / "own", tasks=("storybook",))), tmp_path / "set")
    lines = {story.id: record for story, record in read_set(tmp_path / "set")}
    assert lines["0301005"]["source"]["own_picture"] and lines["0301005"]["captions"] == ["Given 1 of 5."]
    mock.generate(tmp_path / "set", tmp_path / "generated")
    done = export_benchmark("opening", tmp_path / "generated", tmp_path / "set", tmp_path / "out")
    assert done.folder.name == "seedstory_jax-multimodal_sink-own_pictures_output"
    assert judged(done.folder, "0301005")[1] == [None]


def test_all_tasks_and_no_data(data, tmp_path):
    names = {getattr(one, "name", "") for one in opening.read(data, Options(tasks=("all",)))}
    assert "0301004" in names
    with pytest.raises(UserError, match="holds no OpenING"):
        list(opening.read(tmp_path / "data" / "images", Options()))
    with pytest.raises(UserError, match="holds no picture or text for any of the"):
        write_set(opening.read(data, Options()), tmp_path / "set")
        (tmp_path / "empty").mkdir()
        export_benchmark("opening", tmp_path / "empty", tmp_path / "set", tmp_path / "out")
