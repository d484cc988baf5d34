import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seedstory_jax.models.sdxl.detokenizer import (
    Detokenizer,
    DetokenizerConfig,
    denoising_loss,
    draw_noise,
    training_time_ids,
)
from seedstory_jax.models.sdxl.noise_schedule import SchedulerConfig, add_noise, alphas_cumprod
from seedstory_jax.models.sdxl.perceiver import PerceiverConfig
from seedstory_jax.models.sdxl.unet import UNetConfig

CONFIG = DetokenizerConfig(
    unet=UNetConfig(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        cross_attention_dim=8,
        transformer_layers_per_block=(1, 1),
        num_attention_heads=(1, 2),
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 6,
    ),
    perceiver=PerceiverConfig(
        dim=8, depth=1, dim_head=4, heads=2, num_queries=3, embedding_dim=5, output1_dim=2, output2_dim=6
    ),
)


def zero_detokenizer():
    graph, shapes = nnx.split(nnx.eval_shape(lambda: Detokenizer(CONFIG, rngs=nnx.Rngs(0))))
    return graph, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_who_predicts_nothing_loses_the_mean_square_of_the_target(prediction):
    graph, state = zero_detokenizer()
    numbers = np.random.default_rng(0)
    latents, noise = numbers.normal(size=(2, 2, 4, 4, 4)).astype(np.float32)
    features = numbers.normal(size=(2, 7, 5)).astype(np.float32)
    timesteps = np.array([10, 900], np.int32)
    scheduler = SchedulerConfig(prediction_type=prediction)
    time_ids = training_time_ids(np.array([64, 96]), 64, 0, np.array([0, 8]), 64)

    @jax.jit
    def loss(state, arrays, randomness):
        return denoising_loss(nnx.merge(graph, state), *arrays, randomness, scheduler)

    arrays = (latents, features, time_ids)

    share = alphas_cumprod(scheduler)[timesteps][:, None, None, None]
    velocity = np.sqrt(share) * noise - np.sqrt(1 - share) * latents
    target = {"epsilon": noise, "v_prediction": velocity, "sample": latents}[prediction]
    np.testing.assert_allclose(loss(state, arrays, (noise, timesteps)), np.mean(target**2), rtol=1e-5)
    if prediction == "epsilon":
        key = jax.random.key(3)
        drawn, _ = draw_noise(key, jnp.asarray(latents), scheduler)
        np.testing.assert_allclose(loss(state, arrays, key), np.mean(np.square(drawn)), rtol=1e-5)


def test_noise_is_mixed_by_variance():
    config = SchedulerConfig()
    clean, noise = jnp.ones((2, 1)), jnp.full((2, 1), 2.0)
    share = alphas_cumprod(config)[[0, 999]]
    expected = np.sqrt(share) + 2 * np.sqrt(1 - share)
    np.testing.assert_allclose(add_noise(config, clean, noise, jnp.asarray([0, 999]))[:, 0], expected, rtol=1e-6)


def test_time_ids_are_sizes_in_pixels():
    np.testing.assert_array_equal(training_time_ids(480, 640, 0, 80, 1024), [480, 640, 0, 80, 1024, 1024])


@pytest.mark.parametrize("change", [{"output1_dim": 3}, {"output1_dim": 3, "output2_dim": 5}])
def test_parts_that_do_not_fit_are_named(change):
    with pytest.raises(ValueError, match="must be equal"):
        DetokenizerConfig(unet=CONFIG.unet, perceiver=dataclasses.replace(CONFIG.perceiver, **change))
