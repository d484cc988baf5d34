"""The published generate call, for parity only (SEED-Story `ContinuousLVLM.generate`, greedy as it always was).

One call decodes token by token, image tokens included, goes on through `</img>`, and ends at `</s>` or the limit. The
story engine does none of this: see `generation/engine.py`.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from seedstory_jax.models.kv_buffer import Kind, KVBuffer, TokenChunk, empty_buffer
from seedstory_jax.models.story_mllm import StoryMLLM

FORCED = 10.0  # the next image token gets the largest score plus this


@dataclasses.dataclass(frozen=True)
class ReleasedOutput:
    """What the published call returned, and what it was made from.

    Attributes:
        ids: generated ids, `</s>` included [t].
        hidden: final hidden state at each generated token but the last [t-1 d].
        step_margin: best minus second score at each step, after the rule [t].
        query_hidden: hidden states of the image tokens before the last `</img>` [q d], or None without an image.
        image_features: these through the output resampler [1 q d], or None.
    """

    ids: np.ndarray
    hidden: np.ndarray
    step_margin: np.ndarray
    query_hidden: np.ndarray | None
    image_features: np.ndarray | None

    @property
    def has_image(self) -> bool:
        """Whether an image was completed."""
        return self.image_features is not None


def released_scores(
    scores: Float[Array, "b v"], last: Int[Array, " b"], chain: Int[Array, " c"]
) -> Float[Array, "b v"]:
    """The published rule on image tokens; `chain` is `<img>`, the image tokens in order, `</img>`.

    After any token of the chain but its end, the next one gets max + 10. Otherwise the scores of all of them but
    `<img>` are *set to 0.0* (not to minus infinity: where all others are negative, the lowest of these ids wins).
    """
    in_chain = last[:, None] == chain[None, :-1]
    following = jnp.sum(jnp.where(in_chain, chain[1:], 0), axis=1)
    ids = jnp.arange(scores.shape[1])
    forced = jnp.where(ids[None] == following[:, None], scores.max(1, keepdims=True) + FORCED, scores)
    barred = jnp.where((ids[:, None] == chain[1:]).any(1)[None], 0.0, scores)
    return jnp.where(in_chain.any(1)[:, None], forced, barred)


def released_generate(
    model: StoryMLLM,
    ids: Int[np.ndarray, " t"],
    image_slot: Int[np.ndarray, " t"],
    image_features: Float[np.ndarray, "i q d"],
    *,
    chain: Sequence[int],
    eos: int,
    max_new_tokens: int,
) -> ReleasedOutput:
    """Continues one prompt greedily.

    Args:
        model: the story model.
        ids: the prompt.
        image_slot: -1, or which row of the read images replaces the prompt's token, as in `StoryBatch`.
        image_features: features of the prompt's images.
        chain: ids of `<img>`, the image tokens in order, and `</img>`.
        eos: id of `</s>`.
        max_new_tokens: the limit.
    """
    graph, state = nnx.split(model.for_inference())
    tokens, hidden, margins, count = _decode(
        graph,
        state,
        jnp.asarray(ids)[None],
        jnp.asarray(image_slot)[None],
        jnp.asarray(image_features)[None],
        jnp.asarray(chain, jnp.int32),
        eos,
        max_new_tokens=max_new_tokens,
    )
    count = int(count)
    ids, hidden = np.asarray(tokens)[:count], np.asarray(hidden)[: count - 1]
    queries = len(chain) - 2
    ends = np.flatnonzero(ids == chain[-1])
    query_hidden = features = None
    if len(ends) and ends[-1] >= queries:
        query_hidden = hidden[ends[-1] - queries : ends[-1]]
        features = np.asarray(model.predict_image_features(jnp.asarray(query_hidden)[None, None])[0])
    return ReleasedOutput(ids, hidden, np.asarray(margins)[:count], query_hidden, features)


@functools.partial(jax.jit, static_argnames=("graph", "max_new_tokens"))
def _decode(graph, state, ids, image_slot, image_features, chain, eos, *, max_new_tokens):
    """-> ids [limit], the hidden state *at* each of them [limit d], margins [limit], how many are real."""
    model: StoryMLLM = nnx.merge(graph, state)
    config, prompt = model.config.llama, ids.shape[1]
    embeddings = model.interleave_images(model.llama.embed(ids), image_slot, image_features)
    slots = prompt + max_new_tokens
    buffer = empty_buffer(config.num_layers, 1, slots, config.num_kv_heads, config.head_dim, config.dtype)
    hidden, buffer = model.llama.extend(embeddings, _chunk(0, prompt), buffer)

    def undecided(carry):
        number, last, *_ = carry
        return (number < max_new_tokens) & (last[0] != eos)

    def step(carry):
        number, last, hidden, buffer, tokens, states, margins = carry
        scores = released_scores(model.llama.logits(hidden[:, None])[:, 0], last, chain)
        best = jax.lax.top_k(scores, 2)[0][0]
        token = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        hidden, buffer = _one(model, token, prompt + number, buffer)
        return (
            number + 1,
            token,
            hidden,
            buffer,
            tokens.at[number].set(token[0]),
            states.at[number].set(hidden[0].astype(jnp.float32)),
            margins.at[number].set(best[0] - best[1]),
        )

    start = (
        jnp.int32(0),
        ids[:, -1],
        hidden[:, -1],
        buffer,
        jnp.zeros(max_new_tokens, jnp.int32),
        jnp.zeros((max_new_tokens, config.hidden_size)),
        jnp.zeros(max_new_tokens),
    )
    number, _, _, _, tokens, states, margins = jax.lax.while_loop(undecided, step, start)
    return tokens, states, margins, number


def _one(model: StoryMLLM, token, position, buffer: KVBuffer):
    hidden, buffer = model.llama.extend(model.llama.embed(token[:, None]), _chunk(position, 1), buffer)
    return hidden[:, 0], buffer


def _chunk(start, length: int) -> TokenChunk:
    """Facts of one row of plain tokens; kind and frame matter to policies only, and none is used here."""
    position = (start + jnp.arange(length, dtype=jnp.int32))[None]
    text = jnp.full_like(position, int(Kind.TEXT))
    return TokenChunk(position, position, text, jnp.zeros_like(position), jnp.full((1,), length, jnp.int32))
