import json

import pytest
from PIL import Image

from seedstory_jax.data.storystream import StoryDataset
from seedstory_jax.errors import UserError
from seedstory_jax.storystream.__main__ import main
from seedstory_jax.storystream.reshape import chunk, split
from seedstory_jax.storystream.stats import histogram, stats


def write(path, lengths, **more):
    path.write_text(
        "".join(
            json.dumps(
                {
                    "id": number,
                    "images": [f"{number}/{turn}.png" for turn in range(length)],
                    "captions": [f"story {number} turn {turn}" for turn in range(length)],
                    "orders": list(range(length)),
                }
                | more
            )
            + "\n"
            for number, length in enumerate(lengths)
        )
    )
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("options", "firsts"),
    [
        ({}, [0, 10, 20]),
        ({"rest": True}, [0, 10, 20, 30]),
        ({"stride": 5}, [0, 5, 10, 15, 20, 25]),
        ({"length": 40}, []),
        ({"length": 40, "rest": True}, [0]),
        ({"length": 35, "stride": 1}, [0]),
    ],
)
def test_chunk(tmp_path, options, firsts):
    source, out = write(tmp_path / "a.jsonl", [35], title="kept"), tmp_path / "out.jsonl"
    assert chunk(source, out, **options) == len(firsts)
    pieces = read(out)
    assert [piece["orders"][0] for piece in pieces] == firsts
    assert [piece["id"] for piece in pieces] == [f"0/{first}" for first in firsts]
    for piece in pieces:
        assert len(piece["images"]) == len(piece["captions"]) == len(piece["orders"])
        assert piece["title"] == "kept"


def test_chunk_with_the_releases_ids(tmp_path):
    out = tmp_path / "out.jsonl"
    assert main(["chunk", str(write(tmp_path / "a.jsonl", [20, 20])), f"--out={out}", "--keep_ids"]) == 0
    assert [piece["id"] for piece in read(out)] == [0, 0, 1, 1]


def test_chunk_refuses(tmp_path):
    source = write(tmp_path / "a.jsonl", [3])
    with pytest.raises(UserError, match="2 turns or more"):
        chunk(source, tmp_path / "out.jsonl", length=1)
    source.write_text(source.read_text() + "{\n")
    with pytest.raises(UserError, match=r"line 2: invalid JSON.*validate"):
        chunk(source, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists() and len(list(tmp_path.iterdir())) == 1


def test_split_is_by_story_and_the_same_each_time(tmp_path):
    whole = write(tmp_path / "a.jsonl", [20] * 200)
    chunk(whole, tmp_path / "chunks.jsonl")
    for name in ("one", "two"):
        assert (
            main(["split", str(tmp_path / "chunks.jsonl"), f"--out={tmp_path / name}", "--val=0.2", "--test=.1"]) == 0
        )
    parts = {name: read(tmp_path / "one" / f"{name}.jsonl") for name in ("train", "val", "test")}
    assert parts["val"] == read(tmp_path / "two" / "val.jsonl")
    stories = {name: {piece["id"].split("/")[0] for piece in part} for name, part in parts.items()}
    assert not stories["train"] & stories["val"] and not stories["train"] & stories["test"]
    assert sum(map(len, parts.values())) == 400
    assert [len(stories[name]) for name in ("train", "val", "test")] == [140, 40, 20]
    lines = whole.read_text().splitlines(keepends=True)
    (tmp_path / "b.jsonl").write_text("".join(lines[::-1]))  # in another order: the same places
    split(tmp_path / "b.jsonl", {tmp_path / "t.jsonl": 0.7, tmp_path / "v.jsonl": 0.2, tmp_path / "e.jsonl": 0.1})
    assert {str(story["id"]) for story in read(tmp_path / "v.jsonl")} == stories["val"]


def test_split_of_a_few_stories_leaves_none_empty(tmp_path):
    outs = {tmp_path / "t.jsonl": 0.95, tmp_path / "v.jsonl": 0.05}
    assert list(split(write(tmp_path / "a.jsonl", [3] * 4), outs).values()) == [3, 1]
    with pytest.raises(UserError, match="too few"):
        split(write(tmp_path / "a.jsonl", [3]), outs)


def test_split_refuses(tmp_path):
    with pytest.raises(UserError, match="sum to 1"):
        split(write(tmp_path / "a.jsonl", [3]), {tmp_path / "t": 0.5, tmp_path / "v": 0.6})
    with pytest.raises(UserError, match="0 or more"):
        main(["split", str(tmp_path / "a.jsonl"), f"--out={tmp_path}", "--val=1.5"])


def test_stats(tmp_path, capsys):
    source = write(tmp_path / "a.jsonl", [2, 4])
    for number, length in enumerate([2, 4]):
        (tmp_path / str(number)).mkdir()
        for turn in range(length):
            Image.new("RGB", (200, 130)).save(tmp_path / f"{number}/{turn}.png")
    (tmp_path / "1/3.png").write_bytes(b"")
    numbers = stats(source)
    assert numbers["images"] == 6 and numbers["unreadable_images"] == 1 and numbers["resolution"] == "130 x 200"
    assert numbers["story_length"] == 3 and numbers["text_length"] == 4 and numbers["words_per_story"] == 12
    assert numbers["histograms"]["story length (images)"] == [[2, 3, 1], [3, 4, 0], [4, 5, 1]]
    assert main(["stats", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "130 x 200" in out and "█" in out
    assert main(["stats", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == numbers


def test_histogram():
    assert histogram([]) == []
    bins = histogram(list(range(100)), bins=10)
    assert bins[0] == [0, 10, 10] and bins[-1] == [90, 100, 10] and sum(b[2] for b in bins) == 100


def test_pack(tmp_path):
    pytest.importorskip("array_record")
    source = write(tmp_path / "a.jsonl", [2, 3])
    for number, length in enumerate([2, 3]):
        (tmp_path / str(number)).mkdir()
        for turn in range(length):
            Image.new("RGB", (130, 130), (number, turn, 0)).save(tmp_path / f"{number}/{turn}.png")
    (tmp_path / "val.jsonl").write_text(source.read_text().splitlines()[1])  # shares its pictures
    flags = ["pack", str(tmp_path), f"--out={tmp_path / 'packed'}", "--images_per_shard=2"]
    assert main(flags) == 0
    packed = StoryDataset(tmp_path / "packed" / "a.jsonl")
    assert packed[1].images[1] == "images-00001.array_record#1"
    assert StoryDataset(tmp_path / "packed" / "val.jsonl").stories == packed.stories[1:]
    assert len(list((tmp_path / "packed").glob("*.array_record"))) == 3
    with pytest.raises(UserError, match="exists: name a new folder"):
        main(flags)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["statz"], "unknown command 'statz'"),
        (["stats"], "required"),
        (["stats", "x", "--jsn"], "unknown flag '--jsn'"),
        (["stats", "/nowhere"], "no JSONL file"),
        (["chunk", "x", "--out=y", "--length=ten"], "invalid int"),
    ],
)
def test_wrong_use_is_one_line(arguments, words):
    with pytest.raises(UserError, match=words) as error:
        main(arguments)
    assert "\n" not in str(error.value)


def test_help(capsys):
    assert main([]) == 0
    assert "validate DIR" in capsys.readouterr().out
