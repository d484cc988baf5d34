import json
from pathlib import Path

import pytest
from PIL import Image

from seedstory_jax.data.names import folder_name
from seedstory_jax.errors import UserError
from seedstory_jax.evaluation.stories import common_stories, read_stories, read_story


def pictures(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)


def test_three_ways_to_write_captions(tmp_path):
    for name in ("a", "b", "c"):
        pictures(tmp_path / name, "2.png", "10.png", "1.jpg")
    (tmp_path / "a" / "captions.json").write_text('["one", "two", "ten"]')
    (tmp_path / "b" / "captions.txt").write_text("one\n\n two \nten\n")
    for stem, text in (("1", "one\n"), ("2", "two"), ("10", "ten")):
        (tmp_path / "c" / f"{stem}.txt").write_text(text)
    (tmp_path / ".hidden").mkdir()
    found = read_stories(tmp_path)
    assert [story.name for story in found] == ["a", "b", "c"]
    for story in found:
        assert story.texts == ("one", "two", "ten")
        assert [path.name for path in story.images] == ["1.jpg", "2.png", "10.png"]
        assert story.pictures()[0].shape == (8, 8, 3)


def test_our_own_story_and_text_only(tmp_path):
    frames = [{"text": "a", "image": "0.png"}, {"text": "b", "image": None}]
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "story.json").write_text(json.dumps({"policy": "sink", "frames": frames}))
    story = read_story(tmp_path / "x")
    assert story.images == (tmp_path / "x" / "0.png", None) and story.pictures() is None
    assert story.facts["policy"] == "sink" and read_stories(tmp_path / "x") == [story]
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "captions.txt").write_text("only words")
    assert read_story(tmp_path / "y").images == (None,)


def test_jsonl(tmp_path):
    line = {"id": 7, "images": ["p/0.png"], "captions": ["a"]}
    (tmp_path / "val.jsonl").write_text(json.dumps(line) + "\n\n")
    (story,) = read_stories(tmp_path / "val.jsonl")
    assert story.name == "7" and story.images == (tmp_path / "p" / "0.png",)


@pytest.mark.parametrize(
    "files, complaint",
    [
        ({}, "no stories"),
        ({"s/1.png": b""}, "no captions"),
        ({"s/1.png": b"", "s/captions.txt": b"a\nb"}, "1 pictures but 2 captions"),
        ({"s/captions.json": b"{}"}, "JSON list"),
        ({"s/captions.json": b"{"}, "no JSON"),
        ({"s/captions.txt": b"\xff"}, "cannot be read"),
        ({"s/story.json": b'{"frames": [{}]}'}, "no story"),
        ({"s/story.json": b"[]"}, "no story"),
    ],
)
def test_broken_folders_say_why(tmp_path, files, complaint):
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=complaint):
        read_stories(tmp_path)


def test_missing_paths_and_broken_lines_and_pictures(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_stories(tmp_path / "none")
    (tmp_path / "a.jsonl").write_text('{"id": 1, "images": ["a"], "captions": ["b"]}\n{"id": 2}\n')
    with pytest.raises(UserError, match="line 2"):
        read_stories(tmp_path / "a.jsonl")
    pictures(tmp_path / "s", "1.png")
    (tmp_path / "s" / "captions.txt").write_text("a")
    (tmp_path / "s" / "1.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match="is not a picture"):
        read_story(tmp_path / "s").pictures()


def test_common_stories(tmp_path):
    for system, names in (("ours", ("1", "2")), ("theirs", ("2", "3"))):
        for name in names:
            (tmp_path / system / name).mkdir(parents=True)
            (tmp_path / system / name / "captions.txt").write_text("a")
    systems = {name: read_stories(tmp_path / name) for name in ("ours", "theirs")}
    assert list(common_stories(systems)) == ["2"]
    with pytest.raises(UserError, match="no story in common"):
        common_stories({"ours": systems["ours"][:1], "theirs": systems["theirs"]})


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../secret.png", "..\\secret.png", "link.png", "http://x/y.png", "a\0b", 7]
)
def test_a_story_that_somebody_sends_opens_no_file_but_its_own(tmp_path, name):
    """Neither by a name in story.json or a JSONL file, nor by a link among the pictures."""
    pictures(tmp_path, "secret.png")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "s" / "story.json").write_text(json.dumps({"frames": [{"text": "x", "image": name}]}))
    (tmp_path / "s" / "a.jsonl").write_text(json.dumps({"id": 1, "images": [name], "captions": ["x"]}))
    for path in (tmp_path / "s", tmp_path / "s" / "a.jsonl"):
        with pytest.raises(UserError) as error:
            read_stories(path)
        assert "\n" not in str(error.value)
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "t" / "captions.txt").write_text("x")
    with pytest.raises(UserError, match="by a symlink"):
        read_stories(tmp_path / "t")


def test_a_folder_of_an_id_is_known_by_its_id(tmp_path):
    for one in ("a/b", "A", "x" * 300):
        folder = tmp_path / folder_name(one)
        folder.mkdir()
        (folder / "story.json").write_text(json.dumps({"id": one, "frames": [{"text": "x", "image": None}]}))
    assert {story.name for story in read_stories(tmp_path)} == {"a/b", "A", "x" * 300}
    (folder / "story.json").write_text(json.dumps({"id": "another", "frames": [{"text": "x"}]}))
    assert read_story(folder).name == folder.name  # a story.json cannot take another's place


def test_ids_that_stand_twice_and_lines_that_end_elsewhere(tmp_path):
    lines = [{"id": number, "images": ["a"], "captions": ["one\u2028two"]} for number in (1, "1")]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines[:1]))
    assert read_stories(tmp_path / "a.jsonl")[0].texts == ("one\u2028two",)
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match="line 2: the id '1' stands more than once"):
        read_stories(tmp_path / "a.jsonl")
