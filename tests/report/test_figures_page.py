import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seedstory_jax.evaluation.attention_statistics import AttentionStatistics
from seedstory_jax.evaluation.bootstrap import Interval
from seedstory_jax.evaluation.judge_tables import Duel
from seedstory_jax.evaluation.measure import Measurement
from seedstory_jax.evaluation.policy_table import records_of
from seedstory_jax.evaluation.stories import StoryFolder
from seedstory_jax.report.attention_page import write_attention_page
from seedstory_jax.report.contact_sheet import spread, write_contact_sheet
from seedstory_jax.report.figures_page import section_of, thirds, write_figures
from seedstory_jax.report.judge_page import write_judge_page

spec = importlib.util.spec_from_file_location("chromium", Path(__file__).parents[1] / "chromium.py")
chromium = importlib.util.module_from_spec(spec)
spec.loader.exec_module(chromium)


@pytest.mark.parametrize(
    "length, ranges",
    [(30, [(2, 10), (11, 20), (21, 30)]), (25, [(2, 8), (9, 17), (18, 25)]), (3, [(2, 2), (3, 3)]), (2, [(2, 2)])],
)
def test_ranges_are_thirds(length, ranges):
    assert thirds(length) == ranges


def test_contact_sheet(tmp_path):
    images = []
    for index in range(7):
        images.append(tmp_path / f"{index}.png")
        Image.new("RGB", (16, 16), (index * 30, 0, 0)).save(images[-1])
    story = StoryFolder("a", ("t",) * 7, tuple(images))
    plain = StoryFolder("b", ("t",), (None,))
    sheet = write_contact_sheet(tmp_path / "deep" / "sheet.png", [plain, story, story], columns=3, side=32)
    pixels = np.asarray(Image.open(sheet))
    assert pixels.shape == (68, 104, 3)
    assert [pixels[5, x, 0] for x in (5, 41, 77)] == [0, 90, 180] and pixels[33, 5].tolist() == [255] * 3
    assert write_contact_sheet(tmp_path / "none.png", [plain]) is None
    assert spread(30, 4) == [0, 10, 19, 29] and spread(2, 9) == [0, 1]


@pytest.fixture
def page(tmp_path) -> Path:
    stories, measured = {}, Measurement()
    for system in ("window", "sink start=0", "<odd> |name"):
        folder = tmp_path / "stories" / str(len(stories)) / "s0"
        folder.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(folder / "0.png")
        (folder / "index.html").write_text("<!doctype html><title>book</title>")
        stories[system] = [StoryFolder("s0", ("a",) * 6, (folder / "0.png",) * 6)]
        measured.records += records_of(system, "s0", [{"scene": True}] * 6)
        measured.records += records_of(system, "s1", [{"scene": False}] * 6)
        measured.figures[system] = {"frechet_vit": Interval(1.5, 1.0, 2.0, 10), "length": Interval(6.0, None, None, 1)}
    sheets = {"window": write_contact_sheet(tmp_path / "sheets" / "window.png", stories["window"])}
    section = section_of("Six frames", measured, 6, stories=stories, sheets=sheets)
    return write_figures(tmp_path, "ablation", "What it remembers", [section], notes=["A <note>."], up="../index.html")


def test_all_four_files_agree(page):
    content = json.loads(page.with_name("ablation.json").read_text())
    assert content["sections"][0]["figures"]["window"]["frechet_vit"]["mean"] == 1.5
    rows = list(csv.DictReader(page.with_name("ablation.csv").read_text().splitlines()))
    assert rows[0]["metric"] == "frechet_vit" and rows[0]["low"] == "1.0"
    assert {row["frames"] for row in rows} == {"", "2-2", "3-4", "5-6", "2-6"}
    text = page.with_name("ablation.md").read_text()
    assert "| `window` | 1.5 [1, 2] | 6 |" in text and "0.50 [0.00, 1.00]" in text
    html = page.read_text()
    assert "&lt;odd&gt; |name" in html and "<odd>" not in html and "A &lt;note&gt;." in html
    assert '<a href="../index.html">&lsaquo; Up</a>' in html
    assert 'src="sheets/window.png"' in html and 'href="stories/1/s0/index.html"' in html


def attention() -> AttentionStatistics:
    return AttentionStatistics(
        stories=2,
        maps=16,
        occurrences={"BOI": 1.0, "IMG00": 0.5},
        mean_attention={"BOI": 0.1, "IMG00": 0.05, "text": 0.001},
        heat=np.tril(np.ones((8, 8))),
        head_mass={-1: 0.1, 0: 0.5, 1: 0.1},
        tail_mass={-1: 0.1, 0: 0.2},
        old_share=0.25,
    )


def test_attention_page(tmp_path):
    text = write_attention_page(tmp_path / "a.html", attention(), window=8).read_text()
    assert "25.0% of all attention" in text and "IMG00" in text and text.count("<svg") == 4


def test_judge_page(tmp_path):
    rate = Interval(0.5, 0.2, 0.8, 4)
    duels = [Duel(("ours", "theirs"), "style", (2, 1), 1, (rate, rate), rate, rate, 0)]
    text = write_judge_page(tmp_path / "j.html", duels, {"ours": {"style": rate}}, unread=3).read_text()
    assert "50.0 %" in text and "3 answers are missing" in text and "0.5<small>0.2 to 0.8</small>" in text
    duels.append(Duel(("ours", "others"), "style", (2, 1), 1, (rate, rate), rate, rate, 0))
    text = write_judge_page(tmp_path / "j.html", duels, {}, 0).read_text()
    assert "ours against theirs: style</" in text and "ours against others: style</" in text  # each pie names its pair
    assert "<h1>" in write_judge_page(tmp_path / "k.html", [], {}, 0).read_text()


@pytest.mark.walk
@pytest.mark.skipif(chromium.find() is None, reason="needs Chromium")
def test_pages_in_a_browser(page, tmp_path):
    rate = Interval(0.5, 0.2, 0.8, 4)
    duels = [Duel(("ours", "theirs"), "style", (2, 1), 1, (rate, rate), rate, rate, 0)]
    judge = write_judge_page(tmp_path / "j.html", duels, {"ours": {"style": rate}}, unread=3)
    with chromium.Browser() as browser:
        browser.size(390, 844, phone=True)
        for one in (page, write_attention_page(tmp_path / "a.html", attention(), window=8), judge):
            browser.open(one)
            assert browser.run("document.documentElement.scrollWidth") == 390, one.name
            assert browser.run("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
            assert browser.complaints() == []
