import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seedstory_jax.models.sdxl.unet_blocks import Downsample, GroupNorm, repeat_pixels


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_group_norm_agrees_with_flax(dtype):
    ours = GroupNorm(6, 3, 1e-4, rngs=nnx.Rngs(0))
    theirs = nnx.GroupNorm(6, num_groups=3, epsilon=1e-4, use_fast_variance=False, rngs=nnx.Rngs(0))
    scale, bias = (jax.random.normal(jax.random.key(i), (6,)) for i in range(2))
    for norm in (ours, theirs):
        norm.scale.set_value(scale)
        norm.bias.set_value(bias)
    # Far from 0: a one-pass variance would lose it.
    x = (jax.random.normal(jax.random.key(2), (2, 4, 5, 6)) + 100).astype(dtype)
    got = ours(x)
    assert got.dtype == x.dtype
    expected = theirs(x.astype(jnp.float32)).astype(dtype)
    np.testing.assert_allclose(
        got.astype(jnp.float32), expected.astype(jnp.float32), atol=2e-2 if dtype == "bfloat16" else 1e-4
    )


def test_group_norm_refuses_uneven_groups():
    with pytest.raises(ValueError, match="6 channels do not divide into 4 groups"):
        GroupNorm(6, 4, 1e-5, rngs=nnx.Rngs(0))


def test_repeat_pixels():
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    expected = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    np.testing.assert_array_equal(repeat_pixels(x)[0, :, :, 0], expected)


@pytest.mark.parametrize(("pad_end_only", "first"), [(False, 4.0), (True, 9.0)])
def test_downsampling_pads_where_it_should(pad_end_only, first):
    layer = Downsample(1, pad_end_only=pad_end_only, rngs=nnx.Rngs(0))
    layer.conv.kernel.set_value(jnp.ones((3, 3, 1, 1)))
    out = layer(jnp.ones((1, 4, 4, 1)))
    assert out.shape == (1, 2, 2, 1)
    assert float(out[0, 0, 0, 0]) == first  # how many of the nine lie in the image
