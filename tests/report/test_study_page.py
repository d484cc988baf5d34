import base64
import importlib.util
import json
import re
import time
from pathlib import Path

import pytest
from PIL import Image

from seedstory_jax.errors import UserError
from seedstory_jax.evaluation.stories import StoryFolder
from seedstory_jax.evaluation.study import QUESTIONS, make_pairs, read_back, write_key
from seedstory_jax.report.study_page import write_study_page

spec = importlib.util.spec_from_file_location("chromium", Path(__file__).parents[1] / "chromium.py")
chromium = importlib.util.module_from_spec(spec)
spec.loader.exec_module(chromium)


@pytest.fixture
def study(tmp_path) -> tuple[Path, list]:
    systems = {}
    for name in ("secret-ours", "secret-theirs"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16), (len(name) * 9, 0, 0)).save(tmp_path / name / "0.png")
        images = (tmp_path / name / "0.png", None)
        systems[name] = [StoryFolder(f"s{n}", (f"<i>text {n}</i>", "more"), images) for n in range(3)]
    pairs = make_pairs(systems)
    write_key(tmp_path / "key.json", pairs, "trial <1>", QUESTIONS)
    return write_study_page(tmp_path / "page.html", pairs, systems, study="trial <1>"), pairs


def test_the_page_is_blind_and_whole(study):
    text = study[0].read_text()
    assert "secret" not in text and "<i>" not in text and "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert text.count('class="pair"') == 3 and text.count("data:image/png;base64,") == 6
    assert text.count('type="radio"') == 3 * len(QUESTIONS) * 3 and all(words in text for words in QUESTIONS.values())


def test_a_long_story_is_shown_from_its_first_frame_to_its_last(tmp_path):
    systems = {name: [StoryFolder("s", tuple(f"frame {n}." for n in range(30)), (None,) * 30)] for name in "ab"}
    page = write_study_page(tmp_path / "page.html", make_pairs(systems), systems, study="long", frames=4)
    shown = [n for n in range(30) if f"frame {n}." in page.read_text()]
    assert shown == [0, 10, 19, 29]


@pytest.mark.walk
@pytest.mark.skipif(chromium.find() is None, reason="needs Chromium")
def test_somebody_takes_part_in_a_browser(study, tmp_path):
    page, pairs = study
    choices = {pair.number: "left" if pair.left == "secret-ours" else "right" for pair in pairs}
    with chromium.Browser() as browser:
        browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        browser.size(390, 844, phone=True)
        browser.open(page)
        assert browser.run("document.documentElement.scrollWidth") == 390
        assert browser.run("document.querySelector('[data-export]').disabled")
        for turn in range(len(pairs)):
            if turn == 1:  # a reload in the middle loses nothing
                browser.open(page)
            open_pair = browser.run("document.querySelector('.pair.open').dataset.pair")
            assert browser.run("document.querySelector('[data-next]').disabled")
            chosen = f".pair.open input[value={choices[int(open_pair)]}]"
            browser.run(f"document.querySelectorAll('{chosen}').forEach((input) => input.click())")
            browser.run("document.querySelector('[data-next]').click()")
        assert browser.run("document.querySelector('[data-progress]').textContent").endswith("3 answered")
        assert browser.run("[...document.images].every((i) => i.naturalWidth === 16)")
        browser.run("document.querySelector('[data-export]').click()")
        until = time.monotonic() + 20
        while not (found := list(tmp_path.glob("answers-*.json"))) and time.monotonic() < until:
            time.sleep(0.05)
        assert browser.complaints() == []
    assert set(json.loads(found[0].read_text())["answers"]) == {"0", "1", "2"}
    results = read_back(tmp_path / "key.json", found)
    assert len(results) == len(QUESTIONS) and all(result.first.mean == 1.0 for result in results)
    assert results[0].systems == ("secret-ours", "secret-theirs")


def test_the_page_holds_pixels_and_nothing_else_of_a_file(tmp_path):
    """No metadata that would name a system, and no file that is no picture."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Software", "secret-system")
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png", pnginfo=info)
    (tmp_path / "b.png").write_text("root:x:0:0")

    def page_of(name):
        systems = {one: [StoryFolder("s", ("text",), (tmp_path / name,))] for one in "xy"}
        return write_study_page(tmp_path / "p.html", make_pairs(systems), systems, study="s").read_text()

    shown = [base64.b64decode(data) for data in re.findall(r"base64,([^\"]+)", page_of("a.png"))]
    assert len(shown) == 2 and not any(b"secret" in data for data in shown)
    with pytest.raises(UserError, match="is not a picture"):
        page_of("b.png")
