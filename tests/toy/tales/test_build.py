import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from seedstory_jax.data.storystream import StoryDataset
from seedstory_jax.errors import UserError
from seedstory_jax.storystream import __main__ as storystream
from seedstory_jax.toy.tales import __main__ as tales
from seedstory_jax.toy.tales.build import World, build, read_tales, tale_from_json, told
from seedstory_jax.toy.tales.paint import paint

WORLD = World(series="harbour", stories=2, held_out=1, length=22, seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("world") / "harbour", WORLD)


def test_the_layout_is_storystreams(folder, tmp_path):
    arguments = ["validate", str(folder), f"--clean={tmp_path / 'clean.jsonl'}", f"--rejects={tmp_path / 'no.jsonl'}"]
    assert storystream.main([*arguments, "--strict"]) == 0
    assert len((tmp_path / "clean.jsonl").read_text().splitlines()) == 2 * 3 + 1
    pieces = StoryDataset(folder / "train.jsonl", folder)
    assert [len(story) for story in pieces.stories] == [10, 10, 2] * 2
    assert len({story.id for story in pieces.stories}) == 6
    (whole,) = StoryDataset(folder / "val.jsonl", folder).stories
    assert len(whole) == 22


def test_records_captions_and_pictures_belong_together(folder):
    (whole,) = StoryDataset(folder / "val.jsonl", folder).stories
    tale = read_tales(folder)[whole.id]
    assert tale == told(WORLD, "val", 0)[1]
    assert list(whole.captions) == told(WORLD, "val", 0)[2]
    for turn in tale.turns[::5]:
        np.testing.assert_array_equal(np.asarray(Image.open(folder / whole.images[turn.number])), paint(tale, turn))
    assert tale_from_json(json.loads(json.dumps(dataclasses.asdict(tale)))) == tale
    assert len(read_tales(folder, "train")) == 2


def test_the_same_world_is_left_alone_and_another_refused(folder):
    before = (folder / "train.jsonl").stat().st_mtime_ns
    assert build(folder, WORLD) == folder
    assert (folder / "train.jsonl").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="is not the world asked for"):
        build(folder, dataclasses.replace(WORLD, seed=6))


def test_the_command(tmp_path, capsys):
    out = tmp_path / "woods"
    flags = ["--series=woods", "--stories=1", "--held_out=0", "--length=12"]
    assert tales.main([f"--out={out}", *flags]) == 0
    assert f"--config.data.folder={out}" in capsys.readouterr().out
    first = (out / "train.jsonl").read_bytes()
    assert tales.main([f"--out={tmp_path / 'again'}", *flags]) == 0
    assert (tmp_path / "again" / "train.jsonl").read_bytes() == first


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"series": "wood"}, "did you mean 'woods'"),
        ({"length": 5}, "the least is 12"),
        ({"size": 64}, "wants 128 at least"),
        ({"stories": -1}, "-1 stories"),
    ],
)
def test_impossible_worlds(changes, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(WORLD, **changes)
