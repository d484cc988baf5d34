"""Choice of the next token: greedy, or nucleus sampling (Holtzman et al. 2020) with noise keyed by story and token."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from seedstory_jax.models.attention import MASKED_LOGIT

_ONE = 0x3F800000  # the bits of 1.0; those of floats in [0, 1] are integers in the same order


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """Settings of nucleus sampling; greedy decoding has none."""

    temperature: Any  # float [], above 0
    top_p: Any  # float []
    seed: Any  # uint32 [b] one a story: its words do not depend on the batch it is in


def choose(logits: Float[Array, "b v"], sampling: Sampling | None, index: Int[Array, " b"]) -> Int[Array, " b"]:
    """The next token: the best one without `sampling`, else one of the nucleus.

    `index` is the token's number in its story: with the story's seed it keys the noise.
    """
    if sampling is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    scores = logits / jnp.maximum(sampling.temperature, 1e-6)
    probabilities = jax.nn.softmax(scores, axis=-1)
    least = nucleus_threshold(probabilities, sampling.top_p)
    scores = jnp.where(probabilities >= least[:, None], scores, MASKED_LOGIT)
    keys = jax.vmap(lambda seed, number: jax.random.fold_in(jax.random.key(seed), number))(sampling.seed, index)
    return jax.vmap(jax.random.categorical)(keys, scores).astype(jnp.int32)


def nucleus_threshold(probabilities: Float[Array, "b v"], top_p: Float[Array, ""]) -> Float[Array, " b"]:
    """The least probability that belongs to the nucleus: the likeliest tokens that reach `top_p` together, ties whole.

    A token belongs to it if those that are likelier do not reach `top_p` by themselves. Found by bisection over the
    bits of float32, exactly and without sorting a vocabulary.
    """

    def step(_, bounds):
        low, high = bounds  # `high` belongs to the nucleus, `low - 1` does not
        middle = (low + high) // 2
        value = jax.lax.bitcast_convert_type(middle, jnp.float32)[:, None]
        above = jnp.sum(jnp.where(probabilities > value, probabilities, 0.0), axis=-1)
        belongs = above < top_p
        return jnp.where(belongs, low, middle + 1), jnp.where(belongs, middle, high)

    rows = probabilities.shape[0]
    bounds = jnp.zeros(rows, jnp.int32), jnp.full(rows, _ONE, jnp.int32)
    _, high = jax.lax.fori_loop(0, _ONE.bit_length(), step, bounds)
    return jax.lax.bitcast_convert_type(high, jnp.float32)
