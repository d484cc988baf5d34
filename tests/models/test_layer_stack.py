import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from seedstory_jax.models.layer_stack import activation_axes, constrain, scan_layers, stack_layers


class Affine(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return jnp.tanh(self.linear(x))


@pytest.fixture(scope="module")
def layers():
    return stack_layers(Affine, 3, nnx.Rngs(0))


def step(layer, x, add):
    x = layer(x) + add
    return x, x.sum()


def loop(kernel, bias, x, xs):
    """The same by hand."""
    sums = []
    for w, b, add in zip(kernel, bias, xs, strict=True):
        x = jnp.tanh(x @ w + b) + add
        sums.append(x.sum())
    return x, jnp.stack(sums)


def test_each_layer_is_drawn_on_its_own(layers):
    kernel = layers.linear.kernel[...]
    assert kernel.shape == (3, 4, 4)
    assert not np.allclose(kernel[0], kernel[1])


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
@pytest.mark.parametrize("unroll", [1, True])
def test_scan_is_the_loop_and_so_is_its_gradient(layers, remat, unroll):
    x, xs = jnp.ones((2, 4)), jnp.arange(3.0)
    kernel, bias = layers.linear.kernel[...], layers.linear.bias[...]
    graph, state = nnx.split(layers)

    def scanned(state):
        return scan_layers(nnx.merge(graph, state), step, x, xs, remat=remat, unroll=unroll)

    for ours, reference in zip(scanned(state), loop(kernel, bias, x, xs), strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-5)
    ours = jax.grad(lambda state: scanned(state)[0].sum())(state)["linear"]["kernel"][...]
    reference = jax.grad(lambda kernel: loop(kernel, bias, x, xs)[0].sum())(kernel)
    np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-6)


def test_unknown_remat_names_the_choices(layers):
    with pytest.raises(ValueError, match="none, full, dots"):
        scan_layers(layers, step, jnp.ones((2, 4)), jnp.arange(3.0), remat="some")


def test_constrain_does_nothing_until_a_layout_is_in_force():
    x = jnp.ones((2, 3))
    assert constrain(x, "bd") is x
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    with activation_axes(mesh, {"b": "data"}):
        text = jax.jit(lambda x: constrain(x, "bd") + 1).lower(x).as_text()
    assert "sharding" in text
    np.testing.assert_array_equal(constrain(x, "bd"), x)
