import numpy as np
import pytest

from seedstory_jax.evaluation.image_metrics import (
    best_match,
    character_consistency,
    copied_picture,
    cosine,
    likeness_to_first,
    pretrained_columns,
    style,
    style_consistency,
)


def flat(value: int, side: int = 16) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def test_cosine_by_hand():
    a, b = np.array([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]]), np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    assert cosine(a, b) == pytest.approx([1, 0, 0])


def test_a_figure_that_moved_still_matches():
    x, y, z = np.eye(3)
    assert best_match(np.stack([x, y]), np.stack([y, x])) == pytest.approx(1)
    assert best_match(np.stack([x, y]), np.stack([x, z])) == pytest.approx(0.5)


def test_consistency_looks_back_one_and_to_the_first():
    x, y, z = np.eye(3)
    story = np.stack([[x, y], [y, x], [z, z]])
    zero = np.zeros(3)
    assert character_consistency(story, zero) == [None, pytest.approx(1), pytest.approx(0)]
    assert likeness_to_first(np.stack([[x, y], [z, z], [x, z]]), zero) == [None, 0, pytest.approx(0.5)]
    # What all pictures share does not count.
    shared = character_consistency(story + 100.0, None)
    assert shared[1] > 0.99 and shared[2] < 0.5


def test_style_by_hand():
    assert style(flat(10)).sum() == pytest.approx(2)
    assert style_consistency([flat(10), flat(20), flat(200)]) == [None, pytest.approx(1), pytest.approx(0.5)]
    assert style_consistency([]) == []
    stripes = flat(0)
    stripes[:, ::2] = 40  # same colour bin, other texture: half of the style is texture, half of its edges are sharp
    assert style_consistency([flat(0), stripes])[1] == pytest.approx(0.75, abs=0.01)


def test_copied_picture():
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert copied_picture(prompt, prompt) and copied_picture(np.repeat(np.repeat(prompt, 2, 0), 2, 1), prompt)
    assert not copied_picture(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), prompt)


def test_columns_of_a_pretrained_network():
    vectors = np.array([[1.0, 0], [0, 1], [1, 1]])
    columns = pretrained_columns("net", vectors)
    assert columns["net_to_first"] == [None, 0, pytest.approx(0.5**0.5)]
    assert columns["net_to_before"] == [None, 0, pytest.approx(0.5**0.5)] and len(columns) == 2
    parts = np.random.default_rng(0).normal(size=(3, 5, 4))
    columns = pretrained_columns("net", parts)
    assert columns["net_to_first"][1] == pytest.approx(cosine(parts[1, 0], parts[0, 0]))
    assert columns["net_character_consistency"] == character_consistency(parts[:, 1:])
    assert columns["net_likeness_to_first"] == likeness_to_first(parts[:, 1:])
    assert pretrained_columns("net", vectors[:1]) == {"net_to_first": [None], "net_to_before": [None]}
