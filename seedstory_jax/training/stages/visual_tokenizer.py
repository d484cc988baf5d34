"""Stage `tokenizer`, which only the toy needs: a VAE and a ViT from nothing, where users bring pretrained ones.

First the VAE learns to rebuild pictures, starting from the principal components of their patches (its linear path).
Then the ViT learns features from which a light head rebuilds the frozen VAE's latents and names the caption's words:
what a feature must carry so that a de-tokenizer can draw it and a language model can follow it.
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

from seedstory_jax.checkpoints.parts import build, random_parameters, trainable_names
from seedstory_jax.config import Config
from seedstory_jax.distributed import on_host
from seedstory_jax.features.run_data import RunData
from seedstory_jax.models.parameters import Parameters, initial_parameters, split_module, with_prefix
from seedstory_jax.models.resampler import QwenResampler, ResamplerConfig
from seedstory_jax.models.sdxl.vae import sample_latents, to_patches
from seedstory_jax.training.loop import ALL_ROWS, Stage
from seedstory_jax.training.preview_images import write_grid

PATCH_SAMPLE = 1000  # pictures that the principal components are taken from
INITIAL_LOGVAR = -8.0  # of the latents: sharp at first, the KL term widens it
PREVIEW_PICTURES = 8


def vae_stage(config: Config, run_data: RunData) -> Stage:
    """The VAE alone: mean squared error of rebuilt pictures plus a light KL term."""
    stage = config.tokenizer
    transform = run_data.pixel_transform
    pictures = run_data.pictures(transform)
    parameters = random_parameters(config.model, "vae", config.seed)
    if config.model.vae.linear_skip:
        parameters |= principal_components(config, parameters, transform.normalise(pictures[:: _every(pictures)]))

    def loss(parameters, images, key):
        vae = build(config.model, "vae", parameters)
        mean, logvar = vae.encode(images)
        noise = jax.random.normal(key, mean.shape)
        rebuilt = jnp.mean(jnp.square(vae.decode(sample_latents(mean, logvar, noise)) - images))
        kl = 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)
        return rebuilt + stage.kl_weight * kl, {"reconstruction_loss": rebuilt, "kl": kl}

    def batch(step: int, here: Any = ALL_ROWS):
        chosen = _draw(config.seed, step, len(pictures), stage.vae_batch_size)[here]
        return transform.normalise(pictures[chosen])

    @jax.jit
    def rebuild(parameters, images):
        vae = build(config.model, "vae", parameters)
        return vae.decode(vae.encode(images)[0])

    shown = transform.normalise(pictures[:: len(pictures) // PREVIEW_PICTURES][:PREVIEW_PICTURES])

    def preview(parameters: Parameters, step: int, folder: Path) -> None:
        write_grid(folder, step, [shown, np.asarray(rebuild(on_host(parameters), shown))])

    return Stage(
        name="tokenizer_vae",
        config=stage,
        optimizer=stage.vae_optimizer,
        steps=stage.vae_steps,
        parameters=parameters,
        trainable=trainable_names("vae", "all"),
        loss=loss,
        batch=batch,
        batch_size=stage.vae_batch_size,
        preview=preview,
    )


def principal_components(config: Config, parameters: Parameters, images: np.ndarray) -> Parameters:
    """The VAE's start: its linear path as the principal components of patches, its convolutions silent.

    Latents are scaled alike, to unit variance overall, so that an error in them counts as it does in pixels.
    """
    vae = config.model.vae
    patches = np.asarray(to_patches(jnp.asarray(images), vae.downscale)).reshape(-1, vae.downscale**2 * 3)
    mean = patches.mean(0)
    variance, axes = np.linalg.eigh(np.cov(patches - mean, rowvar=False))
    axes = axes[:, ::-1][:, : vae.latent_channels]
    scale = np.sqrt(variance[::-1][: vae.latent_channels].mean()).astype(np.float32)
    channels = vae.latent_channels
    return {
        "vae.skip_encode.kernel": jnp.asarray(axes / scale, jnp.float32),
        "vae.skip_encode.bias": jnp.asarray(-mean @ axes / scale, jnp.float32),
        "vae.skip_decode.kernel": jnp.asarray(axes.T * scale, jnp.float32),
        "vae.skip_decode.bias": jnp.asarray(mean, jnp.float32),
        "vae.decoder.conv_out.kernel": jnp.zeros_like(parameters["vae.decoder.conv_out.kernel"]),
        "vae.quant_conv.kernel": jnp.zeros_like(parameters["vae.quant_conv.kernel"]),
        "vae.quant_conv.bias": jnp.zeros(2 * channels).at[channels:].set(INITIAL_LOGVAR),
    }


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


def vit_stage(config: Config, run_data: RunData, vae: Parameters) -> Stage:
    """The ViT on the frozen VAE's latents and the captions' words."""
    stage = config.tokenizer
    transform = run_data.vit_transform
    pictures, moments = run_data.pictures(transform), run_data.rows("moments", vae)
    channels = config.model.vae.latent_channels
    words = caption_words(run_data)
    make_head = partial(FeatureHead, config, words.shape[1])
    head_blueprint, _ = split_module(nnx.eval_shape(lambda: make_head(rngs=nnx.Rngs(0))))
    head = initial_parameters(lambda rngs: make_head(rngs=rngs), jax.random.key(config.seed))
    parameters = random_parameters(config.model, "vit", config.seed) | with_prefix("head", head)
    vit_trains = trainable_names("vit", stage.trainable)

    def predict(parameters, images):
        features = build(config.model, "vit", parameters)(images)
        return head_blueprint.build({n: parameters[f"head.{n}"] for n in head_blueprint.names})(features)

    def loss(parameters, batch, key):
        latents, logits = predict(parameters, batch["images"])
        latent_loss = jnp.mean(jnp.square(latents - batch["latents"]))
        word_loss = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, batch["words"]))
        return latent_loss + stage.words_weight * word_loss, {"latent_loss": latent_loss, "word_loss": word_loss}

    def batch(step: int, here: Any = ALL_ROWS) -> Mapping[str, np.ndarray]:
        chosen = _draw(config.seed, step, len(pictures), stage.batch_size)[here]
        return {
            "images": transform.normalise(pictures[chosen]),
            "latents": moments.read(chosen)[..., :channels].astype(np.float32),
            "words": words[chosen].astype(np.float32),
        }

    @jax.jit
    def redraw(parameters, vae_parameters, images):
        return build(config.model, "vae", vae_parameters).decode(predict(parameters, images)[0])

    shown = pictures[:: len(pictures) // PREVIEW_PICTURES][:PREVIEW_PICTURES]

    def preview(parameters: Parameters, step: int, folder: Path) -> None:
        drawn = redraw(on_host(parameters), on_host(vae), transform.normalise(shown))
        write_grid(folder, step, [shown, np.asarray(drawn)])

    return Stage(
        name="tokenizer_vit",
        config=stage,
        optimizer=stage.optimizer,
        steps=stage.steps,
        parameters=parameters,
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


def _draw(seed: int, step: int, count: int, size: int) -> np.ndarray:
    """Which pictures a step sees: a function of seed and step alone, sorted for the memory map."""
    return np.sort(np.random.default_rng([seed, step]).integers(count, size=size))


def _every(pictures: np.ndarray) -> int:
    return max(1, len(pictures) // PATCH_SAMPLE)
