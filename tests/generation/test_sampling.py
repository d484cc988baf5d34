"""The nucleus by bisection, against the one by sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seedstory_jax.generation.sampling import Sampling, choose, nucleus_threshold


def by_sorting(probabilities, top_p):
    """The least probability of the nucleus, a row."""
    ranked = np.sort(probabilities, axis=-1)[:, ::-1]
    before = np.cumsum(ranked, axis=-1) - ranked
    kept = before < top_p
    kept[:, 0] = True
    return np.where(kept, ranked, 2.0).min(axis=-1)


@pytest.mark.parametrize("top_p", [1e-6, 0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_the_nucleus_is_that_of_the_sorted_row(scale, top_p):
    rng = np.random.default_rng(int(1000 * scale))
    probabilities = jax.nn.softmax(jnp.asarray(scale * rng.normal(size=(16, 999)), jnp.float32), axis=-1)
    found = np.asarray(jax.jit(nucleus_threshold)(probabilities, jnp.float32(top_p)))
    wanted = by_sorting(np.asarray(probabilities, np.float64), top_p)
    for row, ours, theirs in zip(np.asarray(probabilities), found, wanted):
        # Where the sums of float32 meet top_p to the last bits, one token more or less is as good.
        assert abs(int((row >= ours).sum()) - int((row >= theirs).sum())) <= (top_p > 0.99)


def test_ties_belong_together_and_the_best_always():
    probabilities = jnp.asarray([[0.4, 0.2, 0.2, 0.1, 0.1], [0.2, 0.2, 0.2, 0.2, 0.2]])
    kept = {p: (probabilities >= nucleus_threshold(probabilities, jnp.float32(p))[:, None]).sum(1).tolist()
            for p in (1e-9, 0.3, 0.5, 0.7, 0.85, 1.0)}  # fmt: skip
    assert kept == {1e-9: [1, 5], 0.3: [1, 5], 0.5: [3, 5], 0.7: [3, 5], 0.85: [5, 5], 1.0: [5, 5]}


def test_words_have_their_probabilities_and_their_own_noise():
    logits = jnp.log(jnp.asarray([0.5, 0.3, 0.15, 0.05]))
    count = 4000

    def draw(seeds, top_p=1.0, temperature=1.0, index=0):
        sampling = Sampling(jnp.float32(temperature), jnp.float32(top_p), jnp.asarray(seeds, jnp.uint32))
        rows = jnp.broadcast_to(logits, (len(seeds), 4))
        return np.asarray(choose(rows, sampling, jnp.full(len(seeds), index, jnp.int32)))

    everything = draw(np.arange(count))
    np.testing.assert_allclose(np.bincount(everything, minlength=4) / count, [0.5, 0.3, 0.15, 0.05], atol=0.03)
    nucleus = draw(np.arange(count), top_p=0.7)
    np.testing.assert_allclose(np.bincount(nucleus, minlength=4) / count, [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_array_equal(draw([7, 3]), draw(np.arange(count))[[7, 3]])  # whatever the batch
    assert (draw(np.arange(100), index=1) != everything[:100]).any()
    assert not draw(np.arange(100), top_p=1e-6).any()
    assert not np.asarray(choose(jnp.stack([logits] * 3), None, jnp.zeros(3, jnp.int32))).any()
