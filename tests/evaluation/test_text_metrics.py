import pytest

from seedstory_jax.evaluation.text_metrics import copied_share, distinct, repetition, says_the_same, words


def test_words():
    assert words("The man's hat, the MAN\u2019s kite. Über-froh!") == [
        "the",
        "man's",
        "hat",
        "the",
        "man\u2019s",
        "kite",
        "über",
        "froh",
    ]
    assert words("... !") == []


def test_distinct_by_hand():
    texts = ["a b a b", "a b"]  # bigrams: ab ba ab | ab -> 2 of 4; words: 2 of 6
    assert distinct(texts, 1) == pytest.approx(2 / 6) and distinct(texts, 2) == 2 / 4
    assert distinct(["a"], 2) is None and distinct([], 1) is None


def test_repetition_by_hand():
    # Second caption: its runs of two are "a b" (said before) and "b d" (new); third: "b d", "d a" -> one of two.
    assert repetition(["a b c", "a b d", "b d a", "x"], n=2) == [0.0, 0.5, 0.5, None]
    assert repetition(["a a a"], n=1) == [pytest.approx(2 / 3)]


def test_says_the_same():
    assert says_the_same(["A dog.", "a DOG", "a cat", "a dog!"]) == [False, True, False, True]


def test_copied_share_by_hand():
    prompt = "the monkey wakes up in the city"
    assert copied_share("Soon the monkey wakes up again", prompt) == pytest.approx(4 / 6)
    assert copied_share("the monkey wakes up in the city", prompt) == 1.0
    assert copied_share("a city of the monkey", prompt) == 0.0
    assert copied_share("wakes up", prompt) == 0.0  # too short a run to be a copy
    assert copied_share("...", prompt) is None
