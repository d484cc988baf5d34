import dataclasses

import numpy as np
import pytest

from seedstory_jax.toy.tales.facts import COLOURS, SERIES, TIMES
from seedstory_jax.toy.tales.paint import paint, read_sail, read_scarf, read_time
from seedstory_jax.toy.tales.plot import THINGS, make_tale


def tale_of(series, seed=0):
    return make_tale(np.random.default_rng(seed), series)


@pytest.mark.parametrize("series", list(SERIES))
def test_pictures_show_the_record(series):
    """Every scarf, sail and time of day of whole tales, read from the pixels."""
    scarves = sails = 0
    for seed in range(3):
        tale = tale_of(series, seed)
        for turn in tale.turns:
            picture = paint(tale, turn)
            assert picture.shape == (128, 128, 3) and picture.dtype == np.uint8
            assert read_time(picture) == turn.time
            for figure, name in enumerate(turn.names):
                if name != tale.hero:
                    scarves += 1
                    assert read_scarf(picture, figure, len(turn.names), turn.time) == tale.scarf(name)
            if turn.sail:
                sails += 1
                assert read_sail(picture, turn.time) == tale.sail
    assert scarves > 40 and sails >= 1


@pytest.mark.parametrize("time", TIMES)
def test_every_colour_is_read_at_every_hour_and_size(time):
    tale = tale_of("harbour")
    meeting = dataclasses.replace(next(turn for turn in tale.turns if len(turn.names) == 2), time=time)
    sailing = dataclasses.replace(tale.turns[2], place="pier", time=time)
    for colour in COLOURS:
        dressed = dataclasses.replace(tale, scarves=((meeting.names[1], colour),))
        for size in (128, 200):
            assert read_scarf(paint(dressed, meeting, size), 1, 2, time) == colour
        assert read_sail(paint(tale, dataclasses.replace(sailing, sail=colour)), time) == colour


def test_places_times_animals_and_poses_look_different():
    pictures = []
    for series, world in SERIES.items():
        tale = tale_of(series)
        turn = tale.turns[0]
        pictures += [paint(tale, dataclasses.replace(turn, place=place)) for place in world.places]
        for animal in world.cast:
            pictures.append(
                paint(
                    dataclasses.replace(tale, hero=animal.name),
                    dataclasses.replace(turn, cast=((animal.name, "wave"),)),
                )
            )
    for thing in THINGS:
        pictures.append(paint(dataclasses.replace(tale, thing=thing), dataclasses.replace(turn, shows_thing=True)))
    for time in TIMES[1:]:
        pictures.append(paint(tale, dataclasses.replace(turn, time=time)))
    for a in range(len(pictures)):
        for b in range(a):
            changed = np.abs(pictures[a].astype(int) - pictures[b]).max(-1) > 24
            assert changed.mean() > 0.003, (a, b)


def test_pictures_are_smooth_and_the_same_each_time():
    tale = tale_of("woods")
    turn = next(turn for turn in tale.turns if len(turn.names) == 2)
    picture = paint(tale, turn)
    np.testing.assert_array_equal(picture, paint(tale, turn))
    # anti-aliased: the large picture scaled down is the small one, but for rounding of the outlines' widths
    large = paint(tale, turn, 256).reshape(128, 2, 128, 2, 3).mean((1, 3))
    assert np.abs(large - picture).mean() < 2
