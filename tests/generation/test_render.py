import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seedstory_jax.generation.render import (
    Condition,
    RenderConfig,
    Renderer,
    condition_on,
    decode_images,
    denoise,
    guided_step,
    image_noise,
    predict,
    sampling_time_ids,
    zero_image_features,
)
from seedstory_jax.generation.scheduler import euler_schedule
from seedstory_jax.models.sdxl.detokenizer import Detokenizer, DetokenizerConfig
from seedstory_jax.models.sdxl.perceiver import PerceiverConfig
from seedstory_jax.models.sdxl.unet import UNetConfig
from seedstory_jax.models.sdxl.vae import VAE, VAEConfig

CONFIG = DetokenizerConfig(
    unet=UNetConfig(
        in_channels=2,
        out_channels=2,
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
VAE_CONFIG = VAEConfig(latent_channels=2, block_out_channels=(4, 4), layers_per_block=1, norm_num_groups=2)
RENDER = RenderConfig(height=8, width=12, steps=3, guidance=2.0, batch_size=2)
STORY, TURN = [0, 0, 0, 1, 1], [1, 2, 3, 1, 2]


def filled(make, seed):
    graph, shapes = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    numbers = np.random.default_rng(seed)
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.asarray(0.3 * numbers.normal(size=x.shape), x.dtype), shapes))


def models():
    detokenizer = filled(lambda rngs: Detokenizer(CONFIG, rngs=rngs), 0)
    return detokenizer, filled(lambda rngs: VAE(VAE_CONFIG, rngs=rngs), 1)


def features_for(count):
    return np.random.default_rng(2).normal(size=(count, 7, 5)).astype(np.float32)


def renderer_for(config=RENDER, negative=True):
    detokenizer, vae = models()
    return Renderer(detokenizer, vae, jnp.asarray(features_for(9)[8:]) if negative else None, config)


@pytest.fixture(scope="module")
def renderer():
    return renderer_for()


@pytest.fixture(scope="module")
def rendered(renderer):
    return renderer.render(features_for(5), STORY, TURN, seed=7)


def test_pictures_do_not_depend_on_their_batch(renderer, rendered):
    assert rendered.shape == (5, 8, 12, 3)
    assert rendered.dtype == np.uint8
    order = [3, 0, 4]
    again = renderer.render(features_for(5)[order], np.array(STORY)[order], np.array(TURN)[order], seed=7)
    np.testing.assert_array_equal(again, rendered[order])


def test_pictures_depend_on_seed_story_and_frame(renderer, rendered):
    first = features_for(5)[:1]
    for story, turn, seed in ((1, 1, 7), (0, 2, 7), (0, 1, 8)):
        assert (renderer.render(first, [story], [turn], seed=seed)[0] != rendered[0]).any()


def test_steps_guidance_and_seed_compile_nothing_new(renderer, rendered):
    compiled = []

    def listen(name, seconds, **others):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for changes in ({"steps": 1}, {"steps": 9, "guidance": 7.5}, {"seed": 3}, {"seed": -1}):
            assert len(renderer.render(features_for(3), STORY[:3], TURN[:3], **changes)) == 3
        assert compiled == []
        renderer.render(features_for(1), [0], [1], guidance=1)  # this one is another program, and shows that we count
        assert compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_the_loop_is_its_steps_and_the_guidance_its_formula(renderer):
    detokenizer, vae = models()
    schedule = euler_schedule(RENDER.scheduler, 3)
    noise = image_noise(jnp.uint32(7), jnp.asarray([0]), jnp.asarray([1]), renderer.latent_shape)
    time_ids = sampling_time_ids(1, 8, 12)
    np.testing.assert_array_equal(time_ids, [[8, 12, 0, 0, 8, 12]])
    positive = condition_on(detokenizer.perceiver, jnp.asarray(features_for(1)))
    negative = condition_on(detokenizer.perceiver, jnp.asarray(features_for(9)[8:]))
    graph, state = nnx.split(detokenizer.unet)
    guidance = jnp.float32(2.0)

    @jax.jit
    def step(state, index, latents):
        unet = nnx.merge(graph, state)
        conditions = (positive, negative, guidance, time_ids)
        return guided_step(unet, RENDER.scheduler, schedule, index, latents, *conditions)

    @jax.jit
    def loop(state):
        unet = nnx.merge(graph, state)
        return denoise(unet, RENDER.scheduler, schedule, noise, positive, negative, guidance, time_ids)

    @jax.jit
    def unguided(state, latents, condition):
        unet = nnx.merge(graph, state)
        return predict(unet, latents, jnp.float32(5.0), condition, None, guidance, time_ids)[0]

    @jax.jit
    def guided(state, latents):
        unet = nnx.merge(graph, state)
        return predict(unet, latents, jnp.float32(5.0), positive, negative, guidance, time_ids)

    latents = noise * schedule.initial_sigma
    for index in range(3):
        latents, _ = step(state, jnp.asarray(index), latents)
    np.testing.assert_allclose(loop(state), latents, atol=1e-4)
    away, towards = unguided(state, noise, negative), unguided(state, noise, positive)
    got, raw = guided(state, noise)
    np.testing.assert_allclose(raw, jnp.concatenate([away, towards]), atol=1e-5)
    np.testing.assert_allclose(got, away + 2 * (towards - away), atol=1e-4)

    vae_graph, vae_state = nnx.split(vae)
    decode = jax.jit(lambda state, latents: decode_images(nnx.merge(vae_graph, state), latents))
    image = decode(vae_state, loop(state))
    np.testing.assert_array_equal(image, renderer.render(features_for(1), [0], [1], seed=7))


def test_without_negative_features_only_guidance_one_renders():
    renderer = renderer_for(dataclasses.replace(RENDER, tile=4), negative=False)
    assert renderer.render(features_for(1), [0], [1], guidance=1).shape == (1, 8, 12, 3)
    with pytest.raises(ValueError, match=r"guidance 2\.0 needs negative_features"):
        renderer.render(features_for(1), [0], [1])
    assert renderer.render(features_for(0), [], [], guidance=1).shape == (0, 8, 12, 3)
    with pytest.raises(ValueError, match="2 features for 1 stories and 2 turn numbers"):
        renderer.render(features_for(2), [0], [1, 2], guidance=1)


def test_sides_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="6 x 12 pixels: both sides must be multiples of 4"):
        renderer_for(dataclasses.replace(RENDER, height=6))


def test_zero_image_is_all_zero():
    seen = []

    class Encoder(nnx.Module):
        def __call__(self, images):
            seen.append(images)
            return images.reshape(1, -1, 3)

    assert zero_image_features(Encoder(), 4).shape == (1, 16, 3)
    assert not seen[0].any()


def test_conditions_are_pytrees():
    condition = Condition(jnp.ones((2, 3, 4)), jnp.ones((2, 5)))
    assert [x.shape for x in jax.tree.leaves(jax.tree.map(lambda x: x[:1], condition))] == [(1, 3, 4), (1, 5)]


@pytest.mark.walk
def test_pictures_do_not_depend_on_the_number_of_devices(rendered):
    script = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import test_render as t;"
        "r = t.renderer_for(); assert r.mesh.size == 3, r.mesh;"
        "print(json.dumps(r.render(t.features_for(5), t.STORY, t.TURN, seed=7).tolist()))"
    )
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=3", "JAX_PLATFORMS": "cpu"}
    here = os.path.dirname(os.path.abspath(__file__))
    root = os.path.dirname(os.path.dirname(here))
    environment["PYTHONPATH"] = root
    done = subprocess.run(
        [sys.executable, "-c", script, here], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_array_equal(np.array(json.loads(done.stdout), np.uint8), rendered)
