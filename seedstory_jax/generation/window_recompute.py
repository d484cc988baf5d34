"""Baseline: re-prefill the window every turn, as the released scripts do.

One program more than the other policies take, and rows of tokens that the host puts together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from seedstory_jax.generation import decode
from seedstory_jax.models import kv_buffer
from seedstory_jax.models.kv_buffer import Kind, TokenChunk


@dataclass(frozen=True)
class WindowTurn:
    """One turn of a window that is prefilled again."""

    turn: int  # its number
    story_index: int  # of its first token in the whole story
    ids: tuple[int, ...]  # its caption's, with whatever precedes it
    features: np.ndarray  # [q d]


@decode.jitted(donate=(2,))
def recompute_window(
    spec: decode.EngineSpec,
    parameters: dict,
    state: decode.GenerationState,
    ids: Int[Array, "b t"],
    image_slot: Int[Array, "b t"],
    metadata: dict[str, Int[Array, "b t"]],
    count: Int[Array, " b"],
    features: Float[Array, "b i q d"],
) -> decode.GenerationState:
    """Empties the stories where `count` > 0 and prefills that many tokens, images where `image_slot` >= 0.

    `metadata` holds their kind, turn and story_index; positions start again at 0, unless they are absolute.
    """
    model = decode.model_of(spec, parameters)
    images = model.embed_images(features)
    images = images.reshape(images.shape[0], -1, images.shape[-1])
    embeddings = model.llama.embed(ids)
    read = jnp.take_along_axis(images, jnp.maximum(image_slot, 0)[..., None], axis=1)
    embeddings = jnp.where(image_slot[..., None] >= 0, read.astype(embeddings.dtype), embeddings)
    buffer = kv_buffer.rewind(state.buffer, jnp.where(count > 0, 0, state.buffer.length))
    step = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    position = metadata["story_index"] if spec.positions == "absolute" else step
    turn = state.turn + (count > 0)
    chunk = TokenChunk(position=position, count=count, **metadata)
    state, _ = decode.append_chunk(spec, model, replace(state, buffer=buffer), embeddings, chunk)
    return replace(state, turn=turn)


def window_chunk(
    tokens: decode.SpecialTokens,
    window: int,
    turn_tokens: int,
    windows: Sequence[Sequence[WindowTurn]],
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Arguments (ids, image_slot, metadata, count, features) of `recompute_window`, from each story's turns.

    A story with no turns stays as it is. `window` images of at most `turn_tokens` tokens each fix the program's shape.
    """
    image = (tokens.boi, *tokens.image, tokens.eoi)
    image_kinds = [Kind.BOI] + [Kind.QUERY] * len(tokens.image) + [Kind.EOI]
    shape = (len(windows), 1 + window * turn_tokens)
    ids, image_slot = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
    metadata = {name: np.zeros(shape, np.int32) for name in ("story_index", "kind", "turn")}
    count = np.zeros(len(windows), np.int32)
    feature_shape = next(one.features.shape for row in windows for one in row)
    features = np.zeros((len(windows), window, *feature_shape), np.float32)
    for i, row in enumerate(windows):
        for number, one in enumerate(row):
            start, text = count[i], len(one.ids)
            stop = start + text + len(image)
            at = np.s_[i, start:stop]
            ids[at] = one.ids + image
            metadata["turn"][at] = one.turn
            metadata["story_index"][at] = one.story_index + np.arange(stop - start)
            metadata["kind"][at] = [Kind.BOS if token == tokens.bos else Kind.TEXT for token in one.ids] + image_kinds
            image_slot[i, start + text + 1 : stop - 1] = number * len(tokens.image) + np.arange(len(tokens.image))
            features[i, number] = one.features
            count[i] = stop
    return ids, image_slot, metadata, count, features
