from collections import Counter

import numpy as np
import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.toy.tales.facts import SERIES
from seedstory_jax.toy.tales.plot import CHUNK, DISTANCES, make_tale

WINDOW = 8


def tales(count=60, length=30, **options):
    return [
        make_tale(np.random.default_rng([7, number]), list(SERIES)[number % 2], length, **options)
        for number in range(count)
    ]


def test_a_tale_is_a_wish_a_loss_a_search_helpers_and_an_end():
    for tale in tales(20):
        events = [turn.event for turn in tale.turns]
        assert len(events) == 30
        assert events[:2] == ["wish", "leave"] and events[-4:] == ["gate", "find", "home", "feast"]
        assert events.count("meet") >= 3 and "clue" in events
        assert all(turn.names[0] == tale.hero and len(turn.names) <= 3 for turn in tale.turns)
        home = SERIES[tale.series].places[0]
        assert {turn.place for turn in tale.turns if turn.event in ("wish", "leave", "home", "feast")} == {home}
        assert home not in {turn.place for turn in tale.turns[2:-2]}
        for clue, then in zip(tale.turns, tale.turns[1:], strict=False):
            # whoever goes to another place goes where the last clue sent them, or home
            if then.place != clue.place and then.place != home and clue.number > 1:
                last = next(turn for turn in reversed(tale.turns[: then.number]) if turn.event in ("clue", "leave"))
                assert last.next_place in (then.place, "") or last.event == "leave"


def test_the_same_seed_tells_the_same_tale():
    assert tales(4) == tales(4)
    assert len({tale.turns for tale in tales(20)}) == 20


def test_distances_of_what_is_asked_cover_every_band():
    counts, kinds = Counter(), Counter()
    told = tales(120)
    for tale in told:
        for number, question in tale.questions:
            distance = number - question.told
            counts[next(band for band in DISTANCES if band[0] <= distance <= band[1])] += 1
            kinds[question.kind] += 1
    total = sum(counts.values())
    assert total >= 5 * len(told)
    for band in DISTANCES:
        assert counts[band] / total > 0.22, counts
    assert kinds["scarf"] / 120 > 3 and kinds["password"] / 120 > 0.8 and kinds["sail"] / 120 > 0.5


def test_what_is_asked_was_told_once_last_and_is_not_in_the_picture():
    for tale in tales(60):
        subjects = [(question.kind, question.subject) for _, question in tale.questions]
        assert len(set(subjects)) == len(subjects)
        for number, question in tale.questions:
            shown = tale.turns[question.told]
            between = tale.turns[question.told + 1 : number + 1]
            if question.kind == "scarf":
                assert question.subject in shown.names and question.answer == tale.scarf(question.subject)
                assert not any(question.subject in turn.names for turn in between)
            elif question.kind == "sail":
                assert shown.sail == question.answer == tale.sail and not any(turn.sail for turn in between)
            else:
                assert question.told == 0 and question.answer == tale.password


def test_scarves_differ_and_show_on_the_fur():
    for tale in tales(40):
        colours = [colour for _, colour in tale.scarves]
        assert len({*colours, tale.sail}) == len(colours) + 1 == 6
        assert tale.hero not in dict(tale.scarves)
        assert all(colour not in SERIES[tale.series].animal(name).never for name, colour in tale.scarves)


def test_friends_return_after_more_turns_than_the_window():
    away = [turn.number - last for tale in tales(60) for turn in tale.turns for _, last in turn.returns]
    assert min(away) >= 2
    assert np.mean([distance > WINDOW for distance in away]) > 0.8
    longer = tales(4, length=100)
    assert all(any(turn.event == "again" for turn in tale.turns) for tale in longer)


def test_tales_to_train_on_ask_only_within_a_row():
    asked = [(number, question) for tale in tales(60, within_rows=True) for number, question in tale.questions]
    assert len(asked) > 60 * 3
    assert all(number // CHUNK == question.told // CHUNK for number, question in asked)
    assert {question.kind for _, question in asked} == {"scarf", "sail", "password"}


def test_too_short_a_tale_is_refused():
    with pytest.raises(UserError, match="the least is 12"):
        make_tale(np.random.default_rng(0), "woods", 11)
    assert len(make_tale(np.random.default_rng(0), "woods", 12).turns) == 12
