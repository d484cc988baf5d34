import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seedstory_jax.convert.rules import load_tensors
from seedstory_jax.convert.sdxl import published_unet_config, unet_rules
from seedstory_jax.models.sdxl.unet import UNet, UNetConfig, sinusoidal_embedding

TWO_LEVELS = UNetConfig(
    in_channels=5,
    out_channels=3,
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    block_out_channels=(8, 12),
    layers_per_block=1,
    norm_num_groups=2,
    cross_attention_dim=10,
    transformer_layers_per_block=(2, 1),
    num_attention_heads=(1, 3),
    addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=6 * 4 + 7,
)
# Plain levels around one with attention, whose way up is one resnet longer.
FOUR_LEVELS = dataclasses.replace(
    TWO_LEVELS,
    in_channels=4,
    out_channels=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(4, 8, 8, 12),
    layers_per_block=2,
    transformer_layers_per_block=(1, 3, 1, 1),
    num_attention_heads=(1, 4, 2, 2),
)


def inputs_for(config, batch=2, side=(8, 16), tokens=3):
    numbers = np.random.default_rng(0)
    arrays = (
        numbers.normal(size=(batch, *side, config.in_channels)).astype(np.float32),
        np.array([3, 871][:batch], np.int32),
        numbers.normal(size=(batch, tokens, config.cross_attention_dim)).astype(np.float32),
        numbers.normal(size=(batch, config.pooled_dim)).astype(np.float32),
        np.array([[64, 96, 0, 8, 64, 64], [32, 32, 4, 0, 64, 64]][:batch], np.int32),
    )
    return tuple(jnp.asarray(array) for array in arrays)


def random_unet(config, seed=0):
    unet = nnx.eval_shape(lambda: UNet(config, rngs=nnx.Rngs(0)))
    graph, shapes = nnx.split(unet)
    numbers = np.random.default_rng(seed)
    return graph, jax.tree.map(lambda x: jnp.asarray(0.2 * numbers.normal(size=x.shape), x.dtype), shapes)


@pytest.mark.parametrize("config", [TWO_LEVELS, FOUR_LEVELS], ids=["two levels", "four levels"])
def test_agrees_with_diffusers(config):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    published = published_unet_config(config)
    theirs = diffusers.UNet2DConditionModel.from_config(published).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours = nnx.eval_shape(lambda: UNet(config, rngs=nnx.Rngs(0)))
    load_tensors(ours, {name: value.numpy() for name, value in theirs.state_dict().items()}, unet_rules())
    arguments = inputs_for(config)
    latents, timesteps, tokens, pooled, time_ids = (torch.from_numpy(np.array(x)) for x in arguments)
    with torch.no_grad():
        expected = theirs(
            latents.permute(0, 3, 1, 2),
            timesteps,
            encoder_hidden_states=tokens,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
        ).sample.permute(0, 2, 3, 1)
    graph, state = nnx.split(ours)
    with jax.default_matmul_precision("highest"):
        run = jax.jit(lambda state, *arguments: nnx.merge(graph, state)(*arguments))
        got = run(state, *arguments)
    np.testing.assert_allclose(got, expected.numpy(), atol=2e-5 * float(expected.abs().max()))


def test_full_size_has_the_published_number_of_parameters():
    unet = nnx.eval_shape(lambda: UNet(UNetConfig(), rngs=nnx.Rngs(0)))
    assert sum(x.size for x in jax.tree.leaves(nnx.state(unet))) == 2_567_463_684


def test_fresh_one_predicts_nothing_and_keeps_its_shape():
    # A cheaper generator than the default: the latter takes 20 s to compile for so many small tensors.
    key = jax.random.key(0, impl="unsafe_rbg")
    run = jax.jit(lambda key, *arguments: UNet(TWO_LEVELS, rngs=nnx.Rngs(key))(*arguments))
    out = run(key, *inputs_for(TWO_LEVELS))
    assert out.shape == (2, 8, 16, 3)
    assert not out.any()


def test_remat_changes_no_gradient():
    arguments = inputs_for(TWO_LEVELS, side=(2, 2))

    def gradient(remat):
        config = dataclasses.replace(TWO_LEVELS, transformer_layers_per_block=(1, 2), remat=remat)
        graph, state = random_unet(config)
        loss = jax.jit(jax.grad(lambda state: jnp.mean(jnp.square(nnx.merge(graph, state)(*arguments)))))
        return jax.tree.leaves(loss(state))

    for expected, recomputed in zip(gradient("none"), gradient("full"), strict=True):
        np.testing.assert_allclose(recomputed, expected, atol=1e-5 * max(1.0, float(jnp.abs(expected).max())))


def test_bfloat16_gives_float32_close_to_float32():
    arguments = inputs_for(TWO_LEVELS, side=(4, 4))
    outputs = []
    for dtype in ("float32", "bfloat16"):
        graph, state = random_unet(dataclasses.replace(TWO_LEVELS, dtype=dtype))
        outputs.append(jax.jit(lambda state, graph=graph: nnx.merge(graph, state)(*arguments))(state))
    assert outputs[1].dtype == jnp.float32
    error = jnp.linalg.norm(outputs[1] - outputs[0]) / jnp.linalg.norm(outputs[0])
    assert 1e-6 < error < 0.05


def test_sinusoids_are_cosines_then_sines():
    got = sinusoidal_embedding(jnp.asarray([0, 10]), 4)
    expected = [[1, 1, 0, 0], [np.cos(10), np.cos(0.1), np.sin(10), np.sin(0.1)]]
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": (1, 5)}, "12 channels do not divide into 5"),
        ({"down_block_types": ("DownBlock2D",)}, "down_block_types has 1 entries for 2"),
        ({"down_block_types": ("DownBlock2D", "Dwn")}, "'Dwn' is unknown"),
        ({"remat": "some"}, "remat 'some'"),
    ],
)
def test_wrong_sizes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TWO_LEVELS, **change)


def test_odd_latents_are_refused():
    graph, state = random_unet(TWO_LEVELS)
    with pytest.raises(ValueError, match="5 x 8 latents, must be multiples of 2"):
        nnx.merge(graph, state)(*inputs_for(TWO_LEVELS, side=(5, 8)))
