"""Noise levels: how much noise each training timestep holds, how it is mixed in, and what the model is to predict.

DDPM (Ho et al. 2020, arXiv 2006.11239); the defaults are SD-XL base's published scheduler settings. Taking the noise
out again is `seedstory_jax.generation.scheduler`.
"""

import functools
from dataclasses import dataclass
from typing import Annotated

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from seedstory_jax.limits import Limit, Natural, OneOf, Positive

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "trailing", "linspace")
SCHEDULES = ("scaled_linear", "linear")
Beta = Annotated[float, Limit(above=0, below=1)]


@dataclass(frozen=True)
class SchedulerConfig:
    """Noise schedule under its published names; what the model predicts; how sampling steps are spaced."""

    num_train_timesteps: Positive = 1000  # levels of noise in training
    beta_start: Beta = 0.00085  # variance of the noise added at the first level
    beta_end: Beta = 0.012  # variance of the noise added at the last level
    # How the variances run from first to last: "scaled_linear" (linear in their square roots) or "linear".
    beta_schedule: Annotated[str, OneOf(SCHEDULES)] = "scaled_linear"
    # What the UNet predicts: the noise ("epsilon"), the picture ("sample"), or the mix "v_prediction".
    prediction_type: Annotated[str, OneOf(PREDICTION_TYPES)] = "epsilon"
    timestep_spacing: Annotated[str, OneOf(SPACINGS)] = "leading"  # which levels fewer sampling steps take
    steps_offset: Natural = 1  # added to each level of "leading" spacing

    def __post_init__(self):
        for name, known in (
            ("prediction_type", PREDICTION_TYPES),
            ("timestep_spacing", SPACINGS),
            ("beta_schedule", SCHEDULES),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown; choose one of {', '.join(known)}")


@functools.cache
def _alphas_cumprod(config: SchedulerConfig) -> np.ndarray:
    power = 2 if config.beta_schedule == "scaled_linear" else 1
    start, end = config.beta_start ** (1 / power), config.beta_end ** (1 / power)
    betas = np.linspace(start, end, config.num_train_timesteps, dtype=np.float32) ** power
    # float32 factors, multiplied up in float64 as torch does: the last shares are small, and sigma divides by them.
    table = np.cumprod(1 - betas, dtype=np.float64).astype(np.float32)
    table.flags.writeable = False
    return table


def alphas_cumprod(config: SchedulerConfig) -> np.ndarray:
    """Share of the signal's variance left at each training timestep, float32 [num_train_timesteps]."""
    return _alphas_cumprod(config)


def _at_timesteps(config: SchedulerConfig, timesteps: Array, like: Array) -> tuple[Array, Array]:
    """Square roots of signal's and noise's share, shaped to multiply `like`."""
    share = jnp.asarray(alphas_cumprod(config))[timesteps].reshape(-1, *(1,) * (like.ndim - 1))
    return jnp.sqrt(share), jnp.sqrt(1 - share)


def add_noise(
    config: SchedulerConfig, clean: Float[Array, "b *x"], noise: Float[Array, "b *x"], timesteps: Int[Array, "b"]
) -> Float[Array, "b *x"]:
    """DDPM: sqrt(a) clean + sqrt(1 - a) noise, with a = alphas_cumprod at each row's timestep."""
    signal, spread = _at_timesteps(config, timesteps, clean)
    return signal * clean + spread * noise


def training_target(
    config: SchedulerConfig, clean: Float[Array, "b *x"], noise: Float[Array, "b *x"], timesteps: Int[Array, "b"]
) -> Float[Array, "b *x"]:
    """What the model is to predict from `add_noise(...)`: the noise, the velocity, or the clean sample."""
    if config.prediction_type == "epsilon":
        return noise
    if config.prediction_type == "sample":
        return clean
    signal, spread = _at_timesteps(config, timesteps, clean)
    return signal * noise - spread * clean
