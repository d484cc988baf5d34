"""The baseline: forget everything and read the window again, as the published scripts do for every sequence.

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
class Told:
    """One sequence that is to be read again."""

    frame: int
    index: int  # of its first token in the whole story
    ids: tuple[int, ...]  # its caption's, with whatever precedes it
    features: np.ndarray  # [q d]


@decode.program(donate=(2,))
def recompute_window(
    shape: decode.Shape,
    parameters: dict,
    telling: decode.Telling,
    ids: Int[Array, "b t"],
    image_slot: Int[Array, "b t"],
    facts: dict[str, Int[Array, "b t"]],
    count: Int[Array, " b"],
    features: Float[Array, "b i q d"],
) -> decode.Telling:
    """Forgets the stories where `count` > 0 and reads that many tokens anew, images where `image_slot` >= 0.

    `facts` holds their kind, frame and index; by slot, positions start again at 0.
    """
    model = decode.model_of(shape, parameters)
    images = model.read_images(features)
    images = images.reshape(images.shape[0], -1, images.shape[-1])
    embeddings = model.llama.embed(ids)
    read = jnp.take_along_axis(images, jnp.maximum(image_slot, 0)[..., None], axis=1)
    embeddings = jnp.where(image_slot[..., None] >= 0, read.astype(embeddings.dtype), embeddings)
    buffer = kv_buffer.rewind(telling.buffer, jnp.where(count > 0, 0, telling.buffer.length))
    step = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    position = step if shape.positions == "slot" else facts["index"]
    told = telling.frame + (count > 0)
    telling, _ = decode.append(
        shape, model, replace(telling, buffer=buffer), embeddings, TokenChunk(position=position, count=count, **facts)
    )
    return replace(telling, frame=told)


def window_chunk(
    tokens: decode.SpecialTokens,
    window: int,
    sequence_tokens: int,
    told: Sequence[Sequence[Told]],
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """The arguments (ids, image_slot, facts, count, features) of `recompute_window`; an empty list changes nothing.

    `window` images of at most `sequence_tokens` tokens each fix the program's shape.
    """
    image = (tokens.boi, *tokens.image, tokens.eoi)
    image_kinds = [Kind.BOI] + [Kind.QUERY] * len(tokens.image) + [Kind.EOI]
    shape = (len(told), 1 + window * sequence_tokens)
    ids, image_slot = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
    facts = {name: np.zeros(shape, np.int32) for name in ("index", "kind", "frame")}
    count = np.zeros(len(told), np.int32)
    feature_shape = next(one.features.shape for row in told for one in row)
    features = np.zeros((len(told), window, *feature_shape), np.float32)
    for i, row in enumerate(told):
        for number, one in enumerate(row):
            start, text = count[i], len(one.ids)
            stop = start + text + len(image)
            at = np.s_[i, start:stop]
            ids[at] = one.ids + image
            facts["frame"][at] = one.frame
            facts["index"][at] = one.index + np.arange(stop - start)
            facts["kind"][at] = [Kind.BOS if token == tokens.bos else Kind.TEXT for token in one.ids] + image_kinds
            image_slot[i, start + text + 1 : stop - 1] = number * len(tokens.image) + np.arange(len(tokens.image))
            features[i, number] = one.features
            count[i] = stop
    return ids, image_slot, facts, count, features
