import importlib.util
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seedstory_jax.errors import UserError
from seedstory_jax.report.page import href, png_size, write_text
from seedstory_jax.report.storybook import per_frame, write_storybook

spec = importlib.util.spec_from_file_location("chromium", Path(__file__).parents[1] / "chromium.py")
chromium = importlib.util.module_from_spec(spec)
spec.loader.exec_module(chromium)

EVIL = """</p><script>window.evil = 1</script> "quoted" & 'single' <img src=x onerror="window.evil=1">"""


def story(
    folder: Path, count: int = 5, size: int = 64, image: str = "{:03d}.png", text: str = "The dog jumps {}."
) -> dict:
    frames = []
    for index in range(count):
        name = image.format(index)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((size, size, 3), 40 * index, np.uint8)).save(folder / name)
        kept = [["text", frame, 6] for frame in range(index)]
        source = "generated" if index else "prompt"
        frames.append({"index": index, "text": text.format(index), "image": name, "source": source, "kept": kept})
    timing = {"compile_s": 1.5, "llm_s": [0.25] * (count - 1), "render_s": 2.0}
    return {
        "policy": "sink", "length": count, "seed": 3, "frames": frames, "timing": timing, "kv_slots": 1024,
        "llm_calls": [20] * (count - 1), "compilations": 2,
    }  # fmt: skip


class Tags(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def test_page_holds_every_frame_and_escapes_captions(tmp_path):
    given = story(tmp_path, text=EVIL)
    page = write_storybook(tmp_path, json.loads(json.dumps(given)))
    assert page == tmp_path / "index.html"
    text = page.read_text()
    tags = Tags(text)
    assert len(tags.all("article")) == 5
    assert len(tags.all("script")) == 1 and "<script>window.evil" not in text
    pictures = tags.all("img")
    assert len(pictures) == 10 and all("onerror" not in attrs and "alt" in attrs for attrs in pictures)
    assert all("pixels" in attrs["class"] and attrs["width"] == "64" for attrs in pictures)
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert "written in 0.25 s · 20 LLM calls" in text and text.count("LLM calls") == 4


def test_large_pictures_are_smooth_and_lazy_and_names_are_quoted(tmp_path):
    page = write_storybook(tmp_path, story(tmp_path, 2, 200, image='pic #{} "a"?.png'))
    picture = Tags(page.read_text()).all("img")[0]
    assert "pixels" not in picture["class"] and picture["loading"] == "lazy"
    assert picture["src"] == "pic%20%230%20%22a%22%3F.png"


def test_text_only_and_missing_pictures(tmp_path):
    given = story(tmp_path, 3)
    for frame in given["frames"]:
        frame["image"] = None
        del frame["kept"]
    del given["timing"], given["llm_calls"]
    tags = Tags(write_storybook(tmp_path, given).read_text())
    assert not tags.all("img") and len(tags.all("article")) == 3
    given["frames"][1]["image"] = "gone.png"
    assert Tags(write_storybook(tmp_path, given).read_text()).all("img")[0]["src"] == "gone.png"


def test_what_was_given_is_said_turn_by_turn(tmp_path):
    given = story(tmp_path, 3)
    given["frames"][1]["source"] = "caption"
    page = write_storybook(tmp_path, given).read_text()
    assert page.count("the beginning, given") == page.count("caption given") == 1
    assert "read in 0.25 s" in page and "written in 0.25 s" in page


def test_a_story_told_in_a_batch_shows_its_share(tmp_path):
    given = story(tmp_path, 3)
    given["timing"] |= {"llm_s": [0.1, 0.2, 0.3], "together": [4, 4, 1]}
    page = write_storybook(tmp_path, given).read_text()
    assert "written in 0.20 s, its share of 4 stories told together · 20 LLM calls for all of them" in page
    assert "written in 0.30 s · 20 LLM calls<" in page
    assert "<dt>writing, its share of 4 stories</dt><dd>0.6 s</dd>" in page


def test_pages_link_up_and_text_only_pages_say_so(tmp_path):
    given = story(tmp_path, 3)
    assert "All stories" not in write_storybook(tmp_path, given).read_text()
    given["frames"][2]["image"] = None
    page = write_storybook(tmp_path, given, up="../index.html").read_text()
    assert '<a href="../index.html" title="The page that lists this story">&lsaquo; All stories</a>' in page
    assert "3 turns, 2 with pictures" in page and page.count("text only, no picture") == 1
    assert 'aria-label="Text 3 of 3"' in page and 'aria-label="Picture 2 of 3"' in page


def test_a_story_without_frames_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        write_storybook(tmp_path, {"frames": []})
    assert not list(tmp_path.iterdir())


def test_per_frame_lines_up_lists():
    frames = [{"source": "prompt"}, {"source": "generated"}, {"source": "generated"}]
    assert per_frame([1, 2, 3], frames) == [1, 2, 3]
    assert per_frame([2, 3], frames) == [None, 2, 3]
    assert per_frame([1], frames) == [None, None, None]
    assert per_frame(None, frames) == [None, None, None]


def test_write_text_leaves_the_old_file_when_it_fails(tmp_path):
    path = write_text(tmp_path / "a" / "x.html", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert sorted(file.name for file in path.parent.iterdir()) == [".written-by-seedstory", "x.html"]


def test_png_size(tmp_path):
    Image.new("RGB", (7, 9)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"GIF89a")
    assert png_size(tmp_path / "a.png") == (7, 9)
    assert png_size(tmp_path / "b.png") is None and png_size(tmp_path / "c.png") is None
    assert href("a b/c.png") == "a%20b/c.png"


@pytest.mark.walk
@pytest.mark.skipif(chromium.find() is None, reason="needs Chromium")
def test_keys_buttons_swipes_overview_and_theme_in_a_browser(tmp_path):
    page = write_storybook(tmp_path, story(tmp_path, text=EVIL + " {}"))
    number = "Number(document.querySelector('.page.open .number b').textContent)"
    with chromium.Browser() as browser:
        browser.size(390, 844, phone=True)
        browser.scheme("dark")
        browser.open(page)
        assert browser.run("window.evil") is None
        assert browser.run("[...document.images].every((i) => i.naturalWidth === 64)")
        assert browser.run("document.documentElement.scrollWidth") == 390
        assert browser.run(number) == 1
        for key, expected in [("ArrowRight", 2), ("End", 5), ("ArrowRight", 5), ("ArrowLeft", 4), ("Home", 1)]:
            browser.key(key)
            assert browser.run(number) == expected
        browser.swipe(".leaves", -150)
        assert browser.run(number) == 2
        browser.swipe(".leaves", 150)
        assert browser.run(number) == 1
        browser.run("document.querySelector('.turn.on').click()")
        assert browser.run(number) == 2 and browser.run("location.hash") == "#2"
        browser.key("o")
        assert browser.run("document.documentElement.classList.contains('grid')")
        browser.run("document.querySelectorAll('.film a')[3].click()")
        assert browser.run(number) == 4 and not browser.run("document.documentElement.classList.contains('grid')")
        dark = browser.run("getComputedStyle(document.documentElement).backgroundColor")
        browser.key("t")
        assert browser.run("getComputedStyle(document.documentElement).backgroundColor") != dark
        assert browser.complaints() == []


@pytest.mark.parametrize("name", ["//evil.example/x.png", "/etc/passwd", "../x.png", "http://evil.example/x.png"])
def test_a_page_links_no_picture_outside_its_folder(tmp_path, name):
    with pytest.raises(UserError):
        write_storybook(tmp_path, {"frames": [{"text": "x", "image": name}]})
