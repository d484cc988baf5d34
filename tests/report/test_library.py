import importlib.util
import json
import re
from pathlib import Path

from seedstory_jax.report.library import UP, write_library
from seedstory_jax.report.storybook import write_storybook

spec = importlib.util.spec_from_file_location("storybook_tests", Path(__file__).with_name("test_storybook.py"))
storybook_tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(storybook_tests)
chromium = storybook_tests.chromium


def shelf(out: Path) -> Path:
    for name in ("10", "9", 'odd "#" name'):
        told = storybook_tests.story(out / name, 3)
        told["frames"][1]["source"] = "caption"
        (out / name / "story.json").write_text(json.dumps(told))
        write_storybook(out / name, told, up=UP)
    return out


def test_every_story_is_listed_and_links_back(tmp_path):
    out = shelf(tmp_path / "out")
    text = write_library(out).read_text()
    links = [attrs["href"] for attrs in storybook_tests.Tags(text).all("a")]
    assert links == ["9/index.html", "10/index.html", "odd%20%22%23%22%20name/index.html"]
    assert "3 stories" in text and text.count("1 captions given") == 0 and text.count("1 caption given") == 3
    assert "3 pictures · sink" in text and "Not told" not in text
    assert '<a href="../index.html"' in (out / "9" / "index.html").read_text()


def test_text_only_damaged_and_failed_stories_are_said(tmp_path):
    out = shelf(tmp_path / "out")
    plain = json.loads((out / "9" / "story.json").read_text())
    plain["frames"] = [{**frame, "image": None, "text": "<b>bold</b>"} for frame in plain["frames"]]
    (out / "9" / "story.json").write_text(json.dumps(plain))
    (out / "10" / "story.json").write_text("{")
    plain["frames"][0]["image"] = "../../secret.png"
    (out / "leads out").mkdir()
    (out / "leads out" / "story.json").write_text(json.dumps(plain))
    (out / ".x.partial").mkdir()
    (out / ".x.partial" / "story.json").write_text(json.dumps(plain))
    (out / "errors.jsonl").write_text('{"story": "line 3", "error": "no <picture>"}\n{"story": "cut')
    text = write_library(out).read_text()
    assert "3 turns, text only" in text and "<i>&lt;b&gt;bold&lt;/b&gt;</i>" in text
    assert "2 stories" in text and "secret" not in text
    failed = re.findall("<li>([^<]*)</li>", text)
    assert failed == ["line 3: no &lt;picture&gt;", "10: damaged (JSONDecodeError)", "leads out: damaged (ValueError)"]
