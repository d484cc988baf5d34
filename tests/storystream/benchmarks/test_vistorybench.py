"""ViStoryBench in and out: every trap of its data, and its reader's rules on what is written."""

import json
import re
from pathlib import Path

import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.evaluation.stories import read_picture
from seedstory_jax.storystream.benchmarks import vistorybench
from seedstory_jax.storystream.benchmarks.exports import export_benchmark
from seedstory_jax.storystream.benchmarks.story_set import Item, Options, read_set, write_set

ALL_FIELDS = (
    "Setting Description",
    "Plot Correspondence",
    "Characters Appearing",
    "Static Shot Description",
    "Shot Perspective Design",
)


def evaluators_shots(root: Path, story: str) -> list[int]:
    """Indices that the benchmark's loader asks for: shots with all five fields, by their own index."""
    data = json.loads((root / story / "story.json").read_text(encoding="utf-8-sig"))
    return [shot["index"] for shot in data["Shots"] if all(f in shot for f in ALL_FIELDS) and "index" in shot]


def read_outputs(outputs: Path, method: str, mode: str, language: str) -> dict[str, dict[int, Path]]:
    """The rules of the benchmark's reader: {story: {index: picture}}; it raises where theirs does."""
    found: dict[str, dict[int, Path]] = {}
    for time in (outputs / method / mode / language).iterdir():
        if not time.is_dir():
            continue
        assert re.fullmatch(r"\d{8}[_-]\d{6}", time.name)
        for story in sorted((path for path in time.iterdir() if path.is_dir()), key=lambda path: int(path.name)):
            shots = next((path for path in story.iterdir() if path.name.lower() in ("shots", "shot")), story)
            pictures = [path for path in shots.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".gif")]
            found[story.name] = {int(path.stem.split("_")[-1]): path for path in pictures}
    return found


def imported(vistory: Path, out: Path, **options) -> dict[str, dict]:
    write_set(vistorybench.read(vistory, Options(**options)), out)
    return {story.id: record for story, record in read_set(out, "vistorybench")}


def test_80_stories_in_and_out(vistory, tmp_path, mock):
    records = imported(vistory, tmp_path / "set")
    skipped = [json.loads(line) for line in (tmp_path / "set" / "skipped.jsonl").read_text().splitlines()]
    assert len(records) == 79 and [one["id"] for one in skipped] == ["80"] and "no picture" in skipped[0]["reason"]
    generated = mock.generate(tmp_path / "set", tmp_path / "generated")
    done = export_benchmark("vistorybench", generated, tmp_path / "set", tmp_path / "out", time="20261126_120000")
    mode = "multimodal_sink-references"
    assert done.folder == tmp_path / "out" / "seedstory_jax" / mode / "en" / "20261126_120000"
    outputs = read_outputs(tmp_path / "out", "seedstory_jax", mode, "en")
    assert list(outputs) == [f"{number:02d}" for number in range(1, 80)] and done.stories == 79
    for story, shots in outputs.items():
        assert sorted(shots) == sorted(set(evaluators_shots(vistory, story)))
        order = records[story]["source"]["shots"]
        given = records[story]["given"]
        assert [mock.shade(shots[index]) for index in order] == [100 + given + k for k in range(len(order))]
    assert {path.name for path in done.folder.iterdir() if path.is_file()} == {"manifest.json"}
    assert done.missing_stories == done.missing_shots == 0


def test_references_are_given_turns(vistory, tmp_path, mock):
    records = imported(vistory, tmp_path / "all")
    # Story 2: shots 1, 2, ... show Ada, Old Owl, Tom Fox, ...; Ada has no picture there.
    assert records["02"]["captions"] == ["Old Owl is a old owl, red.", "Tom Fox is a tom fox, red."]
    assert records["02"]["given"] == 2 and records["02"]["source"]["notes"] == ["Ada has no picture"]
    assert [mock.shade(tmp_path / "all" / image) for image in records["02"]["images"]] == [2, 0]
    assert records["05"]["images"] and records["05"]["source"]["characters"] == ["Ada", "Old Owl", "Tom Fox"]
    assert "Nobody appears and is not described" in records["05"]["source"]["notes"]
    assert records["02"]["continuation"][:2] == ["Plot 1.", "Plot 2."]
    one = imported(vistory, tmp_path / "one", references="one")
    assert all(record["given"] == 1 for record in one.values())
    assert one["02"]["captions"] == ["Old Owl is a old owl, red."]


def test_indices_are_the_data_s_own(vistory, tmp_path):
    records = imported(vistory, tmp_path / "set")
    assert records["07"]["source"]["shots"][:3] == [1, 3, 4]
    assert records["03"]["source"]["shots"][0] == 2 and "no Shot Perspective" in records["03"]["source"]["notes"][0]
    assert records["04"]["source"]["shots"][-1] == 6 and "no index" in records["04"]["source"]["notes"][0]
    assert records["08"]["source"]["shots"][:2] == [1, 3] and "index 1 is there" in records["08"]["source"]["notes"][0]


def test_captions(vistory, tmp_path):
    plot = imported(vistory, tmp_path / "plot")
    assert len(plot["06"]["continuation"][0].split()) == 78  # 13 sentences of 6 words: the 14th does not fit into 80
    everything = imported(vistory, tmp_path / "everything", fields="all", references="one")
    assert everything["02"]["continuation"][0] == "Close.;Plot 1.;Script 1.;Ada is a ada, red.;A wood.;"
    chinese = imported(vistory, tmp_path / "chinese", language="ch")
    assert chinese["02"]["continuation"][0] == "\u7b2c1" and chinese["02"]["captions"][0] == "Old Owl\u7684 is \u7ea2"
    items = {item.name: item for item in vistorybench.read(vistory, Options(split="lite")) if isinstance(item, Item)}
    assert len(items) == 20 and {"01", "79"} < items.keys()


def test_what_is_missing_is_said(vistory, tmp_path, mock):
    records = imported(vistory, tmp_path / "set", references="one")
    generated = mock.generate(tmp_path / "set", tmp_path / "generated", length=4, without=(2,))
    import shutil

    shutil.rmtree(generated / "05")
    done = export_benchmark("vistorybench", generated, tmp_path / "set", tmp_path / "out", mode="mine")
    outputs = read_outputs(tmp_path / "out", "seedstory_jax", "mine", "en")
    manifest = json.loads((done.folder / "manifest.json").read_text())
    assert manifest["missing"] == ["05"] and "05" not in outputs
    for story, record in records.items():
        if story != "05":
            first, second, third, *rest = record["source"]["shots"]
            assert sorted(outputs[story]) == [first, third]  # the turn in between has no picture, later ones no turn
            assert manifest["stories"][story] == {"shots": {str(first): 1, str(third): 3}, "missing": [second, *rest]}
    assert done.missing_stories == 1 and done.missing_shots == sum(
        len(s["missing"]) for s in manifest["stories"].values()
    )


def test_modes_and_folders(vistory, tmp_path, mock):
    imported(vistory, tmp_path / "set", references="one", fields="all")
    generated = mock.generate(tmp_path / "set", tmp_path / "generated", policy="window")
    export = ("vistorybench", generated, tmp_path / "set", tmp_path / "out")
    done = export_benchmark(*export, time="20260101_000000")
    assert done.folder.parts[-3:] == ("window-all_fields", "en", "20260101_000000")
    before = sorted(done.folder.rglob("*"))
    with pytest.raises(UserError, match="exists and is left as it is"):
        export_benchmark(*export, time="20260101_000000")
    assert sorted(done.folder.rglob("*")) == before and len(list((done.folder.parent).iterdir())) == 1
    with pytest.raises(UserError, match="--mode=a/b makes no folder"):
        export_benchmark(*export, mode="a/b")
    imported(vistory, tmp_path / "references")
    with pytest.raises(UserError, match="generated from 1 given turns, the set has"):
        export_benchmark("vistorybench", generated, tmp_path / "references", tmp_path / "out")
    story = json.loads((generated / "01" / "story.json").read_text())
    (generated / "01" / "story.json").write_text(json.dumps({**story, "policy": "sink"}))
    with pytest.raises(UserError, match="under sink, window"):
        export_benchmark(*export)
    assert read_picture(next(iter(done.folder.rglob("*.png")))).shape == (8, 8, 3)


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"language": "de"}, "--language=de: choose en or ch"),
        ({"fields": "some"}, "--fields=some"),
        ({"references": "two"}, "--references=two"),
        ({"split": "tiny"}, "--split=tiny"),
    ],
)
def test_options_that_are_none(vistory, options, complaint):
    with pytest.raises(UserError, match=complaint):
        list(vistorybench.read(vistory, Options(**options)))


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(UserError, match="holds no ViStoryBench"):
        list(vistorybench.read(tmp_path, Options()))
