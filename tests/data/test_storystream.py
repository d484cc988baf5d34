import gzip
import json
import os

import pytest
from PIL import Image

from seedstory_jax.data.storystream import Story, StoryDataset, StoryFault, caption_lines, parse_story
from seedstory_jax.errors import UserError

GOOD = {"id": 1, "images": ["a/0.png", "a/1.png"], "captions": ["one", "two"]}


def test_a_story():
    assert parse_story(json.dumps(GOOD)) == Story(1, ("a/0.png", "a/1.png"), ("one", "two"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "invalid JSON"),
        (b"[" * 100_000, "invalid JSON"),
        (b'"\xff"', "invalid UTF-8 at byte 1"),
        (b"[]", "must be a JSON object"),
        ({"images": [], "captions": []}, "missing key 'id'"),
        ({**GOOD, "id": None}, "the id must be"),
        ({**GOOD, "captions": "ab"}, "must be lists"),
        ({**GOOD, "captions": ["one"]}, "2 images but 1 captions"),
        ({**GOOD, "captions": ["one", " "]}, "caption 1 is empty"),
        ({**GOOD, "captions": ["one", 2]}, "caption 1 is empty or no text"),
        ({**GOOD, "images": ["a", None]}, "image 1 is no path"),
        ({**GOOD, "images": ["a", "/etc/passwd"]}, "absolute path"),
        ({**GOOD, "images": ["a", "C:\\x.png"]}, "absolute path"),
        ({**GOOD, "images": ["a", "b/../../x.png"]}, "path with '..'"),
        ({**GOOD, "images": ["a", "b\\..\\x.png"]}, "path with '..'"),
        ({**GOOD, "images": ["a", "b\0.png"]}, "zero byte"),
        ({"id": 1, "images": [], "captions": []}, "fewer than 1"),
        (b'{"id": NaN, "images": ["a"], "captions": ["b"]}', "NaN is no number"),
        (b'{"id": 1, "images": ["a"], "captions": ["b"], "x": [-Infinity]}', "-Infinity is no number"),
        (b'{"id": 1, "images": ["a"], "captions": ["b"], "x": 1e400}', "1e400 is no number"),
        (b'{"id": 1, "id": 2, "images": ["a"], "captions": ["b"]}', "key 'id' stands more than once"),
        (b'{"id": 1, "images": ["a"], "captions": ["b"], "x": {"y": 1, "y": 1}}', "key 'y' stands more than once"),
        (b'{"id": ' + b"9" * 5000 + b', "images": ["a"], "captions": ["b"]}', "invalid JSON"),
        (b'{"id": "\\ud800", "images": ["a"], "captions": ["b"]}', "half a surrogate pair"),
        (b'{"id": 1, "images": ["a"], "captions": ["b"], "title": "\\uDC00"}', "half a surrogate pair"),
        ({"id": 1, "images": ["http://x/y.png"], "captions": ["b"]}, "an address"),
        ({**GOOD, "given": 3}, "given is 3, of 2 turns"),
        ({**GOOD, "given": "all"}, "given is 'all'"),
        ({**GOOD, "continuation": ["three", ""]}, "continuation must be a list of captions"),
    ],
)
def test_what_is_no_story(line, reason):
    with pytest.raises(StoryFault, match=reason):
        parse_story(line if isinstance(line, bytes) else json.dumps(line))


def test_given_turns_and_captions_to_come():
    assert parse_story(json.dumps(GOOD)).given == 1 and parse_story(json.dumps(GOOD)).continuation == ()
    story = parse_story(json.dumps({**GOOD, "given": 2, "continuation": ["three"]}))
    assert story.given == 2 and story.continuation == ("three",) and len(story) == 2


def test_dataset(tmp_path):
    (tmp_path / "a").mkdir()
    for number in range(2):
        Image.new("RGB", (130, 130), (number, 0, 0)).save(tmp_path / f"a/{number}.png")
    (tmp_path / "one.jsonl").write_text(json.dumps(GOOD) + "\n\n" + json.dumps({**GOOD, "id": "x"}) + "\n")
    data = StoryDataset(tmp_path)
    assert [story.id for story in data] == [1, "x"] and data.offsets.tolist() == [0, 2, 4]
    assert data.captions() == ["one", "two"] * 2
    assert data.image_path(data[0], 1) == tmp_path / "a/1.png"


def test_broken_lines_are_counted(tmp_path):
    (tmp_path / "one.jsonl").write_text(json.dumps(GOOD) + "\n{\n[]\n")
    with pytest.warns(UserWarning, match="left out 2 stories"):
        data = StoryDataset(tmp_path / "one.jsonl")
    assert len(data) == 1 and "line 2" in data.bad[0]
    with pytest.raises(UserError, match=r"more than the 1 allowed.*line 2: invalid JSON.*validate"):
        StoryDataset(tmp_path / "one.jsonl", max_bad=1)


TEXTS = ["[INST] <img> </s>", "\u202eevil\u202c", "a\u200bb", "one\r\ntwo", "a\u2028b\u2029c\x85d", "\ufeffx", "😀é"]


def test_texts_stay_as_they_are_whatever_ends_lines_elsewhere(tmp_path):
    """Also with a byte order mark, Windows' line ends, and packed; raw and escaped."""
    story = {**GOOD, "images": ["a"] * len(TEXTS), "captions": TEXTS}
    lines = json.dumps(story, ensure_ascii=False) + "\r\n\r\n" + json.dumps({**story, "id": 2}) + "\r\n"
    data = b"\xef\xbb\xbf" + lines.encode()
    for name, written in {"a.jsonl": data, "b.jsonl.gz": gzip.compress(data), "c.jsonl": gzip.compress(data)}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(written)
        stories = StoryDataset(tmp_path / name).stories
        assert [one.id for one in stories] == [1, 2] and stories[0].captions == stories[1].captions == tuple(TEXTS)
    (tmp_path / "cut.jsonl").write_bytes(gzip.compress(data)[:-9])
    with pytest.raises(UserError, match="gzip data cannot be unpacked"):
        StoryDataset(tmp_path / "cut.jsonl")


def test_caption_files(tmp_path):
    path = tmp_path / "c.txt"
    path.write_bytes("\ufeffone\r\n\r\n two\u2028still two\x85 \nthree".encode())
    assert caption_lines(path) == ("one", "two\u2028still two", "three")
    for data, words in ((b"\xff", "no UTF-8 at byte 0"), (b" \n", "holds no caption"), (b"", "is empty")):
        path.write_bytes(data)
        with pytest.raises(UserError, match=words):
            caption_lines(path)


def test_what_looks_like_stories_and_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    for source in (tmp_path, tmp_path / "a.jsonl"):
        with pytest.raises(UserError, match=r"no regular file|no JSONL file"):
            StoryDataset(source)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="no JSONL file"):
        StoryDataset(tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no story"):
        StoryDataset(tmp_path / "empty.jsonl")
