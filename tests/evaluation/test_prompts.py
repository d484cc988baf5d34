"""Requests of stories whose given turns differ in number."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from seedstory_jax.data.storystream import StoryDataset
from seedstory_jax.errors import UserError
from seedstory_jax.evaluation.prompts import prompts_of


@pytest.fixture
def dataset(tmp_path) -> StoryDataset:
    lines = []
    for number, given in enumerate((1, 3, 2)):
        images = [f"{number}{k}.png" for k in range(4)]
        for k, image in enumerate(images):
            Image.new("RGB", (8, 8), (40 * number + k, 0, 0)).save(tmp_path / image)
        captions = [f"story {number}, turn {k}" for k in range(4)]
        lines.append({"id": number, "images": images, "captions": captions, "given": given, "continuation": ["end"]})
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return StoryDataset(tmp_path / "s.jsonl")


def red(picture) -> float:
    return float(np.asarray(picture)[0, 0, 0])


def test_each_story_has_its_own_given_turns(dataset):
    transform = SimpleNamespace(pixels=np.asarray)
    system = SimpleNamespace(
        encode=lambda pictures: np.array([[[red(picture)]] for picture in pictures], np.float32),
        run_data=SimpleNamespace(pixel_transform=transform),
    )
    requests = prompts_of(system, dataset, 0, visualize=True)
    assert [request.name for request in requests] == ["0", "1", "2"]
    for number, request in enumerate(requests):
        turns = [(request.text, request.image_features, request.image)]
        turns += [(turn.text, turn.image_features, turn.image) for turn in request.given]
        assert len(turns) == (1, 3, 2)[number] and request.number == number
        for k, (text, features, picture) in enumerate(turns):
            assert text == f"story {number}, turn {k}" and features.item() == red(picture) == 40 * number + k
        assert request.captions == (*(f"story {number}, turn {k}" for k in range(len(turns), 4)), "end")
    assert all(request.captions == () for request in prompts_of(system, dataset, 2))
    with pytest.raises(UserError, match="only 3 stories"):
        prompts_of(system, dataset, 4)
