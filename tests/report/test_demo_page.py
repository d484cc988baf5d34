import importlib.util
import json
from pathlib import Path

import pytest
from PIL import Image

from seedstory_jax.evaluation.policy_table import policy_table, records_of
from seedstory_jax.report.demo_page import write_demo_page
from seedstory_jax.report.storybook import write_storybook

spec = importlib.util.spec_from_file_location("chromium", Path(__file__).parents[1] / "chromium.py")
chromium = importlib.util.module_from_spec(spec)
spec.loader.exec_module(chromium)


def a_story(folder: Path, policy: str, pictures: bool = True) -> Path:
    folder.mkdir(parents=True)
    frames = []
    for index in range(6):
        name = f"frame_{index:04d}.png"
        if pictures:
            Image.new("RGB", (32, 32), (40 * index, 90, 90)).save(folder / name)
        text = f"<b>Frame</b> {index}"
        frames.append({"index": index, "text": text, "image": name if pictures else None, "source": "generated"})
    story = {"policy": policy, "frames": frames, "timing": {"llm_s": [0.1] * 6}, "kv_slots": 256}
    (folder / "story.json").write_text(json.dumps(story))
    write_storybook(folder, story)
    return folder


@pytest.fixture
def page(tmp_path) -> Path:
    out, workdir = tmp_path / "out demo", tmp_path / "run"
    stories = {name: a_story(out / "stories" / name, name, name != "sink") for name in ("window", "sink")}
    for name in ("step_000100.png", "step_000200.png"):
        (workdir / "story" / "previews").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 32)).save(workdir / "story" / "previews" / name)
    rows = [{"stage": "story", "step": step, "loss": 1 / step, "step_seconds": 0.5} for step in range(1, 40)]
    (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    records = [r for name in stories for s in range(3) for r in records_of(name, str(s), [{"scene": True}] * 30)]
    (out / "ablation.html").write_text("<!doctype html><title>x</title>")
    return write_demo_page(
        out,
        workdir=workdir,
        stories=stories,
        table=policy_table(records),
        facts={"minutes": 19.5},
        links={"ablation": out / "ablation.html"},
    )


def test_everything_is_linked_and_escaped(page):
    text = page.read_text()
    for part in (
        'href="stories/window/index.html#6"',
        'href="stories/sink/index.html#1"',
        'src="pictures/story/step_000200.png"',
        "<figcaption>step 200</figcaption>",
        'href="ablation.html"',
        "39 steps, 0.3 minutes",
        "19.5",
    ):
        assert part in text
    assert "<b>Frame" not in text and "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_a_page_of_nothing(tmp_path):
    assert "<h1>" in write_demo_page(tmp_path / "out", workdir=tmp_path, stories={}).read_text()


@pytest.mark.walk
@pytest.mark.skipif(chromium.find() is None, reason="needs Chromium")
def test_every_link_and_picture_opens_in_a_browser(page):
    with chromium.Browser() as browser:
        browser.size(390, 844, phone=True)
        browser.open(page)
        assert browser.run("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
        assert browser.run("document.documentElement.scrollWidth") == 390
        links = browser.run("[...document.links].map((a) => a.href)")
        assert browser.complaints() == []
        for link in {link.split("#")[0] for link in links}:
            browser.open(link)
            assert browser.run("document.title") and browser.complaints() == []
