"""Softmax attention with a boolean mask, full or grouped key/value heads."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MASKED_LOGIT = -1e30  # finite, so that a fully masked row stays free of NaN in both passes


def attend(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    mask: Bool[Array, "b t s"],
) -> Float[Array, "b t n h"]:
    """Softmax attention over key slots; `mask[b, t, s]` is True where query t may read slot s.

    Query head n reads key/value head n // (heads / kv_heads). Logits and softmax are float32 whatever the inputs'
    dtype; the result has v's dtype. A query that may read nothing gives 0. Masked slots must hold finite values.

    Raises ValueError if the query heads are no multiple of the key heads.
    """
    return attend_slots(q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), mask)


def attend_slots(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b k s h"],
    v: Float[Array, "b k s h"],
    mask: Bool[Array, "b t s"],
) -> Float[Array, "b t n h"]:
    """`attend` for keys and values with heads before slots, as the KV buffer holds them.

    Each head's slots then lie together, and both products read them where they are: no transposed copy of a buffer for
    every token (three times as fast on a CPU).
    """
    batch, length, heads, size = q.shape
    kv_heads = k.shape[1]
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key/value heads: not a multiple")
    q = q.reshape(batch, length, kv_heads, heads // kv_heads, size)  # g: query heads of one key head
    logits = jnp.einsum("btkgh,bksh->bkgts", q, k, preferred_element_type=jnp.float32) * size**-0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], logits, MASKED_LOGIT), axis=-1)
    attended = jnp.einsum("bkgts,bksh->bkgth", weights.astype(v.dtype), v)
    attended = jnp.where(mask.any(-1)[:, None, None, :, None], attended, 0.0)
    return attended.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, size)
