"""Mock data of the benchmarks, odd as the real is, and stories as sample.py writes them."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from seedstory_jax.storystream.benchmarks.story_set import read_set


def picture(path: Path, shade: int = 0, side: int = 8) -> Path:
    """A small picture of one shade."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (shade % 256, 90, 30)).save(path)
    return path


def generate(story_set: Path, out: Path, *, policy: str = "multimodal_sink", length: int = 99, without=()) -> Path:
    """What `sample.py --stories` leaves of a set: given turns as prompts, then turns up to `length`.

    The red of a generated picture is 100 + its turn; a turn in `without` has no picture.
    """
    for story, record in read_set(story_set):
        folder = out / str(story.id)
        folder.mkdir(parents=True)
        outputs = record["source"].get("outputs") or len(story.continuation) or 3
        turns = []
        for turn in range(min(length, story.given + outputs)):
            prompt = turn < story.given
            texts = (*story.captions, *story.continuation)
            text = texts[turn] if turn < len(texts) else f"turn {turn} of {story.id}"
            name = None if turn in without else f"frame_{turn:04d}.png"
            if name:
                picture(folder / name, turn if prompt else 100 + turn)
            source = "prompt" if prompt else "generated"
            turns.append({"index": turn, "text": text, "image": name, "source": source})
        (folder / "story.json").write_text(json.dumps({"policy": policy, "frames": turns}))
        (folder / "index.html").write_text("<p>a page that is nobody's picture")
    return out


def shade(path: Path) -> int:
    """The red of a picture's first pixel."""
    return int(np.asarray(Image.open(path).convert("RGB"))[0, 0, 0])


@pytest.fixture(scope="session")
def mock() -> SimpleNamespace:
    """The functions above."""
    return SimpleNamespace(picture=picture, generate=generate, shade=shade)


@pytest.fixture(scope="session")
def vistory(tmp_path_factory) -> Path:
    """80 stories: one-based indices with gaps, blanks in names, no pictures here and there, BOMs, missing fields."""
    root = tmp_path_factory.mktemp("vistory") / "ViStory"
    for number in range(1, 81):
        folder = root / f"{number:02d}"
        keys = ["Tom Fox", "Ada", "Old Owl"]
        characters = {
            key: {
                "name_en": key,
                "name_ch": f"{key}\u7684",
                "prompt_en": f"a {key.lower()}, red.",
                "prompt_ch": "\u7ea2",
            }
            for key in keys
        }
        shots = [_shot(index, [keys[index % 3]]) for index in range(1, 4 + number % 20)]
        if number % 7 == 0:
            del shots[1]  # a gap: 1, 3, 4, ...
        if number % 10 == 3:
            del shots[0]["Shot Perspective Design"]  # the loader leaves such a shot out
        if number % 10 == 4:
            del shots[-1]["index"]
        if number % 10 == 5:
            shots[0]["Characters Appearing"] = {"en": ["Nobody", " Ada "], "ch": ["\u65e0"]}
        if number % 10 == 6:
            shots[0]["Plot Correspondence"] = {"en": "Plot 1 goes on and on. " * 40, "ch": "\u6545\u4e8b"}
        if number % 10 == 8:
            shots[1]["index"] = shots[0]["index"]
        data = {"Story_type": {"en": "tale"}, "Shots": shots, "Characters": characters}
        folder.mkdir(parents=True)
        (folder / "story.json").write_text(json.dumps(data), encoding="utf-8-sig" if number % 2 else "utf-8")
        for place, key in enumerate(keys):
            if number % 9 != 1 + place:  # a character without pictures
                odd = f" {key} " if number % 5 == 0 else key
                picture(folder / "image" / odd / "more" / "b.jpg", 50)
                picture(folder / "image" / odd / "a.PNG", place)
        (folder / "image" / "Ada").mkdir(parents=True, exist_ok=True)
    (root / "README").mkdir()
    for file in (root / "80" / "image").rglob("*.*"):
        file.unlink()  # a story without any picture
    return root


def _shot(index: int, characters: list[str]) -> dict:
    texts = {
        "Setting Description": "A wood.",
        "Plot Correspondence": f"Plot {index}.",
        "Static Shot Description": f"Script {index}.",
        "Shot Perspective Design": "Close.",
    }
    shot = {name: {"en": text, "ch": f"\u7b2c{index}"} for name, text in texts.items()}
    return {**shot, "index": index, "Characters Appearing": {"en": characters, "ch": characters}}
