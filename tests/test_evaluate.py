import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seedstory_jax.ablate import main as ablate
from seedstory_jax.errors import UserError
from seedstory_jax.evaluate import main


def system(folder: Path, words: str, stories: int = 3, frames: int = 4) -> str:
    for story in range(stories):
        (folder / f"s{story}").mkdir(parents=True)
        for frame in range(frames):
            pixels = np.random.default_rng([story, frame]).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"s{story}" / f"{frame}.png")
        text = "\n".join(f"{words} number {frame} of story {story}." for frame in range(frames))
        (folder / f"s{story}" / "captions.txt").write_text(text)
    return f"{words}={folder}"


def test_compare_any_systems(tmp_path, capsys):
    systems = [system(tmp_path / "a", "ours"), system(tmp_path / "b", "theirs", stories=2)]
    assert main(["compare", *systems, f"--out={tmp_path / 'out'}"]) == 0
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    (section,) = content["sections"]
    assert section["title"] == "2 stories that all have" and list(section["figures"]) == ["ours", "theirs"]
    assert section["figures"]["ours"]["distinct_1"]["mean"] > 0 and "frechet_vit" not in section["figures"]["ours"]
    assert "style_consistency" in section["quality"]["metrics"]
    for name in ("comparison.md", "comparison.csv", "index.html", "sheets/ours.png"):
        assert (tmp_path / "out" / name).is_file()
    assert "open " in capsys.readouterr().out


def test_dry_run_of_the_judge_counts_and_asks_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    systems = [system(tmp_path / "a", "ours"), system(tmp_path / "b", "theirs")]
    arguments = ["judge", *systems, "--model=any", f"--out={tmp_path / 'out'}", "--base_url=http://127.0.0.1:9/v1"]
    assert main([*arguments, "--dry_run"]) == 0
    assert "36 calls of about" in capsys.readouterr().out  # 2 x 3 x 3 scores, 3 x 3 comparisons in both orders
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        main([*arguments[:-1], "--base_url=https://judge.invalid/v1"])


def test_a_study_and_its_answers(tmp_path, capsys):
    systems = [system(tmp_path / "a", "ours"), system(tmp_path / "b", "theirs")]
    out = tmp_path / "out"
    assert main(["study", *systems, f"--out={out}", "--pairs=2"]) == 0
    key = json.loads((out / "key.json").read_text())
    assert len(key["pairs"]) == 2 and (out / "study.html").is_file()
    answers = {"study": "stories", "person": "p", "answers": {str(p["number"]): {"plot": "left"} for p in key["pairs"]}}
    (tmp_path / "p.json").write_text(json.dumps(answers))
    assert main(["study", f"--key={out / 'key.json'}", str(tmp_path / "p.json"), f"--out={out}"]) == 0
    assert "more interesting to read?" in capsys.readouterr().out
    assert json.loads((out / "study.json").read_text())[0]["people"] == 1


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["compar"], "did you mean 'compare'"),
        (["compare", "--out=x"], "required: systems"),
        (["compare", "folder", "--out=x"], "NAME=FOLDER"),
        (["compare", "a=/nowhere", "--out=x"], "does not exist"),
        (["compare", "{a}", "{a}", "--out=x"], "given twice"),
        (["compare", "{a}", "--clip=/nowhere", "--out=x"], "no CLIP folder"),
        (["compare", "{a}", "--workdir=/nowhere", "--out=x"], "holds no run"),
        (["judge", "{a}", "--out=x"], "required: --model"),
        (["judge", "{a}", "--model=m", "--out=x", "--aspects=beauty"], "unknown aspect 'beauty'"),
        (["judge", "{a}", "--model=m", "--out=x", "--segments=0"], "at least 1"),
        (["judge", "{a}", "--model=m", "--out=x", "--attempts=0"], "at least 1"),
        (["study", "{a}", "--out=x"], "two systems"),
        (["study", "{a}", "b=/nowhere", "--out=x"], "does not exist"),
        (["study", "--key=/nowhere", "a.json", "--out=x"], "cannot be read"),
        (["attention", "--workdir=/nowhere", "--out=x"], "holds no run"),
        (["attention", "--workdr=x", "--out=x"], "did you mean '--workdir'|required"),
    ],
)
def test_bad_input_is_one_line(tmp_path, arguments, complaint):
    a = system(tmp_path / "a", "ours")
    with pytest.raises(UserError, match=complaint):
        main([argument.format(a=a) for argument in arguments])


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--workdir=/nowhere", "--out=x"], "holds no run"),
        (["--workdir=x", "--out=x", "--policies=windw"], "did you mean 'window'"),
        (["--workdir=x", "--out=x", "--length=ten"], "whole numbers"),
        (["--workdir=x", "--out=x", "--sweep=cap=1"], "--sweep is --grid now"),
        (["--workdir=x", "--out=x", "--grid=hed=1"], "has the setting 'hed': did you mean 'head'"),
        (["--workdir=x", "--out=x", "--clip=/nowhere"], "no CLIP folder"),
        (["--workdir=x"], "required: --out"),
    ],
)
def test_bad_input_of_ablate(arguments, complaint):
    with pytest.raises(UserError, match=complaint):
        ablate(arguments)


def test_help():
    assert main([]) == 2 and main(["--help"]) == 0


def test_an_ablation_of_a_trained_run(trained_workdir, tmp_path, capsys):
    out = tmp_path / "ablation"
    flags = [f"--workdir={trained_workdir}", f"--out={out}", "--length=3", "--num_stories=2", "--drawn=1", "--untimed"]
    assert ablate([*flags, "--policies=window,multimodal_sink", "--grid=image_sink_cap=1"]) == 0
    (section,) = json.loads((out / "ablation.json").read_text())["sections"]
    assert list(section["figures"]) == ["window", "multimodal_sink", "multimodal_sink(image_sink_cap=1)"]
    assert section["figures"]["window"]["frechet_vit"]["mean"] > 0
    assert section["quality"]["stories"] == {name: 2 for name in section["figures"]}
    assert "well_formed" in section["quality"]["metrics"] and (out / "sheets" / "window-3.png").is_file()
    assert "index.html" in capsys.readouterr().out
    books = [f"window={out / 'stories' / 'window-3'}", f"sink={out / 'stories' / 'multimodal-sink-3'}"]
    assert main(["compare", *books, f"--workdir={trained_workdir}", f"--out={tmp_path / 'compared'}"]) == 0
    with pytest.raises(UserError, match="another seed"):
        ablate([*flags, "--seed=1"])


def test_where_a_trained_run_looks(trained_workdir, tmp_path):
    out = tmp_path / "attention"
    flags = [f"--workdir={trained_workdir}", f"--out={out}", "--num_stories=1", "--length=4", "--window=2"]
    assert main(["attention", *flags]) == 0
    found = json.loads((out / "attention.json").read_text())
    assert found["stories"] == 1 and set(found["mean_attention"]) >= {"BOS", "BOI", "EOI", "IMG00", "text"}
    assert (out / "index.html").is_file()
