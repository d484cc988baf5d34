import warnings

import numpy as np
import pytest

from seedstory_jax.data.pipeline import Plan, StoryRows, batches, cached_features, stack
from seedstory_jax.data.sequence import SequenceConfig
from seedstory_jax.data.storystream import Story, StoryDataset
from seedstory_jax.data.tokenizer import train_tokenizer
from seedstory_jax.errors import UserError

CONFIG = SequenceConfig(num_image_tokens=2, max_tokens=80, max_images=5)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(["a b c d"] * 4, tmp_path_factory.mktemp("letters") / "tokenizer")


def stories(count=7):
    return [Story(n, ("x.png",) * (3 + n % 4), ("a", "b", "c", "d", "a b", "c d")[: 3 + n % 4]) for n in range(count)]


def rows_of(tokenizer, images=None, **options):
    data = stories()
    plan = Plan(tuple(map(len, data)), batch_size=4, seed=5, max_turns=5, max_position_offset=9)
    return StoryRows(data, tokenizer, plan, CONFIG, images, **options)


def test_every_epoch_shows_every_story_once():
    plan = Plan((3,) * 10, batch_size=4, seed=0)
    for epoch in range(3):
        assert sorted(plan.story_at(epoch * 10 + place) for place in range(10)) == list(range(10))
    assert [plan.story_at(i) for i in range(10)] != [plan.story_at(10 + i) for i in range(10)]


def test_short_stories_are_not_used():
    plan = Plan((1, 3, 1, 2), batch_size=1)
    assert {plan.story_at(place) for place in range(8)} == {1, 3}
    with pytest.raises(UserError, match="no story has 2 turns"):
        Plan((1, 1), batch_size=1)


@pytest.mark.parametrize("start", [0, 3])
def test_state_is_the_step(tokenizer, start):
    source = rows_of(tokenizer)
    expected = [stack([source[step * 4 + i] for i in range(4)]) for step in range(start, 6)]
    for batch, other in zip(batches(rows_of(tokenizer), start_step=start, steps=6 - start), expected, strict=True):
        assert all((batch[name] == other[name]).all() for name in other)
        assert batch["ids"].shape == (4, 80)


def test_workers_give_the_same(tokenizer):
    one = list(batches(rows_of(tokenizer), steps=3))
    two = list(batches(rows_of(tokenizer), steps=3, workers=1))
    for batch, other in zip(one, two, strict=True):
        assert all((batch[name] == other[name]).all() for name in other)


def test_hosts_share_a_batch(tokenizer):
    whole = next(batches(rows_of(tokenizer), start_step=2, steps=1))
    parts = [next(batches(rows_of(tokenizer), start_step=2, steps=1, host=host, hosts=2)) for host in range(2)]
    assert (np.concatenate([part["ids"] for part in parts]) == whole["ids"]).all()
    with pytest.raises(UserError, match="3 hosts do not divide"):
        next(batches(rows_of(tokenizer), hosts=3))


def test_features_follow_their_turns(tokenizer, tmp_path):
    data = StoryDataset.__new__(StoryDataset)
    data.stories = stories()
    count = int(data.offsets[-1])
    np.save(
        tmp_path / "features.npy", np.arange(count, dtype=np.float32)[:, None, None] * np.ones((1, 2, 3), np.float32)
    )
    features = np.load(tmp_path / "features.npy", mmap_mode="r")
    source = rows_of(tokenizer, cached_features(data, features))
    for place in range(20):
        choice = source.plan.row(place)
        row = source[place]
        expected = [data.offsets[choice.story] + turn for turn in choice.turns]
        assert row["image_features"].shape == (5, 2, 3)
        assert row["image_features"][row["image_valid"], 0, 0].tolist() == expected
        assert not row["image_features"][~row["image_valid"]].any()
        assert row["position"][0] == choice.position_offset
    for batch, other in zip(batches(source, steps=2, workers=1), batches(source, steps=2), strict=True):
        assert (batch["image_features"] == other["image_features"]).all()


def test_unreadable_stories_are_replaced_the_same_way_each_time(tokenizer):
    def images(story, turns):
        if story in (2, 5):
            raise UserError("x.png is empty")
        return np.full((len(turns), 1), story, np.float32)

    with pytest.warns(UserWarning, match="cannot be read and is replaced"):
        first = [rows_of(tokenizer, images)[place]["ids"] for place in range(14)]
    source = rows_of(tokenizer, images)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        again = [source[place]["ids"] for place in range(14)]
    assert len(seen) == 2 and source.bad == {2, 5}  # said once a story
    assert all((one == two).all() for one, two in zip(first, again, strict=True))


def test_too_many_bad_stories_are_an_error(tokenizer):
    def images(story, turns):
        raise OSError("disk is gone")

    source = rows_of(tokenizer, images, max_bad=3)
    with (
        pytest.warns(UserWarning),
        pytest.raises(UserError, match=r"4 stories cannot be read, 3 are allowed.*disk is gone"),
    ):
        for place in range(20):
            source[place]
