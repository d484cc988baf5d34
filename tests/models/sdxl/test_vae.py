import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seedstory_jax.convert.rules import load_tensors
from seedstory_jax.convert.sdxl import published_vae_config, vae_rules
from seedstory_jax.models.sdxl.vae import VAE, VAEConfig, decode_in_tiles, sample_latents

SMALL = VAEConfig(
    latent_channels=3, block_out_channels=(4, 8, 8), layers_per_block=1, norm_num_groups=2, scaling_factor=0.5
)


@pytest.fixture(scope="module")
def vae():
    unset = nnx.eval_shape(lambda: VAE(SMALL, rngs=nnx.Rngs(0)))
    graph, shapes = nnx.split(unset)
    numbers = np.random.default_rng(0)
    state = jax.tree.map(lambda x: jnp.asarray(0.3 * numbers.normal(size=x.shape), x.dtype), shapes)
    return nnx.merge(graph, state)


def run(vae, function, *arguments):
    graph, state = nnx.split(vae)
    return jax.jit(lambda state, *arguments: function(nnx.merge(graph, state), *arguments))(state, *arguments)


def test_agrees_with_diffusers():
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL.from_config(published_vae_config(SMALL)).eval()
    ours = nnx.eval_shape(lambda: VAE(SMALL, rngs=nnx.Rngs(0)))
    load_tensors(ours, {name: value.numpy() for name, value in theirs.state_dict().items()}, vae_rules())
    images = torch.rand(2, 3, 8, 16) * 2 - 1
    with torch.no_grad():
        moments = theirs.encode(images).latent_dist
        decoded = theirs.decode(moments.mean).sample
    with jax.default_matmul_precision("highest"):
        mean, logvar = run(ours, VAE.encode, images.permute(0, 2, 3, 1).numpy())
        got = run(ours, VAE.decode, moments.mean.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(mean, moments.mean.permute(0, 2, 3, 1).numpy(), atol=1e-5)
    np.testing.assert_allclose(logvar, moments.logvar.permute(0, 2, 3, 1).numpy(), atol=1e-5)
    np.testing.assert_allclose(got, decoded.permute(0, 2, 3, 1).numpy(), atol=1e-5)


def test_full_size_has_the_published_number_of_parameters():
    vae = nnx.eval_shape(lambda: VAE(VAEConfig(), rngs=nnx.Rngs(0)))
    assert sum(x.size for x in jax.tree.leaves(nnx.state(vae))) == 83_653_863


def test_a_picture_that_fits_one_tile_is_decoded_whole(vae):
    latents = np.random.default_rng(1).normal(size=(1, 4, 4, 3)).astype(np.float32)
    whole = run(vae, VAE.decode, latents)
    tiled = run(vae, lambda vae, latents: decode_in_tiles(vae, latents, 4, 1), latents)
    np.testing.assert_array_equal(tiled, whole)


def test_tiles_of_a_flat_picture_leave_no_seam(vae):
    latents = np.broadcast_to(np.float32([0.3, -1.0, 0.5]), (1, 9, 6, 3)).copy()
    tiled = np.asarray(run(vae, lambda vae, latents: decode_in_tiles(vae, latents, 4, 2), latents))
    one = np.asarray(run(vae, VAE.decode, latents[:, :4, :4]))
    assert tiled.shape == (1, 36, 24, 3)
    # The corners belong to one tile each; in between tiles only fade into one another.
    np.testing.assert_allclose(tiled[:, :8, :8], one[:, :8, :8], atol=1e-5)
    np.testing.assert_allclose(tiled[:, -4:, -8:], one[:, -4:, -8:], atol=1e-5)
    assert one.min() - 1e-5 <= tiled.min() and tiled.max() <= one.max() + 1e-5


def test_scaling_and_drawing():
    vae = nnx.eval_shape(lambda: VAE(SMALL, rngs=nnx.Rngs(0)))
    latents = jnp.ones((1, 1, 1, 3))
    np.testing.assert_array_equal(vae.scale(latents), 0.5 * latents)
    np.testing.assert_array_equal(vae.unscale(vae.scale(latents)), latents)
    np.testing.assert_allclose(sample_latents(latents, jnp.full_like(latents, np.log(4)), 3 * latents), 7 * latents)


def test_a_picture_of_a_wrong_size_is_refused(vae):
    with pytest.raises(ValueError, match="10 x 8 pixels, must be multiples of 4"):
        vae.encode(jnp.zeros((1, 10, 8, 3)))
