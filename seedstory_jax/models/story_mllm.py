"""The story model: LLaMA that reads images through one resampler and regresses the next image through another.

(Yang et al. 2024, section 3; the published `ContinuousLVLM`.) A row interleaves text and images; where an image is
read, its tokens' embeddings are replaced by the input resampler's rows; where one is to be predicted, the last hidden
states of its query tokens go through the output resampler and are compared with the image's true features.

Axis letters: b row, t token, s token read, i image of a row, q image query, d channel, v vocab.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from seedstory_jax.limits import Natural, NonNegative
from seedstory_jax.models.layer_stack import constrain
from seedstory_jax.models.llama import Llama, LlamaConfig
from seedstory_jax.models.llama_inference import InferenceLlama
from seedstory_jax.models.resampler import QwenResampler, ResamplerConfig

UNSUPERVISED = -100  # a label that asks for nothing


@dataclasses.dataclass(frozen=True)
class StoryMLLMConfig:
    """The defaults are SEED-Story's sizes.

    Attributes:
        lm_loss_scale, feature_loss_scale: weights of the two losses in the total.
        logits_chunk: tokens a row whose logits exist at once in training; 0 for all (128 KiB a token at full size).
    """

    llama: LlamaConfig = dataclasses.field(default_factory=LlamaConfig)
    input_resampler: ResamplerConfig = dataclasses.field(default_factory=lambda: ResamplerConfig(grid_size=8))
    output_resampler: ResamplerConfig = dataclasses.field(default_factory=lambda: ResamplerConfig(grid_size=16))
    lm_loss_scale: NonNegative = 1.0
    feature_loss_scale: NonNegative = 1.0
    logits_chunk: Natural = 0

    def __post_init__(self):
        width = self.llama.hidden_size
        if self.input_resampler.embed_dim != width:
            raise ValueError(f"input_resampler.embed_dim {self.input_resampler.embed_dim} is not LLaMA's width {width}")
        if self.output_resampler.kv_dim != width:
            raise ValueError(f"output_resampler.kv_dim {self.output_resampler.kv_dim} is not LLaMA's width {width}")

    @property
    def num_image_tokens(self) -> int:
        """Tokens that stand for one image in a row."""
        return self.input_resampler.grid_size**2


# The fields take any leaves (jax or numpy arrays, shapes, shardings, None): a batch is also a pytree of those.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StoryBatch:
    """Rows of interleaved text and images; integers are int32."""

    ids: Any  # [b t]
    labels: Any  # [b t] the id to be predicted *from* this position, or UNSUPERVISED
    position: Any  # [b t] rotary position
    segment: Any  # [b t] 0 is padding; a token sees its own segment only, so several samples share a row
    generated_block: Any  # [b t] 0 ordinary; j > 0: of the row's j-th block of queries, which only that block sees
    image_slot: Any  # [b t] -1, or i * num_image_tokens + q: the embedding is row q of the row's i-th image as read
    target_slot: Any  # [b t] -1, or i * num_image_tokens + q: the hidden state is query q that predicts image i
    image_features: Any  # [b i q d] true features of the row's images
    image_valid: Any  # [b i] False for padding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StoryLosses:
    """What the total is made of, and how much was supervised."""

    next_token_loss: Any  # mean cross entropy over supervised tokens, nats
    feature_regression_loss: Any  # mean of 1 - cosine over all tokens of all target images
    supervised_tokens: Any  # how many labels
    target_images: Any  # how many images to predict
    predicted_image_features: Any  # [b i q d], meaningful where `is_target`
    is_target: Any  # bool [b i]


class StoryMLLM(nnx.Module):
    """LLaMA between an input and an output resampler."""

    def __init__(self, config: StoryMLLMConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.llama = Llama(config.llama, rngs=rngs)
        self.input_resampler = QwenResampler(config.input_resampler, rngs=rngs)
        self.output_resampler = QwenResampler(config.output_resampler, rngs=rngs)

    def for_inference(self) -> "StoryMLLM":
        """The same model around an `InferenceLlama`, which decodes; itself if it has one already."""
        if isinstance(self.llama, InferenceLlama):
            return self
        model = nnx.merge(*nnx.split(self))
        model.llama = InferenceLlama(model.llama)
        model.config = dataclasses.replace(self.config, llama=model.llama.config)
        return model

    def embed_images(self, image_features: Float[Array, "b i q d"]) -> Float[Array, "b i n m"]:
        """Image features as the LLaMA reads them: num_image_tokens embeddings an image."""
        return _per_image(self.input_resampler, image_features)

    def predict_image_features(self, query_hidden: Float[Array, "b i n m"]) -> Float[Array, "b i q d"]:
        """Hidden states of an image's query tokens -> its predicted features."""
        return _per_image(self.output_resampler, query_hidden)

    def interleave(self, batch: StoryBatch) -> Float[Array, "b t d"]:
        """Embeddings of a batch: tokens, with images read where `image_slot` says so."""
        return self.interleave_images(self.llama.embed(batch.ids), batch.image_slot, batch.image_features)

    def interleave_images(
        self, embeddings: Float[Array, "b t m"], image_slot: Int[Array, "b t"], image_features: Float[Array, "b i q d"]
    ) -> Float[Array, "b t m"]:
        """`embeddings` with the images as read where `image_slot` says so.

        Replaced tokens send no gradient to the embedding table.
        """
        if image_features.shape[1] == 0:
            return embeddings
        images = self.embed_images(image_features)
        images = images.reshape(images.shape[0], -1, images.shape[-1]).astype(embeddings.dtype)
        read = jnp.take_along_axis(images, jnp.maximum(image_slot, 0)[..., None], axis=1)
        return constrain(jnp.where(image_slot[..., None] >= 0, read, embeddings), "btd")

    def hidden(self, batch: StoryBatch, *, dropout_key: Key[Array, ""] | None = None) -> Float[Array, "b t d"]:
        """The LLaMA's hidden states after its final norm, under the batch's visibility."""
        return self.llama(self.interleave(batch), batch.position, visibility(batch), dropout_key=dropout_key)

    def predict(
        self, batch: StoryBatch, *, dropout_key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b i q f"], Bool[Array, "b i"]]:
        """(hidden states, predicted features of every image, which images have queries in the row)."""
        hidden = self.hidden(batch, dropout_key=dropout_key)
        rows, count, *feature_shape = batch.image_features.shape
        if count == 0:
            return hidden, jnp.zeros((rows, 0, *feature_shape)), jnp.zeros((rows, 0), bool)
        tokens, width = self.config.num_image_tokens, hidden.shape[-1]
        # Scattered into [b, i * n]; tokens without a target go one past the end, and are dropped.
        slot = jnp.where(batch.target_slot >= 0, batch.target_slot, count * tokens)
        row = jnp.arange(rows)[:, None]
        queries = jnp.zeros((rows, count * tokens, width), hidden.dtype).at[row, slot].set(hidden, mode="drop")
        present = jnp.zeros((rows, count * tokens), bool).at[row, slot].set(True, mode="drop")
        is_target = present.reshape(rows, count, tokens).any(-1) & batch.image_valid
        return hidden, self.predict_image_features(queries.reshape(rows, count, tokens, width)), is_target


def visibility(batch: StoryBatch) -> Bool[Array, "b t s"]:
    """mask[b, t, s]: same segment, not later in the row, and s is ordinary or of t's own block of queries.

    So the tokens after an image never see the queries that predicted it, only the embedded image: what the rewind of
    generation does, in one row.
    """
    return attention_facts_mask(batch.segment, batch.generated_block)


def attention_facts_mask(segment: Int[Array, "b t"], generated_block: Int[Array, "b t"]) -> Bool[Array, "b t s"]:
    """`visibility` from its two facts."""
    length = segment.shape[1]
    earlier = jnp.tril(jnp.ones((length, length), bool))
    same = segment[:, :, None] == segment[:, None, :]
    block = generated_block[:, None, :]
    return earlier[None] & same & ((block == 0) | (block == generated_block[:, :, None]))


def story_losses(
    model: StoryMLLM,
    batch: StoryBatch,
    *,
    dropout_key: Key[Array, ""] | None = None,
    denominators: tuple[Any, Any] | None = None,
    true_features: Float[Array, "b i q f"] | None = None,
) -> tuple[Float[Array, ""], StoryLosses]:
    """Cross entropy of the supervised tokens plus cosine distance of the predicted images' features.

    Args:
        model: the story model.
        batch: its rows.
        dropout_key: turns LoRA's dropout on.
        denominators: (supervised tokens, target images) to divide by instead of this batch's own, so that the
            pieces of a large batch add up to its very loss.
        true_features: what is to be regressed, where the batch holds other features to be read (noisy ones, say).

    Returns:
        lm_loss_scale · next_token_loss + feature_loss_scale · feature_regression_loss, and its parts. A loss with
        nothing to supervise is 0.
    """
    hidden, predicted, is_target = model.predict(batch, dropout_key=dropout_key)
    supervised = batch.labels != UNSUPERVISED
    tokens, images = jnp.sum(supervised), jnp.sum(is_target)
    per_token, per_image = denominators if denominators is not None else (tokens, images)

    cross_entropy = _summed_cross_entropy(model, hidden, batch.labels, supervised)
    true = batch.image_features if true_features is None else true_features
    distance = cosine_distance(predicted, true, is_target[..., None])
    token_loss = cross_entropy / jnp.maximum(per_token, 1)
    feature_loss = jnp.sum(distance) / (jnp.maximum(per_image, 1) * max(distance.shape[-1], 1))
    total = model.config.lm_loss_scale * token_loss + model.config.feature_loss_scale * feature_loss
    return total, StoryLosses(token_loss, feature_loss, tokens, images, predicted, is_target)


def cosine_distance(
    predicted: Float[Array, "*b d"], true: Float[Array, "*b d"], where: Bool[Array, "..."] | bool = True
) -> Float[Array, "*b"]:
    """1 - cosine over the last axis in float32, without an eps as published; 0 where `where` is False.

    What is masked is replaced before the norms, so that rows of zeros poison neither the value nor the gradient.
    """
    where = jnp.broadcast_to(where, predicted.shape[:-1])
    a = jnp.where(where[..., None], predicted.astype(jnp.float32), 1.0)
    b = jnp.where(where[..., None], true.astype(jnp.float32), 1.0)
    norms = jnp.sqrt(jnp.sum(a * a, -1)) * jnp.sqrt(jnp.sum(b * b, -1))
    return jnp.where(where, 1.0 - jnp.sum(a * b, -1) / norms, 0.0)


def _summed_cross_entropy(model, hidden, labels, supervised):
    """Sum over supervised tokens of -log p(label); the logits of `logits_chunk` tokens a row exist at once."""

    def summed(hidden, labels, supervised):
        logits = model.llama.logits(hidden)
        label_logits = jnp.take_along_axis(logits, jnp.where(supervised, labels, 0)[..., None], axis=-1)[..., 0]
        return jnp.sum(jnp.where(supervised, jax.nn.logsumexp(logits, axis=-1) - label_logits, 0.0))

    length, chunk = labels.shape[1], model.config.logits_chunk
    if not chunk or chunk >= length:
        return summed(hidden, labels, supervised)
    pad = -length % chunk

    def chunks(x):  # [b t ...] -> [chunks b chunk ...]
        x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    step = jax.checkpoint(lambda total, piece: (total + summed(*piece), None), prevent_cse=False)
    return jax.lax.scan(step, jnp.float32(0), (chunks(hidden), chunks(labels), chunks(supervised)))[0]


def _per_image(resampler, images):
    rows, count = images.shape[:2]
    out = resampler(images.reshape(rows * count, *images.shape[2:]))
    return out.reshape(rows, count, *out.shape[1:])
