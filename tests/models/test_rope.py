import jax.numpy as jnp
import numpy as np
import pytest

from seedstory_jax.models.rope import rotary_angles, rotate


def test_angles():
    angles = rotary_angles(jnp.asarray([0, 3]), 4, 100.0)
    np.testing.assert_allclose(angles, [[0, 0], [3, 0.3]], rtol=1e-6)


def test_pairs_are_halves_not_neighbours():
    x = jnp.asarray([1.0, 0.0, 0.0, 0.0]).reshape(1, 1, 1, 4)
    turned = rotate(x, jnp.asarray([[2]]), 100.0)
    np.testing.assert_allclose(turned[0, 0, 0], [np.cos(2), 0, np.sin(2), 0], atol=1e-6)


def test_rotations_add_up_and_undo():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 2, 8)), jnp.float32)
    p, q = jnp.asarray([[0, 1, 7], [2, 5, 300]]), jnp.asarray([[4, -1, -7], [1, 40, -290]])
    np.testing.assert_allclose(rotate(rotate(x, p, 1e4), q, 1e4), rotate(x, p + q, 1e4), atol=1e-4)


def test_scores_depend_on_the_difference_alone():
    rng = np.random.default_rng(1)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def score(i, j):
        return float((rotate(q, jnp.asarray([[i]]), 1e4) * rotate(k, jnp.asarray([[j]]), 1e4)).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)


def test_type_is_kept_and_odd_heads_refused():
    assert rotate(jnp.ones((1, 1, 1, 4), jnp.bfloat16), jnp.asarray([[1]]), 1e4).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="odd"):
        rotary_angles(jnp.asarray([0]), 3, 1e4)
