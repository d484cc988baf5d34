import importlib.util
import json
from pathlib import Path

import pytest

from seedstory_jax import book
from seedstory_jax.errors import UserError
from seedstory_jax.export import FORMATS, ExportSettings, export

spec = importlib.util.spec_from_file_location("export_conftest", Path(__file__).parent / "export" / "conftest.py")
stories = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stories)


@pytest.fixture
def story(tmp_path):
    return stories.write_story(tmp_path / "story")


def test_several_targets_at_once(story, tmp_path, capsys):
    targets = [tmp_path / "out" / f"book.{kind}" for kind in ("epub", "html")]
    assert book.main([str(story), *(f"--to={target}" for target in targets), "--title=Mine", "--language=fr"]) == 0
    assert all(target.is_file() for target in targets) and "<title>Mine</title>" in targets[1].read_text()
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and said[0].startswith(str(targets[0])) and " MB in " in said[0]


def test_nothing_is_overwritten_unasked(story, tmp_path):
    target = tmp_path / "book.html"
    target.write_text("old")
    with pytest.raises(UserError, match="--overwrite"):
        book.main([str(story), f"--to={tmp_path / 'book.epub'}", f"--to={target}"])
    assert target.read_text() == "old" and not (tmp_path / "book.epub").exists()  # refused before work begins
    book.main([str(story), f"--to={target}", "--overwrite"])
    assert "<article" in target.read_text()
    (tmp_path / "film.srt").write_text("mine")
    with pytest.raises(UserError, match=r"film\.srt exists"):
        book.main([str(story), f"--to={tmp_path / 'film.mp4'}"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--to=book.doc"], r"no known format.*\.pdf"),
        (["--to=book"], "no known format"),
        (["--to=book.html", "--layout=grid"], r"--layout is for \.pdf"),
        (["--to=book.pdf", "--voice=none"], r"--voice is for \.mp4"),
        (["--to=book.pdf", "--layout=gird"], "did you mean 'grid'"),
        (["--to=book.pdf", "--paper=b7"], "unknown paper"),
        (["--to=film.mp4", "--size=10x10"], "from 128"),
        (["--to=film.mp4", "--size=161x160"], "even"),
        (["--to=film.mp4", "--size=big"], "WIDTHxHEIGHT"),
        (["--to=film.mp4", "--subtitles=hard"], "unknown subtitles"),
        (["--to=film.mp4", "--voice_model=gone.onnx"], "does not exist"),
        (["--to=book.html", "--langauge=en"], "did you mean '--language'"),
        (["--to=book.html", "--config.x=1"], "no config"),
        ([], "--to"),
    ],
)
def test_flags_that_make_no_sense_end_in_one_line(story, tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words) as error:
        book.main([str(story), *flags])
    assert "\n" not in str(error.value) and sorted(tmp_path.iterdir()) == [story]


def test_a_story_that_reaches_outside_is_refused_by_every_format(story, tmp_path):
    facts = json.loads((story / "story.json").read_text())
    facts["frames"][0]["image"] = "/etc/passwd"
    (story / "story.json").write_text(json.dumps(facts))
    for kind in FORMATS:
        with pytest.raises(UserError, match="outside the story's folder"):
            export(story, tmp_path / f"book.{kind}")
    assert sorted(tmp_path.iterdir()) == [story]


def test_unknown_settings_are_named(story, tmp_path):
    with pytest.raises(UserError, match="did you mean 'paper'"):
        export(story, tmp_path / "book.pdf", papers="a4")
    assert ExportSettings().size == (1280, 720)
