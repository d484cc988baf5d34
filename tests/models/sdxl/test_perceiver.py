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
