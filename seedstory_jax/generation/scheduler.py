"""Taking noise out: Euler's method along the noise levels.

Karras et al. 2022 (arXiv 2206.00364), algorithm 2 without churn, on the levels of the training schedule
(`seedstory_jax.models.sdxl.noise_schedule`, whose names can be had from here too). The tables are made on the host and
padded to one length, so that the number of steps is data: a compiled loop serves every number.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from seedstory_jax.models.sdxl.noise_schedule import SchedulerConfig, add_noise, alphas_cumprod, training_target

__all__ = [
    "EulerSchedule",
    "SchedulerConfig",
    "add_noise",
    "alphas_cumprod",
    "euler_schedule",
    "euler_step",
    "predicted_original",
    "scale_model_input",
    "training_target",
]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EulerSchedule:
    """The noise levels of one sampling run, padded to `num_train_timesteps`, and how many of them count.

    `timesteps` float32 [n]: the model's time input at each step. `sigmas` float32 [n + 1]: noise per unit of signal
    before each step, and 0 after the last. `initial_sigma`: factor on unit noise to begin with. `steps`: int32.
    """

    timesteps: Shaped[Array | np.ndarray, "n"]
    sigmas: Shaped[Array | np.ndarray, "m"]
    initial_sigma: Shaped[Array | np.ndarray, ""]
    steps: Shaped[Array | np.ndarray, ""]


def euler_schedule(config: SchedulerConfig, steps: int) -> EulerSchedule:
    """The levels for `steps` sampling steps, on the host (numpy).

    Raises ValueError unless 1 <= steps <= num_train_timesteps.
    """
    total = config.num_train_timesteps
    if not 1 <= steps <= total:
        raise ValueError(f"{steps} sampling steps; must be 1 to {total}, the number of training timesteps")
    if config.timestep_spacing == "leading":
        chosen = (np.arange(steps) * (total // steps))[::-1].astype(np.float32) + config.steps_offset
    elif config.timestep_spacing == "trailing":
        chosen = np.round(total - np.arange(steps) * (total / steps)).astype(np.float32) - 1
    else:
        chosen = np.linspace(0, total - 1, steps, dtype=np.float32)[::-1]
    shares = alphas_cumprod(config)
    level = np.sqrt((1 - shares) / shares)
    timesteps, sigmas = np.zeros(total, np.float32), np.zeros(total + 1, np.float32)
    timesteps[:steps] = chosen
    sigmas[:steps] = np.interp(chosen, np.arange(total), level)
    largest = sigmas[0]
    initial = np.sqrt(largest**2 + 1) if config.timestep_spacing == "leading" else largest
    return EulerSchedule(timesteps, sigmas, np.asarray(initial, np.float32), np.asarray(steps, np.int32))


def scale_model_input(latents: Float[Array, "*x"], sigma: Float[Array, ""]) -> Float[Array, "*x"]:
    """Latents of noise level sigma, brought to the variance that the model was trained on."""
    return latents / jnp.sqrt(jnp.square(sigma) + 1)


def predicted_original(
    config: SchedulerConfig, prediction: Float[Array, "*x"], latents: Float[Array, "*x"], sigma: Float[Array, ""]
) -> Float[Array, "*x"]:
    """The clean sample that a prediction at noise level sigma speaks of."""
    if config.prediction_type == "epsilon":
        return latents - sigma * prediction
    if config.prediction_type == "sample":
        return prediction
    spread = jnp.sqrt(jnp.square(sigma) + 1)
    return prediction * (-sigma / spread) + latents / jnp.square(spread)


def euler_step(
    config: SchedulerConfig,
    prediction: Float[Array, "*x"],
    latents: Float[Array, "*x"],
    sigma: Float[Array, ""],
    next_sigma: Float[Array, ""],
) -> Float[Array, "*x"]:
    """One step of Euler's method from noise level sigma (not 0) to `next_sigma`."""
    if config.prediction_type == "epsilon":
        derivative = prediction
    else:
        derivative = (latents - predicted_original(config, prediction, latents, sigma)) / sigma
    return latents + (next_sigma - sigma) * derivative
