import dataclasses
import pickle
import warnings

import numpy as np
import pytest

from seedstory_jax.data.packing import BLOCK, PackedRows
from seedstory_jax.data.pipeline import ExampleSource, Plan, batches, cached_features, stack
from seedstory_jax.data.storystream import Story, StoryDataset
from seedstory_jax.data.text_tokenizer import train_tokenizer
from seedstory_jax.data.token_rows import SequenceConfig
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
    return ExampleSource(data, tokenizer, plan, CONFIG, images, **options)


def story_numbers(story, turns):
    return np.full((len(turns), 1), story, np.float32)


def reading(images):
    return {"image_features": images}


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
    source = rows_of(tokenizer, {"image_features": cached_features(data, features)})
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
        first = [rows_of(tokenizer, reading(images))[place]["ids"] for place in range(14)]
    source = rows_of(tokenizer, reading(images))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        again = [source[place]["ids"] for place in range(14)]
    assert len(seen) == 2 and source.bad.keys() == {2, 5}  # said once a story
    assert all((one == two).all() for one, two in zip(first, again, strict=True))


def test_a_substitute_follows_from_the_place_alone(tokenizer):
    """A picture that only some rows show: what was read before makes no difference, and the row says what happened."""

    def images(story, turns):
        if story in (1, 4) and 3 in turns:
            raise OSError("disk is gone")
        return np.full((len(turns), 1), story, np.float32)

    with pytest.warns(UserWarning, match="disk is gone"):
        source = rows_of(tokenizer, reading(images))
        forwards = [source[place] for place in range(21)]
        backwards = [rows_of(tokenizer, reading(images))[place] for place in reversed(range(21))]
    for one, two in zip(forwards, reversed(backwards), strict=True):
        assert (one["image_features"] == two["image_features"]).all()
    notes = [str(row["unreadable"]) for row in forwards]
    assert any(note.startswith("story 1: disk is gone") for note in notes) and "" in notes


def test_over_length_rows_are_counted_and_are_no_fault(tokenizer):
    data = [*stories(), Story(9, ("x.png",) * 4, ("a " * 90, "b", "c", "d"))]
    plan = Plan(tuple(map(len, data)), batch_size=4, seed=5, max_turns=4)
    source = ExampleSource(data, tokenizer, plan, CONFIG, max_bad=0)
    rows = [source[place] for place in range(8)]
    assert sum(int(row["over_length"]) for row in rows) >= 1 and not source.bad
    long = next(place for place in range(8) if plan.row(place).story == 7)
    assert source.length_of(plan.row(long)) > CONFIG.max_tokens and rows[long]["over_length"] >= 1
    only = ExampleSource(data[-1:], tokenizer, Plan((4,), batch_size=1), CONFIG)
    with pytest.raises(UserError, match=r"no usable story found .* too long for 80 tokens"):
        only[0]


def test_lengths_are_known_before_a_row_is_written(tokenizer):
    for supervise in ("last", "all"):
        config = dataclasses.replace(CONFIG, supervise=supervise)
        source = ExampleSource(stories(), tokenizer, rows_of(tokenizer).plan, config)
        for place in range(12):
            assert source.length_of(source.plan.row(place)) == (source[place]["segment"] > 0).sum()


def test_a_mixture_keeps_its_weights_and_epochs():
    lengths = (3,) * 4 + (3,) * 10
    plan = Plan(lengths, batch_size=1, seed=1, groups=(4, 10), weights=(3.0, 1.0))
    shown = [plan.story_at(place) for place in range(2000)]
    own = [story for story in shown if story < 4]
    assert len(own) == 1500
    assert all(sorted(own[i : i + 4]) == [0, 1, 2, 3] for i in range(0, 1496, 4))
    others = [story for story in shown if story >= 4]
    assert sorted(others[:10]) == list(range(4, 14))
    assert all(plan.story_at(place, 1) < 4 for place in range(50) if shown[place] < 4)
    with pytest.raises(UserError, match="give one above 0 for each of 2 folders"):
        Plan(lengths, batch_size=1, groups=(4, 10), weights=(1.0, -1.0))


def test_packed_rows_hold_every_row_of_the_plan_once(tokenizer):
    source = rows_of(tokenizer, reading(story_numbers))
    source.config = dataclasses.replace(CONFIG, max_images=14)
    packed, held, place = PackedRows(source), [], 0
    while len(held) < BLOCK:
        held += packed.places(place)
        place += 1
    assert sorted(held) == list(range(BLOCK)) and place < BLOCK
    again = pickle.loads(pickle.dumps(PackedRows(source)))
    assert again.places(place + 3) == packed.places(place + 3)  # of the second block

    row, rows = packed[5], [source[single] for single in packed.places(5)]
    assert len(rows) > 1 and row["segment"].max() == len(rows)
    images = [one["image_features"][one["image_valid"]] for one in rows]
    assert (row["image_features"][row["image_valid"]] == np.concatenate(images)).all()
    share = np.mean([(packed[place]["segment"] > 0).mean() for place in range(20)])
    assert share > 1.3 * np.mean([(source[place]["segment"] > 0).mean() for place in range(20)])


def test_what_cannot_be_read_is_replaced_by_what_fits_into_its_pack(tokenizer):
    def images(story, turns):
        if story == 3:
            raise OSError("disk is gone")
        return np.full((len(turns), 1), story, np.float32)

    source = rows_of(tokenizer, reading(images))
    source.config = dataclasses.replace(CONFIG, max_images=14)
    packed = PackedRows(source)
    with pytest.warns(UserWarning, match="disk is gone"):
        rows = [packed[place] for place in range(12)]
    assert any("disk is gone" in str(row["unreadable"]) for row in rows)
    assert all(row["ids"].shape == (80,) for row in rows)


def test_too_many_bad_stories_are_an_error(tokenizer):
    def images(story, turns):
        raise OSError("disk is gone")

    source = rows_of(tokenizer, reading(images), max_bad=3)
    with (
        pytest.warns(UserWarning),
        pytest.raises(UserError, match=r"4 stories cannot be read, 3 are allowed.*disk is gone"),
    ):
        for place in range(20):
            source[place]
