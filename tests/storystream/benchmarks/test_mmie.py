"""MMIE in and out, by the rules of its reader."""

import json
from pathlib import Path

import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.storystream.benchmarks import mmie
from seedstory_jax.storystream.benchmarks.exports import export_benchmark
from seedstory_jax.storystream.benchmarks.story_set import Options, read_set, write_set


@pytest.fixture
def data(tmp_path, mock) -> Path:
    """80 questions of 0 to 5 pictures, with odd ids, answers as text, no answers, texts that are null."""
    items = []
    for number in range(80):
        count = number % 6
        question = [{"text": f"Question {number}.", "image": None}]
        for k in range(count):
            path = f"images/q {number}-{k}.png"
            mock.picture(tmp_path / "data" / path, 5 * k)
            question.append({"text": None if k == 1 else f"Part {k}. <image>", "image": path})
        kind = ("SA", "PBL", "MSR")[number % 3]
        truth = [{"text": f"Truth {number}.", "image": f"images/a-{number}.png"}] * (number % 4)
        row = {"id": f"{kind}/story {number}", "question": question}
        row |= {"gt_answer": truth} if number % 5 else {"answer": f"Only text {number}."}
        items.append(row)
    (tmp_path / "data" / "mmie.json").write_text(json.dumps([*items, {"id": "broken"}]), encoding="utf-8-sig")
    return tmp_path / "data"


def read_by_mmie(folder: Path) -> list[dict]:
    """The rules of MMIE's reader: three pictures at most of question and answer; it raises where theirs does."""
    kept = []
    for row in json.loads((folder / "data.json").read_text()):
        images, texts = [], []
        for part in row["question"]:
            if part["image"] is not None:
                assert (folder / part["image"]).is_file()
                images.append(folder / part["image"])
        for part in row["answer"]:
            texts += [part["text"]] if part["text"] is not None else []
            if len(images) > 2:
                break
            if part["image"] is not None:
                images.append(folder / part["image"])
        truth = row["gt_answer"][0]["text"]
        assert any(kind in row["id"] for kind in ("SA", "PBL", "MSR")) and row["model"]
        if len(images) <= 4:
            kept.append({"id": row["id"], "images": images, "texts": texts, "truth": truth})
    return kept


def test_80_questions_in_and_out(data, tmp_path, mock):
    counts = write_set(mmie.read(data, Options()), tmp_path / "set")
    lines = {record["source"]["id"]: record for _, record in read_set(tmp_path / "set", "mmie")}
    expected = [number for number in range(80) if 0 < number % 6 < 5]
    assert list(lines) == [f"{('SA', 'PBL', 'MSR')[n % 3]}/story {n}" for n in expected] and counts.skipped == 81 - 53
    three = lines["SA/story 3"]
    assert three["id"] == "SA-story-3" and three["captions"] == ["Question 3. Part 0.", "...", "Part 2."]

    generated = mock.generate(tmp_path / "set", tmp_path / "generated", policy="sink")
    done = export_benchmark("mmie", generated, tmp_path / "set", tmp_path / "out")
    assert done.folder == tmp_path / "out" / "seedstory_jax-sink"
    rows = read_by_mmie(done.folder)
    assert [row["id"] for row in rows] == list(lines)  # none is left out
    for row, record in zip(rows, lines.values(), strict=True):
        number = int(row["id"].split()[-1])
        assert [mock.shade(path) for path in row["images"][: record["given"]]] == [
            5 * k for k in range(record["given"])
        ]
        shown = row["images"][record["given"] :]
        assert [mock.shade(path) for path in shown] == [100 + record["given"] + k for k in range(len(shown))]
        assert row["truth"] == (
            "" if number % 4 == 0 and number % 5 else f"{'Truth' if number % 5 else 'Only text'} {number}."
        )


def test_tasks_and_no_data(data, tmp_path):
    names = [one.name for one in mmie.read(data, Options(tasks=("PBL",)))]
    assert names and all(name.startswith("PBL") for name in names)
    with pytest.raises(UserError, match="holds no MMIE"):
        list(mmie.read(data / "images", Options()))
