import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seedstory_jax.models.sdxl.perceiver import Perceiver, PerceiverConfig, normalize_over_tokens


def test_full_size_has_the_published_number_of_parameters():
    perceiver = nnx.eval_shape(lambda: Perceiver(PerceiverConfig(), rngs=nnx.Rngs(0)))
    assert sum(x.size for x in jax.tree.leaves(nnx.state(perceiver))) == 61_245_696  # the published 61.2 M
    features = jax.ShapeDtypeStruct((2, 256, 4096), jnp.float32)
    tokens, pooled = nnx.eval_shape(lambda perceiver, features: perceiver(features), perceiver, features)
    assert tokens.shape == (2, 64, 2048)
    assert pooled.shape == (2, 1280)


def test_each_channel_is_normalised_over_its_tokens():
    x = jnp.asarray([[[3.0, 0.0, 1.0], [4.0, 0.0, 0.0]]])
    np.testing.assert_allclose(normalize_over_tokens(x), [[[0.6, 0, 1], [0.8, 0, 0]]], rtol=1e-6)


def test_recording_changes_nothing():
    config = PerceiverConfig(
        dim=8, depth=2, dim_head=4, heads=2, num_queries=3, embedding_dim=5, output1_dim=2, output2_dim=6
    )
    perceiver = Perceiver(config, rngs=nnx.Rngs(jax.random.key(0, impl="unsafe_rbg")))
    features = jax.random.normal(jax.random.key(0), (2, 4, 5))
    values = {}
    recorded = perceiver(features, values.__setitem__)
    for got, expected in zip(perceiver(features), recorded, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)
    assert values["attnpool_all_tokens"].shape == (2, 4, 6)
    assert {"layer1_attn_out", "layer1_ff_out", "hidden_embeds"} <= set(values)
