"""The commands as a user types them, and what they say to mistakes: one line, the way out, nothing half-written."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

import seedstory_jax.cli as cli
from seedstory_jax.errors import UserError


def command(name: str):
    """`main` of train.py or sample.py."""
    import importlib.util
    from pathlib import Path

    spec = importlib.util.spec_from_file_location(name, Path(__file__).resolve().parents[1] / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def flags(trained_workdir, picture, tmp_path):
    return {
        "--workdir": trained_workdir,
        "--image": picture,
        "--text": "The monkey waves in the park.",
        "--length": 4,
        "--out": tmp_path / "story",
    }


def run(flags) -> int:
    return command("sample")([name if value is True else f"{name}={value}" for name, value in flags.items()])


def test_a_story_from_ones_own_picture(flags):
    assert run(flags) == 0
    story = json.loads((flags["--out"] / "story.json").read_text())
    assert story["policy"] == "multimodal_sink"
    assert [frame["source"] for frame in story["frames"]] == ["prompt"] + ["generated"] * 3
    for frame in story["frames"]:
        with Image.open(flags["--out"] / frame["image"]) as drawn:
            assert drawn.size == (16, 16)
    assert {"compile_s", "llm_s", "render_s"} <= story["timing"].keys()
    assert "<html" in (flags["--out"] / "index.html").read_text()


def test_only_exact_length_keeps_the_model_from_ending_a_story(flags, monkeypatch, capsys):
    allowed = []

    def ends_at_once(engine, request, out, **options):
        allowed.append(engine.config.allow_end)
        return {"frames": [{"text": request.text, "image": None}], "ending": "end"}

    monkeypatch.setattr("seedstory_jax.sampling.write_one", ends_at_once)
    assert run(flags) == 0 and "(--exact_length goes on)" in capsys.readouterr().out
    assert run({**flags, "--exact_length": True}) == 0
    assert allowed == [True, False]


def test_given_captions_are_drawn(flags, tmp_path):
    captions = tmp_path / "captions.txt"
    captions.write_text("The monkey sleeps in the park.\n\nThe monkey jumps in the park.\n")
    assert run({**flags, "--mode": "visualize", "--captions": captions, "--policy": "window"}) == 0
    story = json.loads((flags["--out"] / "story.json").read_text())
    texts = [frame["text"] for frame in story["frames"]]
    assert texts[1:] == ["The monkey sleeps in the park.", "The monkey jumps in the park."]
    assert (flags["--out"] / "index.html").read_text().count("caption given") == 2


def test_many_stories_and_a_bad_one(flags, trained_workdir, capsys):
    world = trained_workdir / "world"
    lines = (world / "val.jsonl").read_text().splitlines()
    broken = json.loads(lines[0]) | {"id": "gone", "images": ["images/none.png"] * 30}
    stories = flags["--out"].with_suffix(".jsonl")
    stories.write_text("\n".join([*lines, json.dumps(broken)]))
    many = {"--workdir": trained_workdir, "--stories": stories, "--image_root": world, "--out": flags["--out"]}
    assert run({**many, "--length": 2, "--policy": "window"}) == 1
    assert "2 stories written" in capsys.readouterr().out
    assert "does not exist" in (flags["--out"] / "errors.jsonl").read_text()
    ids = [str(json.loads(line)["id"]) for line in lines]
    assert all((flags["--out"] / name / "story.json").exists() for name in ids)
    library = (flags["--out"] / "index.html").read_text()
    assert all(f'href="{name}/index.html"' in library for name in ids) and "gone" not in library
    assert "does not exist" in library  # what failed is said
    assert 'href="../index.html"' in (flags["--out"] / ids[0] / "index.html").read_text()


def _file(content: bytes):
    def make(folder):
        path = folder / "bad.png"
        path.write_bytes(content)
        return path

    return make


def _huge(folder):
    path = folder / "huge.png"
    Image.new("1", (20_000, 20_000)).save(path)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--image": lambda folder: folder / "missing.png"}, "does not exist"),
        ({"--image": _file(b"")}, "is empty"),
        ({"--image": _file(b"no picture at all")}, "not a picture"),
        ({"--image": _huge}, "400,000,000|more than"),
        ({"--text": ""}, "--text is empty"),
        ({"--text": "monkey " * 10_000}, "max_text_tokens|longer than"),
        ({"--text": "The monkey <img> waves."}, "<img>"),
        ({"--policy": "multimodal_snk"}, "did you mean 'multimodal_sink'"),
        ({"--mode": "visualise"}, "did you mean 'visualize'"),
        ({"--length": 0}, "at least 1"),
        ({"--length": 10**12, "--policy": "dense"}, r"slots.*GB.*--policy=window"),
        ({"--lenght": 3}, "unknown flag '--lenght': did you mean '--length'"),
        ({"--config.sample.stepz": 3}, "did you mean 'steps'"),
        ({"--config": "configs/nowhere.py"}, "not found"),
        ({"--steps": 0}, "at least 1"),
        ({"--exact_length": True, "--at_limit": "stop"}, "leave one out"),
    ],
)
def test_mistakes_end_in_one_line(flags, tmp_path, changes, message):
    changes = {name: value(tmp_path) if callable(value) else value for name, value in changes.items()}
    with pytest.raises(UserError, match=message) as error:
        run({**flags, **changes})
    assert "\n" not in str(error.value)
    assert not flags["--out"].exists()


def test_workdir_without_a_run(flags, tmp_path):
    with pytest.raises(UserError, match=r"holds no run.*train\.py"):
        run({**flags, "--workdir": tmp_path / "nothing"})


def test_workdir_with_a_damaged_or_foreign_checkpoint(flags, trained_workdir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(trained_workdir, copy, ignore=shutil.ignore_patterns("world", "cache"))
    for file in (copy / "story").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
        run({**flags, "--workdir": copy})
    shutil.rmtree(copy / "story")
    shutil.copytree(trained_workdir / "detokenizer", copy / "story")
    with pytest.raises(UserError, match="has no trained story"):
        run({**flags, "--workdir": copy})
    (copy / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be used"):
        run({**flags, "--workdir": copy})


def test_train_names_the_nearest_config_key(tmp_path):
    train = command("train")
    with pytest.raises(UserError, match=r"'story\.stepz'.*did you mean 'steps'|unknown config key.*'steps'"):
        train(["--config=configs/toy.py", f"--workdir={tmp_path}", "--config.story.stepz=5"])
    with pytest.raises(UserError, match="did you mean 'story'"):
        train(["--config=configs/toy.py", f"--workdir={tmp_path}", "--config.stages=stori"])
    with pytest.raises(UserError, match="takes int"):
        train(["--config=configs/toy.py", f"--workdir={tmp_path}", "--config.story.steps=many"])


def test_broken_story_lines_are_counted_and_too_many_refused(micro, tmp_path):
    import dataclasses

    from seedstory_jax.features.run_data import RunData

    folder = tmp_path / "data"
    folder.mkdir()
    good = {"id": 1, "images": ["a.png", "b.png"], "captions": ["One.", "Two."]}
    (folder / "train.jsonl").write_text(json.dumps(good) + "\n{broken\n")
    data = dataclasses.replace(micro.data, folder=str(folder))
    with pytest.warns(UserWarning, match="left out 1 stories"):
        assert len(RunData(dataclasses.replace(micro, data=data), tmp_path).train) == 1
    strict = dataclasses.replace(data, max_bad=0)
    with pytest.raises(UserError, match=r"line 2.*invalid JSON"):
        _ = RunData(dataclasses.replace(micro, data=strict), tmp_path).train


def test_the_door_prints_one_line_and_exits_with_2(monkeypatch, capsys):
    def main(arguments):
        raise UserError("the value 3 is above 2; use 2")

    monkeypatch.setattr(sys, "argv", ["sample.py"])
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: the value 3 is above 2; use 2\n"
