import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seedstory_jax.models.llama import Llama, LlamaConfig, causal_mask
from seedstory_jax.models.lora import LoRAConfig

TINY = LlamaConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    lora=LoRAConfig(rank=2, alpha=4.0, dropout=0.3),
)
LENGTH = 9


def make(config: LlamaConfig = TINY) -> Llama:
    """A model whose adapters and norms do something (drawn by numpy, which spares compiling the initialisers)."""
    rng = np.random.default_rng(0)
    graph, state = nnx.split(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, x.dtype), state))


@pytest.fixture(scope="module")
def llama():
    return make()


@pytest.fixture(autouse=True)
def precise():
    with jax.default_matmul_precision("highest"):
        yield


@functools.partial(jax.jit, static_argnames=("graph", "method"))
def _run(graph, state, ids, *args, method="__call__", **kwargs):
    llama = nnx.merge(graph, state)
    return getattr(type(llama), method)(llama, llama.embed(ids), *args, **kwargs)


def run(llama, *args, **kwargs):
    """A method of the model on ids instead of embeddings, compiled."""
    return _run(*nnx.split(llama), *args, **kwargs)


def tokens(rows=2, length=LENGTH):
    ids = jax.random.randint(jax.random.key(1), (rows, length), 0, TINY.vocab_size)
    return ids, jnp.broadcast_to(jnp.arange(length), ids.shape), causal_mask(jnp.ones(ids.shape, bool))


def test_full_size_is_the_published_one():
    abstract = nnx.eval_shape(lambda: Llama(LlamaConfig(), rngs=nnx.Rngs(0)))
    sizes = {path: math.prod(v.shape) for path, v in nnx.to_flat_state(nnx.state(abstract))}
    lora = sum(n for path, n in sizes.items() if path[-1].startswith("lora_"))
    padding = 2 * (32128 - 32066) * 4096
    assert lora == 39_976_960
    assert sum(sizes.values()) - lora - padding == 6_738_956_288


def test_dropout_only_with_a_key(llama):
    ids, positions, mask = tokens()
    plain = run(llama, ids, positions, mask)
    one, two, again = (run(llama, ids, positions, mask, dropout_key=jax.random.key(n)) for n in (0, 1, 0))
    assert not np.allclose(one, two)
    assert not np.allclose(one, plain)
    np.testing.assert_array_equal(one, again)


def test_remat_changes_nothing(llama):
    ids, positions, mask = tokens()

    def gradient(**changes):
        graph, _ = nnx.split(nnx.eval_shape(lambda: Llama(dataclasses.replace(TINY, **changes), rngs=nnx.Rngs(0))))

        def loss(state):
            model = nnx.merge(graph, state)
            return jnp.square(model(model.embed(ids), positions, mask, dropout_key=jax.random.key(3))).mean()

        return jax.tree.leaves(jax.jit(jax.grad(loss))(nnx.state(llama)))

    for ours, wanted in zip(gradient(remat="full"), gradient(), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-6)


def test_padded_vocabulary_is_invisible(llama):
    ids, positions, mask = tokens()
    hidden = run(llama, ids, positions, mask)
    logits = llama.logits(hidden)
    assert logits.shape[-1] == TINY.padded_vocab_size == 128
    assert logits.dtype == jnp.float32
    assert not np.exp(logits[..., TINY.vocab_size :] - logits.max()).any()
    real = llama.lm_head.kernel[...][:, : TINY.vocab_size]
    np.testing.assert_allclose(logits[..., : TINY.vocab_size], hidden @ real, rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda x: jax.nn.logsumexp(llama.logits(x)))(hidden[:1, :1])
    assert jnp.isfinite(gradient).all()


def test_low_precision_keeps_its_types():
    llama = make(dataclasses.replace(TINY, dtype="bfloat16", remat="full"))
    ids, positions, mask = tokens()
    hidden = run(llama, ids, positions, mask)
    assert hidden.dtype == jnp.bfloat16
    assert llama.logits(hidden).dtype == jnp.float32


def test_the_stack_is_its_layers_in_order_and_a_norm(llama):
    ids, positions, mask = tokens()
    x = llama.embed(ids)
    for number in range(3):
        x = jax.tree.map(lambda leaf, n=number: leaf[n], llama.layers)(x, positions, mask)
    np.testing.assert_allclose(llama.norm(x), run(llama, ids, positions, mask), rtol=1e-5, atol=1e-6)


def test_causal_mask_is_literally_this():
    mask = causal_mask(jnp.asarray([[True, True, True], [True, True, False]])).astype(int)
    assert mask.tolist() == [[[1, 0, 0], [1, 1, 0], [1, 1, 1]], [[1, 0, 0], [1, 1, 0], [1, 1, 0]]]


@pytest.mark.parametrize("changes", [{"hidden_size": 33}, {"num_kv_heads": 3}])
def test_impossible_heads(changes):
    with pytest.raises(ValueError, match="num_heads"):
        dataclasses.replace(TINY, **changes)
