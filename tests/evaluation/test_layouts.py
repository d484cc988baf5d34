"""Folders as other systems' public code leaves them."""

import json
from pathlib import Path

import pytest
from PIL import Image

from seedstory_jax.errors import UserError
from seedstory_jax.evaluate import main, read_systems
from seedstory_jax.evaluation.layouts import read_published


def paint(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), 9, 9)).save(folder / name)


@pytest.fixture
def story_set(tmp_path) -> Path:
    """Two stories of three shots (1, 2, 4), with two and one given turns."""
    lines = []
    for name, given in (("01", 2), ("02", 1)):
        paint(tmp_path / "set" / "images" / name, *(f"{k}.png" for k in range(given)))
        images = [f"images/{name}/{k}.png" for k in range(given)]
        captions, continuation = [f"given {k}" for k in range(given)], ["one", "two", "four"]
        source = {"benchmark": "vistorybench", "shots": [1, 2, 4]}
        lines.append({"id": name, "images": images, "captions": captions, "given": given})
        lines[-1] |= {"continuation": continuation, "source": source}
    (tmp_path / "set" / "stories.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "set"


def names(story) -> list[str | None]:
    return [path.name if path else None for path in story.images]


def test_seed_story(tmp_path, story_set):
    for j, turns in ((0, 3), (1, 2)):
        folder = tmp_path / "seed" / f"val_{j}"
        paint(
            folder, "000start_image.jpg", *(f"{kind}{k:02d}.jpg" for k in range(1, turns + 1) for kind in ("", "ori_"))
        )
        (folder / "text.txt").write_text("".join(f"text {k}\n" for k in range(1, turns + 2)))
        (folder / "token.txt").write_text("context token: 3\n")
    first, second = read_published(tmp_path / "seed")
    assert (first.name, second.name) == ("val_0", "val_1") and first.texts == ("text 1", "text 2", "text 3")
    assert names(second) == ["ori_01.jpg", "ori_02.jpg"]
    first, second = read_published(tmp_path / "seed", story_set)
    assert first.texts == ("given 0", "given 1", "one", "two", "four") and first.name == "01"
    assert names(second) == ["0.png", "ori_01.jpg", "ori_02.jpg", None]
    (alone,) = read_published(tmp_path / "seed" / "val_1")
    assert alone.texts == ("text 1", "text 2")


def test_vistorybench_outputs(tmp_path, story_set):
    run = tmp_path / "outputs" / "storydiffusion" / "base" / "en" / "20250430_022517"
    paint(run, "01/shots/shot_01.png", "01/shots/shot_04.png", "2/shots/01.jpg", "2/shots/2.jpg", "2/shots/04.jpg")
    first, second = read_published(run, story_set)
    assert (first.name, second.name) == ("01", "02")  # "2" is story 02
    assert names(first) == ["0.png", "1.png", "shot_01.png", None, "shot_04.png"]
    assert names(second) == ["0.png", "01.jpg", "2.jpg", "04.jpg"]
    with pytest.raises(UserError, match="has no texts: name its story set with --captions=SET"):
        read_published(run)


def test_storydiffusion_storygen_and_ar_ldm(tmp_path, story_set):
    paint(tmp_path / "diffusion" / "01", "comic.png", *(f"out-{k}.png" for k in (0, 1, 2)))
    (story,) = read_published(tmp_path / "diffusion", story_set)
    assert names(story)[2:] == ["out-0.png", "out-1.png", "out-2.png"]  # places, not the data's numbers of shots
    paint(tmp_path / "gen" / "02", "reference_image.png", "output.png")
    (story,) = read_published(tmp_path / "gen", story_set)
    assert names(story) == ["0.png", "reference_image.png", "output.png", None]
    paint(tmp_path / "flat", *(f"{k:04d}.png" for k in range(6)))
    first, second = read_published(tmp_path / "flat", story_set)
    assert names(first)[2:] == ["0000.png", "0001.png", "0002.png"]
    assert names(second)[1:] == ["0003.png", "0004.png", "0005.png"]
    assert read_published(tmp_path / "flat") is None
    paint(tmp_path / "flat", "0006.png")
    with pytest.raises(UserError, match="holds 7 pictures, the stories of --captions ask for 6"):
        read_published(tmp_path / "flat", story_set)


def test_opening_and_mm_interleaved(tmp_path):
    folder = tmp_path / "SEED-X_output"
    paint(folder, "0301096-o-0.jpg")
    output = [
        {"text": "A.", "image": "0301096-o-0.jpg"},
        {"text": "B.", "image": "gone.jpg"},
        {"text": "C.", "image": None},
    ]
    given = [{"text": "Once.", "image": None}]
    (folder / "0301096.jsonl").write_text(json.dumps({"conversations": [{"input": given}, {"output": output}]}))
    (story,) = read_published(folder)
    assert story.name == "0301096" and story.texts == ("Once.", "A.", "B.", "C.")
    assert names(story) == [None, "0301096-o-0.jpg", None, None]
    (folder / "0301097.json").write_text("{}")
    with pytest.raises(UserError, match="is no answer of OpenING"):
        read_published(folder)

    folder = tmp_path / "interleaved"
    paint(folder, "gen_img_202401011200/0_1_0.png", "gen_img_202401011200/0_3_0.png")
    results = ["A cat.", "0_1_0.png", "It sits.", "0_3_0.png", "End."]
    item = {"sentences": ["A", "story."], "images": ["x.png"], "generate_results": results}
    (folder / "eval_results_202401011200.json").write_text(json.dumps([item]))
    (story,) = read_published(folder)
    assert story.texts == ("A story.", "A cat.", "It sits.", "End.")
    assert names(story) == [None, "0_1_0.png", "0_3_0.png", None]


def test_our_own_stay_ours_and_compare_takes_all(tmp_path, story_set):
    frames = []
    for k, text in enumerate(("given 0", "one", "two", "four")):
        paint(tmp_path / "ours" / "02", f"frame_{k:04d}.png")
        frames.append({"text": text, "image": f"frame_{k:04d}.png"})
    (tmp_path / "ours" / "02" / "story.json").write_text(json.dumps({"policy": "sink", "frames": frames}))
    assert read_published(tmp_path / "ours", story_set) is None and read_published(tmp_path / "nowhere") is None
    paint(tmp_path / "theirs", *(f"02/shots/shot_{k:02d}.png" for k in (1, 2, 4)))
    arguments = [f"ours={tmp_path / 'ours'}", f"theirs={tmp_path / 'theirs'}"]
    systems = read_systems(arguments, story_set)
    assert systems["ours"][0].texts == systems["theirs"][0].texts and len(systems["theirs"][0]) == 4
    flags = [f"--captions={story_set}", f"--out={tmp_path / 'out'}"]
    assert main(["compare", *arguments, *flags]) == 0
    (section,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["sections"]
    assert section["quality"]["stories"] == {"ours": 1, "theirs": 1}
