import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EVIL = """it's "evil" </p><script>x</script> & %{pts}:text='$(touch owned)'; [0:v] {\\an8} --> \x07 a,b=c"""
CAPTIONS = ("The dog waves.", "Then the dog runs home as fast as it can.", EVIL)


def write_story(folder: Path, captions=CAPTIONS, *, size: int | None = 200, sources=("prompt", "caption", "generated")):
    """A story folder as sample.py writes it: turn i is a flat picture of a colour of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = []
    for index, text in enumerate(captions):
        name = f"frame_{index:04d}.png" if size else None
        if size:
            Image.fromarray(np.full((size, size, 3), colour(index), np.uint8)).save(folder / name)
        source = sources[min(index, len(sources) - 1)]
        frames.append({"index": index, "text": text, "image": name, "source": source, "kept": []})
    story = {"policy": "window", "length": len(frames), "seed": 0, "ending": "length", "frames": frames}
    story |= {"timing": {"compile_s": 1.0, "llm_s": [0.5] * len(frames), "render_s": 1.0}, "kv_slots": 64}
    (folder / "story.json").write_text(json.dumps(story), encoding="utf-8")
    return folder


def colour(index: int) -> tuple[int, int, int]:
    return (40 + 60 * (index % 4), 200 - 50 * (index % 4), 90 + 30 * (index % 5))


@pytest.fixture(name="colour")
def colour_of_turn():
    """(turn, from 0) -> the colour of its picture."""
    return colour


@pytest.fixture
def story_dir(tmp_path):
    return write_story(tmp_path / "a story")


@pytest.fixture
def make_story():
    return write_story
