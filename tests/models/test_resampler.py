import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seedstory_jax.models.resampler import QwenResampler, ResamplerConfig, resize_position_table, sincos_2d

SMALL = ResamplerConfig(grid_size=2, embed_dim=16, num_heads=4, kv_dim=16)


def test_resizing_to_the_same_length_changes_nothing():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)), jnp.float32)
    assert resize_position_table(table, 16) is table


@pytest.mark.parametrize(("source", "target"), [(4, 8), (8, 4), (3, 5), (16, 7), (2, 1)])
def test_resizing_is_torchs_bicubic(source, target):
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(1).normal(size=(source**2, 3)).astype(np.float32)
    grid = torch.from_numpy(table).reshape(1, source, source, 3).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(grid, size=(target, target), mode="bicubic", align_corners=False)
    ours = resize_position_table(jnp.asarray(table), target**2)
    np.testing.assert_allclose(ours, wanted[0].permute(1, 2, 0).reshape(target**2, 3).numpy(), atol=1e-5)


def test_a_table_that_is_no_square_is_refused():
    with pytest.raises(ValueError, match="15 positions are no square grid"):
        resize_position_table(jnp.zeros((16, 2)), 15)


def test_sincos_puts_columns_first_then_rows():
    table = np.asarray(sincos_2d(8, 3)).reshape(3, 3, 8)
    np.testing.assert_array_equal(table[0, :, :4], table[2, :, :4])  # the column alone
    np.testing.assert_array_equal(table[:, 0, 4:], table[:, 2, 4:])  # the row alone
    wanted = [*np.sin([2, 0.02]), *np.cos([2, 0.02]), *np.sin([1, 0.01]), *np.cos([1, 0.01])]
    np.testing.assert_allclose(table[1, 2], wanted, atol=1e-7)


@pytest.mark.parametrize(("kv_dim", "tokens"), [(16, 4), (16, 16), (12, 9)])
def test_shapes(kv_dim, tokens):
    module = QwenResampler(ResamplerConfig(grid_size=2, embed_dim=16, num_heads=4, kv_dim=kv_dim), rngs=nnx.Rngs(0))
    assert module(jnp.ones((3, tokens, kv_dim))).shape == (3, 4, 16)


def test_values_carry_no_positions():
    module = QwenResampler(SMALL, rngs=nnx.Rngs(0))
    x = jnp.ones((1, 9, 16)).at[:].set(jnp.arange(16.0))  # the same token everywhere: any weighting gives it back
    value = module.ln_kv(x)[0, 0] @ jnp.split(module.attn.in_proj_weight[...], 3)[2].T
    np.testing.assert_allclose(module(x)[0, 1], module.attn.out_proj(value), rtol=1e-5, atol=1e-6)


def test_the_position_table_gets_no_gradient():
    module = QwenResampler(SMALL, rngs=nnx.Rngs(0))
    graph, state = nnx.split(module)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 9, 16)), jnp.float32)
    grads = jax.grad(lambda state: (nnx.merge(graph, state)(x) ** 2).sum())(state)
    assert not grads["pos_embed"][...].any()
    assert grads["query"][...].any()


def test_bfloat16_computes_in_bfloat16_and_stays_close():
    wide = QwenResampler(SMALL, rngs=nnx.Rngs(0))
    narrow = QwenResampler(ResamplerConfig(2, 16, 4, 16, dtype="bfloat16"), rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 16)), jnp.float32)
    assert narrow(x).dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow(x).astype(jnp.float32), wide(x), atol=0.05)


def test_wrong_width_is_refused():
    with pytest.raises(ValueError, match=r"width 12 .* kv_dim 16"):
        QwenResampler(SMALL, rngs=nnx.Rngs(0))(jnp.ones((1, 4, 12)))


@pytest.mark.parametrize(("grid_size", "count"), [(8, 67_665_920), (16, 69_238_784)])
def test_full_size_has_the_published_number_of_parameters(grid_size, count):
    module = nnx.eval_shape(lambda: QwenResampler(ResamplerConfig(grid_size=grid_size), rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param))) == count
