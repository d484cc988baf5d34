"""Story sets: what is copied, cut, cleaned and skipped."""

import json

import pytest

from seedstory_jax.data.storystream import StoryDataset
from seedstory_jax.errors import UserError
from seedstory_jax.storystream.benchmarks.story_set import (
    Item,
    Options,
    Skipped,
    given_turns,
    plain,
    read_set,
    safe_name,
    shorten,
    write_set,
)


def paint(path, colour=(9, 9, 9)):
    from PIL import Image

    Image.new("RGB", (4, 4), colour).save(path)
    return path


def test_a_set_is_storystream(tmp_path):
    a, b = paint(tmp_path / "a.png"), paint(tmp_path / "b.JPG")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    items = [
        Item("one/two", (a, b), ("First. <image>", "Second."), ("Third.",), {"benchmark": "x", "outputs": 4}),
        Item("one two", (a,), ("Again.",), (), {"benchmark": "x"}),
        Item("torn", (a, tmp_path / "torn.png"), ("A.", "B.")),
        Item("mute", (a,), ("<image>",)),
        Item("none", (), ()),
        Skipped("three", "no reason"),
    ]
    counts = write_set(items, tmp_path / "set")
    assert (counts.written, counts.skipped, counts.cut, counts.longest) == (2, 4, 0, 6)
    dataset = StoryDataset(tmp_path / "set" / "stories.jsonl")
    first, second = dataset.stories
    assert (first.id, second.id) == ("one-two", "one-two-2")
    assert first.captions == ("First.", "Second.") and first.continuation == ("Third.",) and first.given == 2
    assert all(dataset.image_path(first, turn).is_file() for turn in range(2))
    assert sorted(path.name for path in (tmp_path / "set" / "images").iterdir()) == ["one-two", "one-two-2"]
    skipped = tmp_path / "set" / "skipped.jsonl"
    reasons = {row["id"]: row["reason"] for row in map(json.loads, skipped.read_text().splitlines())}
    assert "not a picture" in reasons["torn"] and "caption is empty" in reasons["mute"]
    assert "no picture" in reasons["none"] and reasons["three"] == "no reason"
    with pytest.raises(UserError, match="exists: name a new folder"):
        write_set(items, tmp_path / "set")
    with pytest.raises(UserError, match="story one-two is of x, not of mmie"):
        read_set(tmp_path / "set", "mmie")
    with pytest.raises(UserError, match="holds no stories"):
        read_set(tmp_path)


def test_nothing_is_left_behind(tmp_path):
    with pytest.raises(UserError, match="no story of 1 can be begun; the first: a: text only"):
        write_set([Skipped("a", "text only")], tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_fewer_given_turns(tmp_path):
    a = paint(tmp_path / "a.png")
    item = Item("s", (a, a, a), ("1.", "2.", "3."), ("4.",), {"benchmark": "x"})
    write_set([item], tmp_path / "set", given=2)
    ((story, record),) = read_set(tmp_path / "set")
    assert story.captions == ("1.", "2.") and story.continuation == ("4.",) and record["source"]["dropped_given"] == 1


@pytest.mark.parametrize(
    "text, words, expected",
    [
        ("One two. Three four. Five.", 5, "One two. Three four. Five."),
        ("One two. Three four. Five.", 4, "One two. Three four."),
        ("One two. Three four. Five.", 3, "One two."),
        ("One two three", 2, "One two"),
        ('She said "No!" and left', 4, 'She said "No!"'),
        ("\u4e00\u53ea\u72d0\u72f8\u3002\u5b83\u8dd1\u4e86\u3002", 7, "\u4e00\u53ea\u72d0\u72f8\u3002"),
        ("a b c d", 0, "a b c d"),
    ],
)
def test_captions_are_cut_at_a_sentence(text, words, expected):
    assert shorten(text, words) == expected


def test_marks_are_taken_out():
    assert plain("Once <image> upon\n a <IMG_3>time</s> [INST]x <b>") == "Once upon a time x <b>"
    assert (
        safe_name("../SA story:7/") == "SA-story-7"
        and safe_name("\u6545") == "story"
        and safe_name("0007.b") == "0007.b"
    )


def test_given_turns_end_with_a_picture(tmp_path):
    a, b = paint(tmp_path / "a.png"), paint(tmp_path / "b.png")
    turns = given_turns([("x", None), ("y <image>", a), ("", b), ("z", None)], "s", Options())
    assert turns.captions == ("x y", "z") and turns.pictures == (a, b) and not turns.own
    assert given_turns([("", a)], "s", Options()).captions == ("...",)
    with pytest.raises(UserError, match="text only"):
        given_turns([("x", None)], "s", Options(pictures=tmp_path))
    own = given_turns([("x", None), ("y", None)], "a", Options(pictures=tmp_path))
    assert own.own and own.captions == ("x y",) and own.pictures == (a,)
