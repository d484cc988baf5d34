import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seedstory_jax.generation.scheduler import (
    SchedulerConfig,
    euler_schedule,
    euler_step,
    predicted_original,
    scale_model_input,
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside diffusers
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_agrees_with_diffusers(prediction, spacing, steps):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    config = SchedulerConfig(prediction_type=prediction, timestep_spacing=spacing)
    theirs = diffusers.EulerDiscreteScheduler(**dataclasses.asdict(config))
    theirs.set_timesteps(steps)
    schedule = euler_schedule(config, steps)
    np.testing.assert_allclose(schedule.timesteps[:steps], theirs.timesteps.numpy(), rtol=1e-6)
    np.testing.assert_allclose(schedule.sigmas[: steps + 1], theirs.sigmas.numpy(), rtol=2e-6)
    np.testing.assert_allclose(schedule.initial_sigma, float(theirs.init_noise_sigma), rtol=2e-6)

    numbers = np.random.default_rng(0)
    latents = numbers.normal(size=(1, 2, 3)).astype(np.float32) * schedule.initial_sigma
    reference = torch.from_numpy(latents)
    for i, timestep in enumerate(theirs.timesteps[:3]):
        output = numbers.normal(size=latents.shape).astype(np.float32)
        sigma, following = (jnp.asarray(x) for x in schedule.sigmas[i : i + 2])
        scaled = theirs.scale_model_input(reference, timestep)
        np.testing.assert_allclose(scale_model_input(jnp.asarray(latents), sigma), scaled.numpy(), atol=1e-5)
        latents = euler_step(config, jnp.asarray(output), jnp.asarray(latents), sigma, following)
        reference = theirs.step(torch.from_numpy(output), timestep, reference).prev_sample
        np.testing.assert_allclose(latents, reference.numpy(), atol=2e-5)
        latents = np.asarray(latents)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_prediction_ends_at_the_clean_sample(prediction):
    config = SchedulerConfig(prediction_type=prediction)
    schedule = euler_schedule(config, 5)
    clean, noise = jax.random.normal(jax.random.key(0), (2, 3, 4))
    latents = clean + schedule.sigmas[0] * noise
    for i in range(5):
        sigma, following = (jnp.asarray(x) for x in schedule.sigmas[i : i + 2])
        share = 1 / (1 + sigma**2)
        velocity = jnp.sqrt(share) * noise - jnp.sqrt(1 - share) * clean
        output = {"epsilon": noise, "v_prediction": velocity, "sample": clean}[prediction]
        np.testing.assert_allclose(predicted_original(config, output, latents, sigma), clean, atol=1e-4)
        latents = euler_step(config, output, latents, sigma, following)
    np.testing.assert_allclose(latents, clean, atol=1e-4)


def test_tables_have_one_length_for_every_number_of_steps():
    shapes = {tuple(np.shape(x) for x in jax.tree.leaves(euler_schedule(SchedulerConfig(), n))) for n in (1, 50, 1000)}
    assert shapes == {((1000,), (1001,), (), ())}


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(ValueError, match="must be 1 to 1000"):
        euler_schedule(SchedulerConfig(), steps)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="prediction_type 'noise' is unknown"):
        SchedulerConfig(prediction_type="noise")
