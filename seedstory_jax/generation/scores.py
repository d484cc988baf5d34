"""Scores of slots, once a turn before eviction, for policies that rank by keys or by attention (`Policy.score`).

Keys are those that the buffer holds, rotated. Attention is that of the turn's own tokens: they are read once more, in
one chunk, against the buffer that holds them; so neither decoding nor its attention knows of scores. A mask of slots
serves all layers, hence every score is a mean over layers and heads; it moves with its slot through compaction.
"""

from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seedstory_jax.generation import decode
from seedstory_jax.models import kv_buffer
from seedstory_jax.models.attention import attend_and_weigh

KEY_SCORES = ("key_norm", "key_similarity")
ATTENTION_SCORES = ("last_attention", "turn_attention", "attention_mass")
SCORES = (*KEY_SCORES, *ATTENTION_SCORES)
"""What a policy may rank by:

- key_norm: the L2 norm of the slot's key.
- key_similarity: cosine between the key and the mean of all normalized keys held.
- last_attention: attention of the turn's last token, `</img>`.
- turn_attention: mean attention of the turn's tokens.
- attention_mass: attention summed over all tokens since the slot was filled; that of earlier turns counts less, by the
  policy's `decay` a turn.
"""


@decode.jitted(donate=(1,))
def score_keys(spec: decode.EngineSpec, state: decode.GenerationState) -> decode.GenerationState:
    """The state with the slots' scores of `spec.score`, one of KEY_SCORES."""
    buffer = state.buffer
    used = buffer.metadata.used
    rate = _norm if spec.score == "key_norm" else _similarity
    score = sum(rate(keys.astype(jnp.float32), used) for keys in buffer.k) / len(buffer.k)
    return _with_score(spec, state, jnp.where(used, score, 0.0))


def _norm(keys: Float[Array, "b k h s"], used: Bool[Array, "b s"]) -> Float[Array, "b s"]:
    return jnp.mean(jnp.linalg.norm(keys, axis=2), axis=1)


def _similarity(keys: Float[Array, "b k h s"], used: Bool[Array, "b s"]) -> Float[Array, "b s"]:
    held = used[:, None, None]
    direction = _unit(jnp.where(held, keys, 0.0))
    mean = jnp.sum(direction, axis=3, keepdims=True) / jnp.maximum(jnp.sum(held, axis=3, keepdims=True), 1)
    return jnp.mean(jnp.sum(direction * _unit(mean), axis=2), axis=1)


def _unit(x):
    return x / jnp.maximum(jnp.linalg.norm(x, axis=2, keepdims=True), 1e-12)


@decode.jitted(donate=(2,))
def score_attention(
    spec: decode.EngineSpec,
    parameters: dict,
    state: decode.GenerationState,
    ids: Int[Array, "b t"],
    count: Int[Array, " b"],
    features: Float[Array, "b q d"],
    active: Bool[Array, " b"],
    decay: Float[Array, ""],
) -> decode.GenerationState:
    """The state with the slots' scores of `spec.score`, one of ATTENTION_SCORES.

    The newest turn is the first `count[b]` ids of each row and the image of `features`; other rows stay as they are.
    """
    model, buffer = decode.model_of(spec, parameters), state.buffer
    text, image = model.llama.embed(ids), decode.embed_image(spec, model, features)
    place = jnp.arange(text.shape[1] + image.shape[1])[None, :]
    total = count[:, None] + image.shape[1]
    is_real = (place < total) & active[:, None]
    both = jnp.concatenate([text, image], axis=1)
    source = jnp.where(place < count[:, None], place, place - count[:, None] + text.shape[1])
    x = jnp.take_along_axis(both, jnp.minimum(source, both.shape[1] - 1)[..., None], axis=1)
    slot = jnp.clip(buffer.length[:, None] - total + place, 0, buffer.slots - 1)
    position = jnp.take_along_axis(buffer.position, slot, axis=1)
    mask = kv_buffer.visible(buffer.position, position) & is_real[..., None]
    asks = is_real & (place == total - 1) if spec.score == "last_attention" else is_real
    score = jnp.zeros(buffer.position.shape, jnp.float32)
    x = x.astype(model.llama.norm.dtype)
    for layer, keys, values in zip(model.llama.layers, buffer.k, buffer.v, strict=True):
        attended, weights = attend_and_weigh(layer.project(x, position)[0], keys, values, mask)
        x = layer.finish(x, attended)
        score += jnp.sum(jnp.mean(weights, axis=2) * asks[..., None], axis=1) / len(buffer.k)
    if spec.score == "turn_attention":
        score /= jnp.maximum(total, 1)
    elif spec.score == "attention_mass":
        score += decay * buffer.score
    return _with_score(spec, state, jnp.where(active[:, None], score, buffer.score))


def _with_score(spec, state, score):
    return decode.constrain_state(spec, replace(state, buffer=replace(state.buffer, score=score)))
