import re

import numpy as np
import pytest

from seedstory_jax.toy.tales.facts import COLOURS, PASSWORDS, SERIES
from seedstory_jax.toy.tales.language import PLACES, TIME_WORDS, caption_of, read_caption, score_caption
from seedstory_jax.toy.tales.plot import make_tale


@pytest.fixture(scope="module")
def told():
    """(tale, captions) of sixty tales."""
    found = []
    for number in range(60):
        rng = np.random.default_rng([3, number])
        tale = make_tale(rng, list(SERIES)[number % 2])
        found.append((tale, [caption_of(tale, turn, rng) for turn in tale.turns]))
    return found


def test_captions_say_what_the_record_says(told):
    for tale, captions in told:
        for turn, caption in zip(tale.turns, captions, strict=True):
            assert score_caption(caption, tale, turn).right, (turn, caption)
            if turn.event not in ("wish", "feast"):  # a wish, and a loss, may speak of another time
                assert set(read_caption(caption).times) <= {turn.time}


def test_nothing_seen_in_pictures_alone_is_named_before_it_is_asked(told):
    """A colour stands in one caption of a tale, that which asks for it; the password in that and the opening."""
    for tale, captions in told:
        asked = {question.answer: number for number, question in tale.questions}
        for word in (*COLOURS, *PASSWORDS):
            where = [
                number for number, caption in enumerate(captions) if word in re.findall(r"[a-z]+", caption.lower())
            ]
            opening = [0] if word == tale.password else []
            assert where == opening + ([asked[word]] if word in asked else []), (word, captions)


def test_a_few_hundred_words_and_many_ways_to_say_a_thing(told):
    text = " ".join(caption for _, captions in told for caption in captions)
    assert 250 < len(set(re.findall(r"[a-z]+", text.lower()))) < 500
    captions = [caption for _, captions in told for caption in captions]
    assert len(set(captions)) / len(captions) > 0.8
    lengths = [len(caption.split()) for caption in captions]
    assert min(lengths) >= 5 and max(lengths) < 50 and 10 < np.mean(lengths) < 22
    for caption in captions:
        assert caption[0].isupper() or caption[0] == "“"
        assert caption[-1] in ".!?”" and "  " not in caption and "{" not in caption


def test_wrong_facts_are_found(told):
    tale, captions = next(
        (tale, captions) for tale, captions in told if any(question.kind == "scarf" for _, question in tale.questions)
    )
    number, question = next(each for each in tale.questions if each[1].kind == "scarf")
    turn, caption = tale.turns[number], captions[number]
    other = next(colour for colour in COLOURS if colour != question.answer)
    assert score_caption(caption, tale, turn).answered
    assert score_caption(caption.replace(question.answer, other), tale, turn).answered is False
    assert score_caption(caption.replace(question.answer, ""), tale, turn).answered is False
    meeting = next(turn for turn in tale.turns if turn.event == "meet" and turn.question is None)
    caption = captions[meeting.number]
    stranger = next(name for name in dict(tale.scarves) if name not in meeting.names)
    assert not score_caption(caption.replace(meeting.names[1], stranger), tale, meeting).names
    assert not score_caption(caption + f" {stranger} came along.", tale, meeting).names
    elsewhere = next(place for place in PLACES if place != meeting.place)
    assert not score_caption(caption.replace(meeting.place, elsewhere), tale, meeting).place
    assert not score_caption("", tale, meeting).right


def test_another_wording_with_the_same_facts_is_right(told):
    tale = told[0][0]
    meeting = next(turn for turn in tale.turns if turn.event == "meet" and turn.question is None)
    text = f"Near the {meeting.place} sat {meeting.names[1]}, whom {meeting.names[0]} had never seen."
    assert score_caption(text, tale, meeting).right
    assert score_caption(text, tale, meeting).answered is None


def test_words_of_times_do_not_overlap():
    words = [word for group in TIME_WORDS.values() for word in group]
    assert not [(a, b) for a in words for b in words if a != b and a in b]
