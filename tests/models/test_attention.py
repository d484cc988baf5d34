import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seedstory_jax.models.attention import QUERY_BLOCK, attend


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def by_hand(q, k, v, mask):
    """One query, one head at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    share = q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(q.shape[:3]):
        seen = np.flatnonzero(mask[b, t])
        if len(seen):
            logits = k[b, seen, n // share] @ q[b, t, n] / np.sqrt(q.shape[-1])
            weights = np.exp(logits - logits.max())
            out[b, t, n] = weights / weights.sum() @ v[b, seen, n // share]
    return out


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_by_hand(kv_heads):
    q, k, v = random(0, 2, 3, 4, 8), random(1, 2, 5, kv_heads, 8), random(2, 2, 5, kv_heads, 8)
    mask = np.random.default_rng(3).random((2, 3, 5)) < 0.5
    mask[0, 0] = False
    with jax.default_matmul_precision("highest"):
        ours = attend(q, k, v, jnp.asarray(mask))
    np.testing.assert_allclose(ours, by_hand(q, k, v, mask), atol=1e-5)


def test_a_query_that_may_read_nothing_gives_zero_and_a_finite_gradient():
    q, k, v = random(0, 1, 2, 1, 4), random(1, 1, 3, 1, 4), random(2, 1, 3, 1, 4)
    mask = jnp.asarray([[[False] * 3, [True, True, False]]])
    assert (attend(q, k, v, mask)[0, 0] == 0).all()
    gradients = jax.grad(lambda *x: attend(*x, mask).sum(), argnums=(0, 1, 2))(q, k, v)
    assert all(jnp.isfinite(g).all() for g in gradients)


def test_masked_slots_may_hold_anything_finite():
    q, k, v = random(0, 1, 2, 1, 4), random(1, 1, 3, 1, 4), random(2, 1, 3, 1, 4)
    mask = jnp.asarray([[[True, True, False]] * 2])
    np.testing.assert_array_equal(attend(q, k, v, mask), attend(q, k.at[:, 2].set(1e9), v.at[:, 2].set(-1e9), mask))


def test_result_has_the_type_of_v():
    q, k, v = random(0, 1, 2, 1, 4), random(1, 1, 3, 1, 4), random(2, 1, 3, 1, 4)
    low = attend(*(x.astype(jnp.bfloat16) for x in (q, k, v)), jnp.ones((1, 2, 3), bool))
    assert low.dtype == jnp.bfloat16


def test_heads_must_share_evenly():
    with pytest.raises(ValueError, match="3 query heads cannot share 2"):
        attend(random(0, 1, 2, 3, 4), random(1, 1, 3, 2, 4), random(2, 1, 3, 2, 4), jnp.ones((1, 2, 3), bool))


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_blocks_of_queries_have_the_values_and_gradients_of_all_logits_at_once(kv_heads):
    length = 2 * QUERY_BLOCK + 44
    q, k, v = random(0, 2, length, 2, 8), random(1, 2, length, kv_heads, 8), random(2, 2, length, kv_heads, 8)
    mask = np.tril(np.random.default_rng(3).random((2, length, length)) < 0.5)
    mask[0, 3] = mask[1, length - 1] = False
    weight = random(4, 2, length, 2, 8)

    def at_once(q, k, v):
        k, v = (jnp.repeat(x, 2 // kv_heads, axis=2) for x in (k, v))
        logits = jnp.where(mask[:, None], jnp.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(8), -1e30)
        mixed = jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(logits), v)
        return jnp.where(mask.any(-1)[..., None, None], mixed, 0)

    def value_and_gradients(function):
        return jax.value_and_grad(lambda *x: jnp.sum(weight * function(*x)), argnums=(0, 1, 2))(q, k, v)

    with jax.default_matmul_precision("highest"):
        expected = value_and_gradients(at_once)
        for causal in (False, True):
            ours = value_and_gradients(lambda *x, causal=causal: attend(*x, jnp.asarray(mask), causal=causal))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), ours, expected)


def test_causal_attention_needs_a_slot_a_query():
    with pytest.raises(ValueError, match="4 queries to 3 slots"):
        attend(
            random(0, 1, 4, 1, 4), random(1, 1, 3, 1, 4), random(2, 1, 3, 1, 4), jnp.ones((1, 4, 3), bool), causal=True
        )
