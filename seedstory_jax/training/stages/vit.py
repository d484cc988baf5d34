"""Stage `vit`, for models that begin with nothing: images to features.

Users bring Qwen-VL's pretrained ViT. The toy's learns features from which a light head rebuilds the frozen VAE's
latents and names the caption's words: what a de-tokenizer needs to render and a language model to follow.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from seedstory_jax.checkpoints.parts import build
from seedstory_jax.config import Config
from seedstory_jax.data.pipeline import ALL_ROWS
from seedstory_jax.distributed import on_host
from seedstory_jax.features.run_data import RunData
from seedstory_jax.models.parameters import Parameters, initial_parameters, split_module, with_prefix
from seedstory_jax.models.resampler import QwenResampler, ResamplerConfig
from seedstory_jax.training.preview_images import PREVIEW_IMAGES, write_grid
from seedstory_jax.training.stage import Stage, StageSpec
from seedstory_jax.training.stages.vae import chosen_images
from seedstory_jax.training.trainable import trainable_names


class FeatureHead(nnx.Module):
    """What the ViT is trained through, and thrown away after: features -> latents, and the caption's words."""

    def __init__(self, config: Config, words: int, *, rngs: nnx.Rngs):
        model, width = config.model, config.model.vit.output_dim
        side = model.image_size // model.vae.downscale
        self.latent_shape = (side, side, model.vae.latent_channels)
        self.spread = QwenResampler(
            ResamplerConfig(grid_size=side, embed_dim=width, num_heads=4, kv_dim=width), rngs=rngs
        )
        self.hidden = nnx.Linear(width, 4 * width, rngs=rngs)
        self.latents = nnx.Linear(4 * width, model.vae.latent_channels, rngs=rngs)
        self.words = nnx.Linear(width, words, rngs=rngs)

    def __call__(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """features [b q d] -> latents [b h w c], logits [b words]."""
        latents = self.latents(jax.nn.gelu(self.hidden(self.spread(features))))
        return latents.reshape(-1, *self.latent_shape), self.words(features.mean(axis=1))


def vit_stage(config: Config, run_data: RunData, parameters: Parameters) -> Stage:
    """The ViT on the frozen VAE's latents and the captions' words."""
    stage = config.vit
    transform = run_data.vit_transform
    pictures, moments = run_data.pictures(transform), run_data.encodings("moments", parameters)
    channels = config.model.vae.latent_channels
    words = caption_words(run_data)
    make_head = partial(FeatureHead, config, words.shape[1])
    head_blueprint, _ = split_module(nnx.eval_shape(lambda: make_head(rngs=nnx.Rngs(0))))
    head = initial_parameters(lambda rngs: make_head(rngs=rngs), jax.random.key(config.seed))
    vae = {name: value for name, value in parameters.items() if name.startswith("vae.")}
    own = {name: value for name, value in parameters.items() if name.startswith("vit.")} | with_prefix("head", head)
    vit_trains = trainable_names("vit", stage.trainable)

    def predict(parameters, images):
        features = build(config.model, "vit", parameters)(images)
        return head_blueprint.build({n: parameters[f"head.{n}"] for n in head_blueprint.names})(features)

    def loss(parameters, batch, key):
        latents, logits = predict(parameters, batch["images"])
        target = moments.values(parameters, batch["moments"])[..., :channels]
        latent_loss = jnp.mean(jnp.square(latents - target))
        word_loss = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, batch["words"]))
        return latent_loss + stage.words_weight * word_loss, {"latent_loss": latent_loss, "word_loss": word_loss}

    def batch(step: int, here: Any = ALL_ROWS) -> Mapping[str, np.ndarray]:
        chosen = chosen_images(config.seed, step, len(pictures), stage.batch_size)[here]
        return {
            "images": transform.normalise(pictures[chosen]),
            "moments": moments.read(chosen),
            "words": words[chosen].astype(np.float32),
        }

    @jax.jit
    def redraw(parameters, vae_parameters, images):
        return build(config.model, "vae", vae_parameters).decode(predict(parameters, images)[0])

    shown = pictures[:: len(pictures) // PREVIEW_IMAGES][:PREVIEW_IMAGES]

    def preview(parameters: Parameters, step: int, folder: Path) -> None:
        drawn = redraw(on_host(parameters), on_host(vae), transform.normalise(shown))
        write_grid(folder, step, [shown, np.asarray(drawn)])

    return Stage(
        name="vit",
        config=stage,
        parameters={**own, **moments.weights},
        trainable=lambda name: vit_trains(name) or (name.startswith("head.") and not name.endswith("pos_embed")),
        loss=loss,
        batch=batch,
        batch_size=stage.batch_size,
        preview=preview,
    )


def caption_words(run_data: RunData) -> np.ndarray:
    """bool [pictures, vocabulary]: which tokens each caption holds; tokens that no caption holds have no column."""
    rows = [run_data.tokenizer.first_turn(caption) for caption in run_data.train.captions()]
    used = sorted({token for row in rows for token in row})
    column = {token: place for place, token in enumerate(used)}
    words = np.zeros((len(rows), len(used)), bool)
    for place, row in enumerate(rows):
        words[place, [column[token] for token in row]] = True
    return words


SPEC = StageSpec(
    name="vit",
    summary="Images to features from which latents and words can be read; only for models that begin with nothing.",
    trains="vit",
    make=vit_stage,
    encoders=("vae",),
)
