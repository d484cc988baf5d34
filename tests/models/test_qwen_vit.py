import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seedstory_jax.models.qwen_vit import QwenViT, QwenViTConfig

TINY = QwenViTConfig(
    image_size=32, patch_size=8, width=16, layers=2, heads=2, mlp_ratio=2.0, n_queries=4, output_dim=32, position_grid=2
)


def images(batch=2, size=32):
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, size, size, 3)), jnp.float32)


def test_full_size_has_the_published_number_of_parameters():
    module = nnx.eval_shape(lambda: QwenViT(QwenViTConfig(), rngs=nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))
    assert count / 1e6 == pytest.approx(1935.6, abs=0.1)


def test_full_size_shapes():
    module = nnx.eval_shape(lambda: QwenViT(QwenViTConfig(), rngs=nnx.Rngs(0)))
    graph, state = nnx.split(module)
    out = jax.eval_shape(lambda state, x: nnx.merge(graph, state)(x), state, jnp.zeros((2, 448, 448, 3)))
    assert out.shape == (2, 256, 4096)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features(dtype):
    config = QwenViTConfig(**{**TINY.__dict__, "dtype": dtype})
    out = QwenViT(config, rngs=nnx.Rngs(0))(images())
    assert out.shape == (2, 4, 32)
    assert out.dtype == jnp.dtype(dtype)


def test_patches_are_read_row_by_row():
    vit = QwenViT(TINY, rngs=nnx.Rngs(0))
    x = images(1)
    changed = x.at[:, 8:16, 16:24].add(1.0)  # the patch in row 1, column 2
    differs = (vit.embed(x) != vit.embed(changed)).any(-1)[0]
    assert np.flatnonzero(differs).tolist() == [1 * 4 + 2]


@pytest.mark.parametrize("remat", ["full"])
def test_remat_changes_no_gradient(remat):
    def gradient(remat):
        graph, state = nnx.split(QwenViT(QwenViTConfig(**{**TINY.__dict__, "remat": remat}), rngs=nnx.Rngs(0)))
        return jax.grad(lambda state: (nnx.merge(graph, state)(images()) ** 2).mean())(state)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), gradient("none"), gradient(remat))


def test_another_image_size_is_refused():
    with pytest.raises(ValueError, match=r"takes \[b, 32, 32, 3\]"):
        QwenViT(TINY, rngs=nnx.Rngs(0))(images(size=40))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 30}, "no multiple of patch_size"),
        ({"heads": 3}, "no multiple of heads"),
        ({"n_queries": 5}, "5"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        QwenViTConfig(**{**TINY.__dict__, **change})
