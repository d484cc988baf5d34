"""The LLaMA that extends a buffer, against the plain forward of the one that trains."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seedstory_jax.models.kv_buffer import KVBuffer, TokenChunk, empty_buffer
from seedstory_jax.models.llama import Llama, LlamaConfig, causal_mask
from seedstory_jax.models.llama_inference import InferenceLlama
from seedstory_jax.models.lora import LoRAConfig

TINY = LlamaConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    lora=LoRAConfig(rank=2, alpha=4.0),
)
LENGTH = 9


def make(config: LlamaConfig = TINY) -> Llama:
    """A model whose adapters and norms do something (drawn by numpy, which spares compiling the initialisers)."""
    rng = np.random.default_rng(0)
    graph, state = nnx.split(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, x.dtype), state))


@pytest.fixture(scope="module")
def llama():
    return InferenceLlama(make())


@pytest.fixture(scope="module")
def plain():
    """Hidden states of the training model on `tokens()`."""
    ids, positions, mask = tokens()
    with jax.default_matmul_precision("highest"):
        return run(make(), ids, positions, mask)


@pytest.fixture(autouse=True)
def precise():
    with jax.default_matmul_precision("highest"):
        yield


@functools.partial(jax.jit, static_argnames=("graph", "method"))
def _run(graph, state, ids, *args, method):
    llama = nnx.merge(graph, state)
    return getattr(type(llama), method)(llama, llama.embed(ids), *args)


def run(llama, *args, method="__call__"):
    """A method of the model on ids instead of embeddings, compiled."""
    return _run(*nnx.split(llama), *args, method=method)


def extend(llama, *args):
    return run(llama, *args, method="extend")


def tokens(rows=2, length=LENGTH):
    ids = jax.random.randint(jax.random.key(1), (rows, length), 0, TINY.vocab_size)
    return ids, jnp.broadcast_to(jnp.arange(length), ids.shape), causal_mask(jnp.ones(ids.shape, bool))


def chunk(positions, count) -> TokenChunk:
    zeros = jnp.zeros_like(positions)
    return TokenChunk(positions, positions, zeros, zeros, jnp.asarray(count))


def buffer(slots=16, rows=2, dtype="float32") -> KVBuffer:
    return empty_buffer(TINY.num_layers, rows, slots, TINY.num_kv_heads, TINY.head_dim, dtype)


def test_unstacked_fused_and_merged_it_is_the_same_function(llama, plain):
    assert llama.config.lora is None
    assert not any("lora" in str(path[-1]) for path, _ in nnx.to_flat_state(nnx.state(llama)))
    np.testing.assert_allclose(run(llama, *tokens()), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cuts", [[9], [4, 9], [1, 2, 3, 4, 5, 6, 7, 8, 9], [3, 4, 9]])
def test_extend_in_chunks_is_the_plain_forward(llama, plain, cuts):
    ids, positions, _ = tokens()
    kv, parts, start = buffer(), [], 0
    for end in cuts:
        hidden, kv = extend(llama, ids[:, start:end], chunk(positions[:, start:end], [end - start] * 2), kv)
        parts.append(hidden)
        start = end
    np.testing.assert_allclose(jnp.concatenate(parts, 1), plain, rtol=1e-4, atol=1e-5)
    assert kv.length.tolist() == [LENGTH, LENGTH]


def test_padding_of_a_chunk_is_never_written(llama, plain):
    ids, positions, _ = tokens()
    kv = buffer()
    _, kv = extend(llama, ids[:, :4], chunk(positions[:, :4], [4, 2]), kv)  # row 1 holds two tokens
    assert not any(keys[1, :, :, 2:].any() for keys in kv.k)
    rest = jnp.stack([ids[0, 4:8], ids[1, 2:6]])
    hidden, kv = extend(llama, rest, chunk(jnp.stack([positions[0, 4:8], positions[1, 2:6]]), [4, 4]), kv)
    np.testing.assert_allclose(hidden[0], plain[0, 4:8], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(hidden[1], plain[1, 2:6], rtol=1e-4, atol=1e-5)


def test_a_full_buffer_is_not_overwritten(llama):
    ids, positions, _ = tokens()
    _, kv = extend(llama, ids[:, :4], chunk(positions[:, :4], [4, 4]), buffer(slots=4))
    _, after = extend(llama, ids[:, 4:6], chunk(positions[:, 4:6], [2, 2]), kv)
    jax.tree.map(np.testing.assert_array_equal, after.k, kv.k)


def test_a_donated_buffer_is_updated_in_place():
    """No second copy: XLA's temporaries stay far below the buffer."""
    config = dataclasses.replace(TINY, num_layers=8, lora=None)
    graph, state = nnx.split(nnx.eval_shape(lambda: InferenceLlama(Llama(config, rngs=nnx.Rngs(0)))))
    kv = empty_buffer(8, 2, 1024, config.num_kv_heads, config.head_dim, "float32")
    new = chunk(jnp.zeros((2, 1), jnp.int32), [1, 1])

    def step(kv, state, x, new):
        return nnx.merge(graph, state).extend(x, new, kv)

    x = jax.ShapeDtypeStruct((2, 1, 32), jnp.float32)
    memory = jax.jit(step, donate_argnums=0).lower(kv, state, x, new).compile().memory_analysis()
    size = 2 * 8 * math.prod(kv.k[0].shape) * 4
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size / 2


def test_low_precision_keeps_its_types():
    llama = InferenceLlama(make(dataclasses.replace(TINY, dtype="bfloat16")))
    ids, positions, mask = tokens()
    hidden = run(llama, ids, positions, mask)
    extended, kv = extend(llama, ids, chunk(positions, [LENGTH] * 2), buffer(dtype="bfloat16"))
    assert hidden.dtype == extended.dtype == kv.k[0].dtype == kv.v[0].dtype == jnp.bfloat16
    assert llama.logits(hidden).dtype == jnp.float32
    np.testing.assert_allclose(extended.astype(jnp.float32), hidden.astype(jnp.float32), atol=0.1)
