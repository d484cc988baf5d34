"""The linear path beside the VAE's convolutions, by itself."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seedstory_jax.models.sdxl.linear_skip import LinearSkipVAE, from_patches, to_patches
from seedstory_jax.models.sdxl.vae import VAEConfig

CONFIG = VAEConfig(block_out_channels=(4, 4), latent_channels=12, norm_num_groups=2, linear_skip=True)  # 2 x 2 pixels
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 6, 8, 3)).astype(np.float32))


def test_patches_are_pixels_side_by_side():
    patches = np.asarray(to_patches(IMAGES, 2))
    np.testing.assert_array_equal(patches[1, 2, 3], IMAGES[1, 4:6, 6:8].reshape(-1))
    np.testing.assert_array_equal(from_patches(jnp.asarray(patches), 2), IMAGES)


def test_silent_convolutions_leave_the_linear_path():
    """With as many channels as a patch has values and unit maps, images come back as they were."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: LinearSkipVAE(CONFIG, rngs=nnx.Rngs(0))))
    vae = nnx.merge(graph, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
    vae.skip_encode.kernel[...] = vae.skip_decode.kernel[...] = jnp.eye(12)
    mean, logvar = vae.encode(IMAGES)
    np.testing.assert_array_equal(mean, to_patches(IMAGES, 2))
    np.testing.assert_array_equal(logvar, 0)
    np.testing.assert_array_equal(vae.decode(mean), IMAGES)
