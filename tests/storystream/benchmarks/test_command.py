"""The two commands, alone and around sample.py with a trained model."""

import importlib.util
import json
from pathlib import Path

import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.storystream.__main__ import main


def test_in_and_out(vistory, mock, tmp_path, capsys):
    arguments = ["import", "vistorybench", str(vistory), f"--out={tmp_path / 'set'}", "--references=one"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "79 stories in" in printed and "1 cannot begin" in printed and "8 captions cut to 80 words" in printed
    assert "the longest has 23 turns" in printed
    mock.generate(tmp_path / "set", tmp_path / "generated", length=5)
    flags = [str(tmp_path / "generated"), f"--set={tmp_path / 'set'}", f"--out={tmp_path / 'out'}"]
    assert main(["export", "vistorybench", *flags, "--time=20260101_000000"]) == 0
    assert "79 stories" in capsys.readouterr().out


def test_a_trained_model_in_between(trained_workdir, mock, tmp_path):
    """Import, sample.py with several given turns in one batch, export: every shot is there."""
    spec = importlib.util.spec_from_file_location("sample", Path(__file__).parents[3] / "sample.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)

    data = tmp_path / "data"
    captions = json.loads((trained_workdir / "world" / "val.jsonl").read_text().splitlines()[0])["captions"]
    for number, cast in (("01", ["A"]), ("02", ["A", "B"])):
        for key in cast:
            mock.picture(data / number / "image" / key / "0.png", 60, 32)
        texts = {
            name: {"en": captions[1]}
            for name in ("Setting Description", "Static Shot Description", "Shot Perspective Design")
        }
        shots = [
            {
                **texts,
                "index": 3 * k + 1,
                "Plot Correspondence": {"en": captions[k]},
                "Characters Appearing": {"en": cast},
            }
            for k in range(2)
        ]
        characters = {key: {"name_en": "The", "prompt_en": captions[0]} for key in cast}
        story = {"Shots": shots, "Characters": characters}
        (data / number / "story.json").write_text(json.dumps(story), encoding="utf-8-sig")
    assert main(["import", "vistorybench", str(data), f"--out={tmp_path / 'set'}"]) == 0
    flags = [f"--workdir={trained_workdir}", f"--stories={tmp_path / 'set' / 'stories.jsonl'}", "--length=4"]
    assert program.main([*flags, "--mode=visualize", "--batch=2", f"--out={tmp_path / 'generated'}"]) == 0
    told = json.loads((tmp_path / "generated" / "02" / "story.json").read_text())
    assert [turn["source"] for turn in told["frames"]] == ["prompt", "prompt", "caption", "caption"]
    assert [turn["text"] for turn in told["frames"]][2:] == captions[:2]
    out = ["export", "vistorybench", str(tmp_path / "generated"), f"--set={tmp_path / 'set'}"]
    assert main([*out, f"--out={tmp_path / 'out'}", "--time=20260101_000000"]) == 0
    pictures = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    run = "seedstory_jax/multimodal_sink-references/en/20260101_000000"
    assert pictures == [f"{run}/{number}/shots/shot_{index}.png" for number in ("01", "02") for index in ("01", "04")]


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["import", "vistorybanch", ".", "--out=x"], "did you mean 'vistorybench'"),
        (["import", "mmie", "/nowhere", "--out=x"], "does not exist: give the folder of mmie's data"),
        (["import", "mmie", ".", "--out=x", "--pictures=/nowhere"], "is no folder"),
        (["import", "mmie", "."], "required: --out"),
        (["import", "vistorybench", "{vistory}", "--out=x", "--max_words=-1"], "0 .no limit. or more"),
        (["import", "vistorybench", "{vistory}", "--out=."], "exists: name a new folder"),
        (["export", "vistorybench", ".", "--set=/nowhere", "--out=x"], "holds no stories"),
        (["export", "opning", ".", "--set=x", "--out=x"], "did you mean 'opening'"),
    ],
)
def test_bad_input_is_one_line(vistory, arguments, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=complaint):
        main([argument.format(vistory=vistory) for argument in arguments])
