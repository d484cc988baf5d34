import jax.numpy as jnp
import numpy as np
import pytest

from seedstory_jax.parity.released_generate import released_scores

CHAIN = jnp.asarray([4, 6, 7, 5])  # <img>, two image tokens, </img>: not in order of their ids


def rule(last, scores):
    return np.asarray(released_scores(jnp.asarray([scores]), jnp.asarray([last]), CHAIN))[0]


@pytest.mark.parametrize(("last", "following"), [(4, 6), (6, 7), (7, 5)])
def test_inside_an_image_the_next_token_is_forced(last, following):
    scores = np.asarray([1.0, 3.0, -1.0, 0.5, 2.0, 2.5, -4.0, 0.1], np.float32)
    wanted = scores.copy()
    wanted[following] = 13.0
    np.testing.assert_array_equal(rule(last, scores), wanted)


@pytest.mark.parametrize("last", [0, 3, 5])
def test_elsewhere_image_tokens_score_zero_and_the_opening_is_free(last):
    scores = np.asarray([1.0, 3.0, -1.0, 0.5, 2.0, 2.5, -4.0, 0.1], np.float32)
    np.testing.assert_array_equal(rule(last, scores), [1.0, 3.0, -1.0, 0.5, 2.0, 0.0, 0.0, 0.0])


def test_a_zero_wins_over_negative_scores_lowest_id_first():
    assert rule(0, np.full(8, -1.0, np.float32)).argmax() == 5
