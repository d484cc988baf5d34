import json
import os

import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.export.reader import clean, read_book


def test_a_story_is_read_with_what_was_given(story_dir):
    book = read_book(story_dir)
    assert [page.number for page in book.pages] == [1, 2, 3]
    assert [page.given for page in book.pages] == ["the beginning, given", "caption given", ""]
    assert book.title == "The dog waves." and read_book(story_dir, title=" My\n dog ").title == "My dog"
    assert book.byline == "Told by a model: 2 of 3 captions were given, the rest was generated (policy window)"
    assert book.pages[1].picture().size == (200, 200) and book.has_pictures
    assert "\x07" not in book.pages[2].text and "</p><script>" in book.pages[2].text
    assert book.modified.timestamp() == int((story_dir / "story.json").stat().st_mtime)


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (("prompt", "generated"), "the first turn was given, the rest was generated"),
        (("prompt", "caption"), "every caption was given, the pictures were generated"),
        (("generated",), "Told by a model: generated (policy"),
    ],
)
def test_the_byline_says_what_was_given(tmp_path, make_story, sources, words):
    assert words in read_book(make_story(tmp_path / "s", sources=sources)).byline


@pytest.mark.parametrize("image", ["/etc/passwd", "../secret.png", "a/../../secret.png", "link.png", "\0", "x" * 9000])
def test_no_picture_outside_the_folder_is_followed(tmp_path, story_dir, image):
    (tmp_path / "secret.png").write_bytes((story_dir / "frame_0000.png").read_bytes())
    os.symlink(tmp_path / "secret.png", story_dir / "link.png")
    story = json.loads((story_dir / "story.json").read_text())
    story["frames"][1]["image"] = image
    (story_dir / "story.json").write_text(json.dumps(story))
    with pytest.raises(UserError, match="image of turn 2") as error:
        read_book(story_dir)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no story"),
        ('{"frames": []}', "no story"),
        ('{"frames": [3]}', "no story"),
        ('{"frames": [{"image": null}]}', "turn 1 has no text"),
        ('{"frames": [{"text": 3}]}', "turn 1 has no text"),
        ('{"frames": [{"text": "a", "image": 3}]}', "must be a file name"),
        ('{"frames": [{"text": "a", "image": "gone.png"}]}', "does not exist"),
        ('{"frames": [{"text": "a", "image": "story.json"}]}', "not a picture"),
        ('{"frames": [{"text": "a", "image": "."}]}', "is no regular file"),
        ("\xff", "no JSON"),
        (json.dumps({"frames": [{"text": "a"}] * 2001}), "more than 2,000"),
        (json.dumps({"frames": [{"text": "a" * 10_001}]}), "more than 10,000"),
    ],
)
def test_damaged_stories_end_in_one_line(tmp_path, content, words):
    (tmp_path / "story.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=words) as error:
        read_book(tmp_path)
    assert "\n" not in str(error.value)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(UserError, match="gone is no folder: give"):
        read_book(tmp_path / "gone")
    with pytest.raises(UserError, match=r"holds no story\.json: give"):
        read_book(tmp_path)


def test_a_cut_off_picture_is_refused(story_dir):
    picture = story_dir / "frame_0001.png"
    picture.write_bytes(picture.read_bytes()[:-40])
    with pytest.raises(UserError, match="frame_0001"):
        read_book(story_dir)


def test_languages_are_tags(story_dir):
    assert read_book(story_dir, language="zh-Hans").language == "zh-Hans"
    with pytest.raises(UserError, match="language tag"):
        read_book(story_dir, language='en"/>')


def test_clean_leaves_what_xml_can_hold():
    assert clean("a\x00b\ud800c\n d\ufffe") == "a b c d"
