import json

import pytest

from seedstory_jax.config import Config, from_dict
from seedstory_jax.demo import run_demo


def demo(workdir, out):
    """A demo of a run that is trained already."""
    config = from_dict(Config, json.loads((workdir / "config.json").read_text()))
    return run_demo(config, workdir, out, stories=2, length=3, drawn=1, timed=False)


@pytest.fixture(scope="module")
def page(trained_workdir, tmp_path_factory):
    return demo(trained_workdir, tmp_path_factory.mktemp("demo") / "out")


def test_a_demo_ends_with_the_ablation(page):
    out, html = page.parent, page.read_text()
    assert 'href="../index.html"' in (page.parent / "ablation" / "index.html").read_text()
    assert 'href="ablation/index.html"' in html and 'href="ablation/stories/dense-3/' in html
    (section,) = json.loads((out / "ablation" / "ablation.json").read_text())["sections"]
    policies = ["dense", "window", "sink", "multimodal_sink", "window_recompute"]
    assert list(section["figures"]) == policies and section["quality"]["stories"] == dict.fromkeys(policies, 2)
    assert {"well_formed", "scene", "style_consistency"} <= set(section["quality"]["metrics"])
    assert (out / "policies.md").read_text().count("captions well formed") == 5
    assert (out / "policies.svg").read_text().startswith("<svg") and not list(out.rglob("*.partial"))
    assert set(json.loads((out / "seconds.json").read_text())) == {"training", "telling and drawing", "measuring"}


def test_a_demo_goes_on_where_it_stopped(page, trained_workdir):
    books = page.parent / "ablation" / "stories"
    before = {path: path.stat().st_mtime_ns for path in books.rglob("story.json")}
    gone = next(path for path in before if "sink-3" in path.parts)
    gone.unlink()
    assert demo(trained_workdir, page.parent) == page
    after = {path: path.stat().st_mtime_ns for path in books.rglob("story.json")}
    assert after.keys() == before.keys() and [path for path in after if after[path] != before[path]] == [gone]
