import re
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from seedstory_jax.data.storystream import StoryDataset
from seedstory_jax.errors import UserError
from seedstory_jax.toy.world import (
    CASTS,
    POSES,
    PROPS,
    TREASURE_RETURNS,
    build_toy_world,
    caption_of,
    draw,
    make_story,
    parse_caption,
    render_frame,
    toy_captions,
)


@pytest.fixture(scope="module")
def stories():
    return [make_story(np.random.default_rng([3, i]), series) for series in CASTS for i in range(60)]


def test_captions_say_their_facts(stories):
    for story in stories:
        for facts in story:
            assert parse_caption(caption_of(facts)) == facts


def test_captions_are_short_and_of_few_words(stories):
    captions = [caption_of(facts) for story in stories for facts in story]
    lengths = [len(caption.split()) for caption in captions]
    assert min(lengths) >= 8 and max(lengths) <= 25
    assert len(set(re.findall(r"\w+|[^\w\s]", " ".join(captions)))) < 120


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "the",
        "At the farm, the monkey waves while the girl in red jump.",  # the verb does not agree
        "At the farm, the girl in red waves while the monkey jumps.",  # not in cast order
        "At the farm, the monkey waves while the robot jumps.",  # two series
        "At the farm, the monkey and the monkey wave.",
        "At the farm, the monkey waves near a kite and a kite.",
        "At the farm, the monkey and the spotted dog.",
        "At the farm the monkey waves.",
        "in the room, the monkey waves.",
        "In the room, the monkey waves. They dream of a red hat.",
        "In the room, the monkey waves. In the room, the monkey waves.",
        "In the room, the monkey waves.\n",
    ],
)
def test_what_is_not_well_formed(caption):
    assert parse_caption(caption) is None


def test_opening_matters_late(stories):
    for story in stories:
        assert story[0].tail == "dream"
        treasure = story[0].treasure
        assert all(not facts.treasure and not facts.tail for facts in story[1:TREASURE_RETURNS])
        late = [facts for facts in story[TREASURE_RETURNS:] if facts.treasure]
        assert len(late) >= 2 and story[-1].treasure and late[0].tail == "find"
        assert {facts.treasure for facts in late} == {treasure}


def test_things_carry_over(stories):
    for story in stories:
        for before, facts in pairwise(story):
            assert len(set(before.names) ^ set(facts.names)) <= 1
            assert len(set(before.props) ^ set(facts.props)) <= 1
    used = [pose for story in stories for facts in story for _, pose in facts.cast]
    assert all(used.count(pose) > len(used) / 6 for pose in POSES)  # none is rare
    assert {name for story in stories for facts in story for name in facts.props} == set(PROPS)


def test_every_character_looks_like_no_other():
    pictures = {
        (name, pose): draw("park", {1: (name, pose)}).astype(int)
        for cast in CASTS.values()
        for name in cast
        for pose in POSES
    }
    keys = list(pictures)
    for i, one in enumerate(keys):
        for other in keys[:i]:
            assert np.abs(pictures[one] - pictures[other]).max(-1).astype(bool).sum() > 30, (one, other)


def test_build_is_whole_and_the_same_again(tmp_path):
    folder = build_toy_world(tmp_path / "toy", series="sunny", num_train=3, num_val=2, seed=1)
    again = build_toy_world(tmp_path / "again", series="sunny", num_train=3, num_val=2, seed=1)
    other = build_toy_world(tmp_path / "other", series="moony", num_train=1, num_val=0, seed=1)
    train, val = StoryDataset(folder / "train.jsonl"), StoryDataset(folder / "val.jsonl")
    assert len(train) == 3 and len(val) == 2 and {len(story) for story in [*train, *val]} == {30}
    assert len({story.id for story in [*train, *val]}) == 5
    assert (folder / "train.jsonl").read_bytes() == (again / "train.jsonl").read_bytes()
    first = train[0]
    assert (folder / first.images[4]).read_bytes() == (again / first.images[4]).read_bytes()
    picture = Image.open(train.image_path(first, 4))
    assert picture.size == (128, 128) and picture.mode == "RGB"
    facts = parse_caption(first.captions[4])
    assert (np.asarray(picture)[::2, ::2] == render_frame(facts)).all()
    assert {facts.series for facts in map(parse_caption, StoryDataset(other / "train.jsonl").captions())} == {"moony"}
    assert build_toy_world(folder, series="sunny", num_train=3, num_val=2, seed=1) == folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "other", "toy"]


def test_build_over_processes_writes_the_same(tmp_path):
    one = build_toy_world(tmp_path / "one", series=("sunny", "moony"), num_train=40, num_val=0, seed=2, processes=1)
    two = build_toy_world(tmp_path / "two", series=("sunny", "moony"), num_train=40, num_val=0, seed=2, processes=2)
    assert (one / "train.jsonl").read_bytes() == (two / "train.jsonl").read_bytes()
    assert len(list(two.glob("images/*/*.png"))) == 40 * 30


def test_build_refuses(tmp_path):
    with pytest.raises(UserError, match="unknown toy series 'rainy': choose from sunny, moony"):
        build_toy_world(tmp_path / "toy", series="rainy", num_train=1, num_val=0, seed=0)
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="remove it or name another folder"):
        build_toy_world(tmp_path / "mine", series="sunny", num_train=1, num_val=0, seed=0)


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("seedstory_jax.toy.world.caption_of", lambda facts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_toy_world(tmp_path / "toy", series="sunny", num_train=1, num_val=0, seed=0)
    assert not list(tmp_path.iterdir())


def test_captions_for_the_tokenizer_are_of_both_series():
    text = " ".join(toy_captions(stories=3))
    assert "robot" in text or "frog" in text or "rabbit" in text or "wizard" in text
    assert "monkey" in text or "yellow" in text or "girl" in text or "dog" in text
