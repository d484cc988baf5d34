"""Renderer: image features to pixels by guided denoising in one compiled loop and VAE decoding, over all devices.

The features of a story's images are known before its pixels, so images are rendered in batches of one fixed size.
Number of steps, guidance scale and seed are arguments of the compiled function, not constants in it. An image's noise
depends on (seed, story, turn) alone, and every device works on the same number of images at a time whatever their
number: pixels do not depend on batch, order or device count.

Order of the work: image features -> `condition_on` -> `denoise` (`guided_step` by `guided_step`) -> `decode_images`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Shaped, UInt8

from seedstory_jax.generation.scheduler import (
    EulerSchedule,
    SchedulerConfig,
    euler_schedule,
    euler_step,
    scale_model_input,
)
from seedstory_jax.models.sdxl.detokenizer import Detokenizer
from seedstory_jax.models.sdxl.perceiver import Perceiver
from seedstory_jax.models.sdxl.unet import UNet
from seedstory_jax.models.sdxl.vae import VAE, decode_in_tiles

IMAGES = "images"  # the mesh axis
TILE_OVERLAP = 0.25  # of a tile's side


@dataclass(frozen=True)
class RenderConfig:
    """Settings of rendering; the defaults are the released ones.

    `batch_size`: images a device renders at a time. `decode_batch`: of these, how many the VAE decodes at a time.
    `tile`: side in latents of the VAE's tiles, 0 for the whole image. `steps` and `guidance` can be changed for each
    call without compiling again.
    """

    height: int = 1024
    width: int = 1024
    steps: int = 50
    guidance: float = 7.5
    batch_size: int = 8
    decode_batch: int = 1
    tile: int = 0
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)

    def __post_init__(self):
        if self.batch_size < 1 or self.decode_batch < 1:
            raise ValueError(f"batch_size {self.batch_size} and decode_batch {self.decode_batch} must be at least 1")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Condition:
    """Conditioning of the UNet, in place of text."""

    tokens: Shaped[Array, "b s d"]
    pooled: Shaped[Array, "b p"]


def condition_on(perceiver: Perceiver, features: Float[Array, "b q f"]) -> Condition:
    """Condition made of image features, true or regressed."""
    return Condition(*perceiver(features))


def zero_image_features(vit: nnx.Module, image_size: int) -> Float[Array, "1 q f"]:
    """Features of the image that guidance steers away from: all zero after normalisation, a mid-grey."""
    return vit(jnp.zeros((1, image_size, image_size, 3), jnp.float32))


def sampling_time_ids(batch: int, height: int, width: int) -> Float[Array, "b 6"]:
    """Time ids of an uncropped image: height, width, 0, 0, height, width, in pixels."""
    return jnp.broadcast_to(jnp.asarray([height, width, 0, 0, height, width], jnp.float32), (batch, 6))


def image_noise(
    seed: Shaped[Array, ""], story: Shaped[Array, "b"], turn: Shaped[Array, "b"], shape: tuple[int, ...]
) -> Float[Array, "b h w c"]:
    """Unit noise of `shape` an image, a function of (seed, story, turn) alone."""
    root = jax.random.key(seed, impl="threefry2x32")

    def one(story: Array, turn: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(root, story), turn), shape, jnp.float32)

    return jax.vmap(one)(story, turn)


def predict(
    unet: UNet,
    model_input: Float[Array, "b h w c"],
    timestep: Shaped[Array, ""],
    positive: Condition,
    negative: Condition | None,
    guidance: Shaped[Array, ""],
    time_ids: Shaped[Array, "b 6"],
) -> tuple[Float[Array, "b h w c"], Float[Array, "m h w c"]]:
    """(guided prediction, the UNet's raw rows).

    With a negative condition each image is two neighbouring rows, negative then positive, so that a batch split over
    devices stays where it is; the result is negative + guidance * (positive - negative). Without one, guidance is not
    used and the UNet does half the work.
    """
    batch = model_input.shape[0]
    if negative is None:
        timesteps = jnp.broadcast_to(timestep, (batch,))
        raw = unet(model_input, timesteps, positive.tokens, positive.pooled, time_ids)
        return raw, raw

    def pair(negative: Array, positive: Array) -> Array:
        rows = jnp.stack([jnp.broadcast_to(negative, positive.shape), positive], axis=1)
        return rows.reshape(2 * batch, *positive.shape[1:])

    raw = unet(
        pair(model_input, model_input),
        jnp.broadcast_to(timestep, (2 * batch,)),
        pair(negative.tokens, positive.tokens),
        pair(negative.pooled, positive.pooled),
        pair(time_ids, time_ids),
    )
    away, towards = jnp.moveaxis(raw.reshape(batch, 2, *raw.shape[1:]), 1, 0)
    return away + guidance * (towards - away), raw


def guided_step(
    unet: UNet,
    scheduler: SchedulerConfig,
    schedule: EulerSchedule,
    step: Shaped[Array, ""],
    latents: Float[Array, "b h w c"],
    positive: Condition,
    negative: Condition | None,
    guidance: Shaped[Array, ""],
    time_ids: Shaped[Array, "b 6"],
) -> tuple[Float[Array, "b h w c"], Float[Array, "m h w c"]]:
    """Step `step` of the schedule: latents (float32) at its noise level -> (at the next, the UNet's raw rows)."""
    sigma, next_sigma = jnp.asarray(schedule.sigmas)[step], jnp.asarray(schedule.sigmas)[step + 1]
    timestep = jnp.asarray(schedule.timesteps)[step]
    model_input = scale_model_input(latents, sigma)
    prediction, raw = predict(unet, model_input, timestep, positive, negative, guidance, time_ids)
    return euler_step(scheduler, prediction, latents, sigma, next_sigma), raw


def denoise(
    unet: UNet,
    scheduler: SchedulerConfig,
    schedule: EulerSchedule,
    noise: Float[Array, "b h w c"],
    positive: Condition,
    negative: Condition | None,
    guidance: Shaped[Array, ""],
    time_ids: Shaped[Array, "b 6"],
) -> Float[Array, "b h w c"]:
    """Unit noise -> latents as the UNet sees them, by all of the schedule's steps in one loop of dynamic length."""

    def body(step: Array, latents: Array) -> Array:
        return guided_step(unet, scheduler, schedule, step, latents, positive, negative, guidance, time_ids)[0]

    return jax.lax.fori_loop(0, schedule.steps, body, noise * schedule.initial_sigma)


def decode_images(
    vae: VAE, latents: Float[Array, "b hl wl c"], *, decode_batch: int = 1, tile: int = 0
) -> UInt8[Array, "b h w 3"]:
    """Latents as the UNet sees them -> images; `decode_batch` at a time (rounded down to a divisor of b)."""
    count = math.gcd(latents.shape[0], decode_batch)

    def decode(part: Array) -> Array:
        unscaled = vae.unscale(part)
        if tile:
            return to_pixels(decode_in_tiles(vae, unscaled, tile, int(tile * TILE_OVERLAP)))
        return to_pixels(vae.decode(unscaled))

    parts = jax.lax.map(decode, latents.reshape(-1, count, *latents.shape[1:]))
    return parts.reshape(-1, *parts.shape[2:])


def to_pixels(images: Float[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
    """[-1, 1] -> 0 to 255, clamped and rounded."""
    return jnp.round(jnp.clip(images * 0.5 + 0.5, 0.0, 1.0) * 255.0).astype(jnp.uint8)


@dataclass(frozen=True)
class ImageBatch:
    """Images of one batch: rows `start` to `start + len(images)` of what was asked for. uint8 [n h w 3]."""

    start: int
    images: np.ndarray


class Renderer:
    """Renders images from features on all devices; compiles once with guidance, and once without if that is asked for.

    Example:
        renderer = Renderer(detokenizer, vae, zero_image_features(vit, 448), RenderConfig())
        images = renderer.render(features, story=[0, 0, 0], turn=[1, 2, 3], seed=7)
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        vae: VAE,
        negative_features: Float[Array, "1 q f"] | None,
        config: RenderConfig,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Puts the weights on every device and computes the negative condition, once.

        Args:
            detokenizer: UNet and perceiver; computes in its config's dtype, from weights as they are.
            vae: decodes in its config's dtype; leave it float32.
            negative_features: `zero_image_features(vit, ...)`; None allows guidance 1 only.
            config: sizes and defaults.
            devices: all of them by default.

        Raises ValueError if the image's sides are no multiples of what UNet and VAE need.
        """
        multiple = detokenizer.config.unet.downscale * vae.config.downscale
        if config.height % multiple or config.width % multiple:
            raise ValueError(f"{config.height} x {config.width} pixels: both sides must be multiples of {multiple}")
        self.config = config
        devices = list(jax.devices() if devices is None else devices)
        self.mesh = Mesh(np.array(devices), (IMAGES,), axis_types=(AxisType.Auto,))
        self.latent_shape = (
            config.height // vae.config.downscale,
            config.width // vae.config.downscale,
            detokenizer.config.unet.in_channels,
        )
        everywhere = NamedSharding(self.mesh, P())
        unet_graph, unet_state = nnx.split(detokenizer.unet)
        perceiver_graph, perceiver_state = nnx.split(detokenizer.perceiver)
        vae_graph, vae_state = nnx.split(vae)
        self._weights = jax.device_put((unet_state, perceiver_state), everywhere)
        self._vae_weights = jax.device_put(vae_state, everywhere)

        @jax.jit
        def negative_condition(state: Any, features: Array) -> Condition:
            return condition_on(nnx.merge(perceiver_graph, state), features)

        self._negative = None
        if negative_features is not None:
            self._negative = negative_condition(self._weights[1], jax.device_put(negative_features, everywhere))

        def denoise_features(
            weights: Any,
            features: Array,
            story: Array,
            turn: Array,
            seed: Array,
            schedule: EulerSchedule,
            guidance: Array,
            negative: Condition | None,
        ) -> Array:
            unet, perceiver = nnx.merge(unet_graph, weights[0]), nnx.merge(perceiver_graph, weights[1])
            noise = image_noise(seed, story, turn, self.latent_shape)
            time_ids = sampling_time_ids(noise.shape[0], config.height, config.width)
            positive = condition_on(perceiver, features)
            return denoise(unet, config.scheduler, schedule, noise, positive, negative, guidance, time_ids)

        def decode(state: Any, latents: Array) -> Array:
            vae = nnx.merge(vae_graph, state)
            return decode_images(vae, latents, decode_batch=config.decode_batch, tile=config.tile)

        rows = P(IMAGES)
        self._denoise = self._on_every_device(denoise_features, (P(), rows, rows, rows, P(), P(), P(), P()))
        self._decode = self._on_every_device(decode, (P(), rows))

    def _on_every_device(self, function: Callable[..., Array], in_specs: tuple[P, ...]) -> Callable[..., Array]:
        """The function jitted, each device with its rows; nothing is exchanged between devices."""
        mapped = jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=P(IMAGES), check_vma=False)
        return jax.jit(mapped)

    @property
    def images_per_call(self) -> int:
        """Images that all devices together render at a time; other numbers are padded."""
        return self.config.batch_size * self.mesh.size

    def render(
        self,
        features: Float[Array | np.ndarray, "n q f"],
        story: Sequence[int] | np.ndarray,
        turn: Sequence[int] | np.ndarray,
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | int | None = None,
    ) -> UInt8[np.ndarray, "n h w 3"]:
        """Images of features, in their order; see `stream`."""
        parts = [part.images for part in self.stream(features, story, turn, seed=seed, steps=steps, guidance=guidance)]
        if not parts:
            return np.zeros((0, self.config.height, self.config.width, 3), np.uint8)
        return np.concatenate(parts)

    def stream(
        self,
        features: Float[Array | np.ndarray, "n q f"],
        story: Sequence[int] | np.ndarray,
        turn: Sequence[int] | np.ndarray,
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | int | None = None,
    ) -> Iterator[ImageBatch]:
        """Renders in batches and yields each as soon as it is there, while the devices work on the next.

        Args:
            features: image features, one set an image.
            story: which story each image belongs to, and
            turn: its turn there; both only choose the noise.
            seed: chooses the noise too.
            steps: denoising steps; None for the config's.
            guidance: guidance scale; None for the config's; 1 leaves the negative half out.

        Raises ValueError if the lengths differ, or guidance is asked for without negative features.
        """
        features, story, turn = np.asarray(features), np.asarray(story, np.int32), np.asarray(turn, np.int32)
        if not len(features) == len(story) == len(turn):
            raise ValueError(f"{len(features)} features for {len(story)} stories and {len(turn)} turn numbers")
        guidance = self.config.guidance if guidance is None else guidance
        if guidance != 1 and self._negative is None:
            raise ValueError(f"guidance {guidance} needs negative_features (see zero_image_features); without, use 1")
        schedule = euler_schedule(self.config.scheduler, self.config.steps if steps is None else steps)
        arguments = (
            np.asarray(seed % 2**32, np.uint32),
            schedule,
            np.asarray(guidance, np.float32),
            None if guidance == 1 else self._negative,
        )

        def fetched(start: int, rendered: Array) -> ImageBatch:
            # Cut on the host: on the device each length would be a program of its own.
            return ImageBatch(start, np.asarray(rendered)[: len(features) - start])

        waiting: tuple[int, Array] | None = None
        size = self.images_per_call
        for start in range(0, len(features), size):
            rows = [_filled(x[start : start + size], size) for x in (features, story, turn)]
            latents = self._denoise(self._weights, *rows, *arguments)
            rendered = self._decode(self._vae_weights, latents)
            if waiting is not None:
                yield fetched(*waiting)
            waiting = (start, rendered)
        if waiting is not None:
            yield fetched(*waiting)


def _filled(x: np.ndarray, size: int) -> np.ndarray:
    """Rows padded to a batch with copies of the last; what is rendered from the copies is dropped."""
    return x if len(x) == size else np.concatenate([x, np.repeat(x[-1:], size - len(x), axis=0)])
