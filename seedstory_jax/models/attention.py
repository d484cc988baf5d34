"""Softmax attention with a boolean mask, full or grouped key/value heads.

Training's `attend` takes queries in blocks and computes each block's logits again in the backward pass, as
FlashAttention does (Dao et al. 2022): no more than a block of logits is ever held, and causal rows skip the blocks they
may not read. Axis letters: b row, t query, s key slot, n query heads, k key/value heads, g query heads of one of those,
h head size.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

MASKED_LOGIT = -1e30  # finite, so that a fully masked row stays free of NaN in both passes
QUERY_BLOCK = 128
ATTENDED = "attended"  # name of what the backward pass needs, for rematerialisation policies


def attend(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    mask: Bool[Array, "b t s"],
    *,
    causal: bool = False,
) -> Float[Array, "b t n h"]:
    """Softmax attention over key slots; `mask[b, t, s]` is True where query t may read slot s.

    Query head n reads key/value head n // (heads / kv_heads). Logits and softmax are float32 whatever the inputs'
    dtype; the result has v's dtype. A query that may read nothing gives 0. Masked slots must hold finite values.

    Args:
        q, k, v, mask: as above.
        causal: a promise that no query reads a later slot than its own number, so that most of what lies above the
            diagonal is not even computed.

    Raises:
        ValueError: the query heads are no multiple of the key heads, or `causal` with fewer slots than queries.
    """
    if causal and k.shape[1] < q.shape[1]:
        raise ValueError(f"causal attention of {q.shape[1]} queries to {k.shape[1]} slots: a slot a query is needed")
    q = _grouped(q, k.shape[2])
    return _ungrouped(_attend_in_blocks(causal, q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), mask))


def attend_buffer(
    q: Float[Array, "b t n h"],
    keys: Float[Array, "b k h s"],
    values: Float[Array, "b k s h"],
    mask: Bool[Array, "b t s"],
    new_keys: Float[Array, "b t k h"],
    new_values: Float[Array, "b t k h"],
    new_mask: Bool[Array, "b t t"],
) -> Float[Array, "b t n h"]:
    """`attend` to a KV buffer and to new tokens that are not in it yet, without a gradient.

    In the buffer's layout both products read a head's slots in the order of memory: no transposed copy for every token.
    """
    q, slots = _grouped(q, keys.shape[1]), keys.shape[-1]
    new_keys, new_values = (jnp.swapaxes(new, 1, 2).astype(q.dtype) for new in (new_keys, new_values))
    logits = [_logits(q, keys.astype(q.dtype), mask, "bkhs"), _logits(q, new_keys, new_mask)]
    weights, total = _weights(jnp.concatenate(logits, axis=-1))[:2]
    mixed = _mix(weights[..., :slots], values.astype(q.dtype)) + _mix(weights[..., slots:], new_values)
    return _ungrouped((mixed / total).astype(q.dtype))


def attend_and_weigh(
    q: Float[Array, "b t n h"],
    keys: Float[Array, "b k h s"],
    values: Float[Array, "b k s h"],
    mask: Bool[Array, "b t s"],
) -> tuple[Float[Array, "b t n h"], Float[Array, "b t n s"]]:
    """`attend` to a KV buffer that holds the queries' own tokens already, and each query's weights, in float32."""
    q = _grouped(q, keys.shape[1])
    weights, total, _ = _weights(_logits(q, keys.astype(q.dtype), mask, "bkhs"))
    attended = (_mix(weights, values.astype(q.dtype)) / total).astype(q.dtype)
    return _ungrouped(attended), _ungrouped(weights / total)


def query_blocks(queries: int, slots: int, causal: bool) -> Iterator[tuple[slice, slice]]:
    """(queries, slots that they read) of every block of `attend`."""
    for start in range(0, queries, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, queries)
        yield slice(start, stop), slice(0, stop if causal else slots)


def _attend_block(q, k, v, mask):
    """q [b k g t h] -> what it attends to, and the logarithm of each query's summed weights [b k g t 1]."""
    weights, total, peak = _weights(_logits(q, k, mask))
    return (_mix(weights, v) / total).astype(v.dtype), peak + jnp.log(total)


def _weights(logits):
    """(weights, their sum, the logit at which a weight is 1); weights / sum is the softmax over the last axis."""
    # A row that reads nothing keeps a peak far above its own logits: its weights are 0, and so is their sum.
    peak = jnp.maximum(jnp.max(logits, axis=-1, keepdims=True), MASKED_LOGIT / 2)
    weights = jnp.exp(logits - peak)
    return weights, jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny), peak


def _mix(weights, v):
    return jnp.einsum("bkgts,bksh->bkgth", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)


def _logits(q, k, mask, keys="bksh"):
    logits = jnp.einsum(f"bkgth,{keys}->bkgts", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    return jnp.where(mask[:, None, None], logits, MASKED_LOGIT)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_in_blocks(causal, q, k, v, mask):
    return _forward(causal, q, k, v, mask)[0]


def _forward(causal, q, k, v, mask):
    blocks = [
        _attend_block(q[..., rows, :], k[:, :, read], v[:, :, read], mask[:, rows, read])
        for rows, read in query_blocks(q.shape[3], k.shape[2], causal)
    ]
    attended, log_total = (checkpoint_name(jnp.concatenate(parts, axis=3), ATTENDED) for parts in zip(*blocks))
    return attended, (q, k, v, mask, attended, log_total)


def _backward(causal, saved, gradient):
    q, k, v, mask, attended, log_total = saved
    slots, scale = k.shape[2], q.shape[-1] ** -0.5
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    # Softmax's own gradient: weights · (d weights - their mean under the weights), which is this sum.
    mean = jnp.sum(gradient.astype(jnp.float32) * attended, axis=-1, keepdims=True)
    dq, dk, dv = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for rows, read in query_blocks(q.shape[3], slots, causal):
        q_rows, k_read, v_read, d_rows = q[..., rows, :], k[:, :, read], v[:, :, read], gradient[..., rows, :]
        weights = jnp.exp(_logits(q_rows, k_read, mask[:, rows, read]) - log_total[..., rows, :])
        d_weights = product("bkgth,bksh->bkgts", d_rows, v_read)
        d_logits = (weights * (d_weights - mean[..., rows, :]) * scale).astype(q.dtype)
        dq.append(product("bkgts,bksh->bkgth", d_logits, k_read))
        dk = dk.at[:, :, read].add(product("bkgts,bkgth->bksh", d_logits, q_rows))
        dv = dv.at[:, :, read].add(product("bkgts,bkgth->bksh", weights.astype(v.dtype), d_rows))
    return jnp.concatenate(dq, axis=3).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_attend_in_blocks.defvjp(_forward, _backward)


def _grouped(q, kv_heads):
    batch, length, heads, size = q.shape
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key/value heads: not a multiple")
    return q.reshape(batch, length, kv_heads, heads // kv_heads, size).transpose(0, 2, 3, 1, 4)


def _ungrouped(attended):
    batch, kv_heads, group, length, size = attended.shape
    return attended.transpose(0, 3, 1, 2, 4).reshape(batch, length, kv_heads * group, size)
