import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seedstory_jax.convert.resampler import resampler_rules
from seedstory_jax.convert.rules import WeightsError, export_tensors
from seedstory_jax.models.layer_stack import scan_layers, stack_layers
from seedstory_jax.models.resampler import QwenResampler, ResamplerConfig
from seedstory_jax.parity.fixture import read_fixture
from seedstory_jax.parity.modules import layer_of, loaded, module_outputs, under_jit

SMALL = ResamplerConfig(grid_size=2, embed_dim=8, num_heads=2, kv_dim=8)


class Add(nnx.Module):
    def __init__(self, *, rngs):
        self.amount = nnx.Param(jax.random.normal(rngs.params(), ()))

    def __call__(self, x):
        return x + self.amount[...]


class Tower(nnx.Module):
    def __init__(self, *, rngs):
        self.first = nnx.List([Add(rngs=rngs), Add(rngs=rngs)])
        self.stack = stack_layers(lambda rngs: Add(rngs=rngs), 3, rngs)

    def enter(self, x):
        return self.first[1](self.first[0](x))

    def __call__(self, x):
        return scan_layers(self.stack, lambda layer, x, _: (layer(x), None), self.enter(x))[0]


def test_outputs_inside_are_those_of_the_one_run():
    tower, x = Tower(rngs=nnx.Rngs(0)), jnp.ones(2)
    before = vars(Add)["__call__"]
    result, inside = under_jit(tower, module_outputs, x)
    assert {"enter", "first.0", "first.1"} <= inside.keys() and not any(name.startswith("stack") for name in inside)
    np.testing.assert_array_equal(inside["first.0"], x + tower.first[0].amount[...])
    np.testing.assert_array_equal(inside["first.1"], inside["enter"])
    np.testing.assert_allclose(result, inside["enter"] + tower.stack.amount[...].sum(), rtol=1e-6)
    assert vars(Add)["__call__"] is before  # nothing is left behind
    result, inside = module_outputs(tower.enter, x)
    np.testing.assert_array_equal(result, inside["first.1"])


def test_layers_of_a_stack():
    stack = Tower(rngs=nnx.Rngs(0)).stack
    x = jnp.zeros(())
    for number in range(3):
        x = layer_of(stack, number)(x)
    np.testing.assert_allclose(x, stack.amount[...].sum(), rtol=1e-6)


def test_weights_are_read_or_named(write_fixture):
    theirs = QwenResampler(SMALL, rngs=nnx.Rngs(3))
    tensors = export_tensors(theirs, resampler_rules(SMALL))
    fixture = read_fixture(write_fixture("resampler_in", {}, weights=tensors))
    ours = loaded(QwenResampler, SMALL, fixture, resampler_rules(SMALL))
    np.testing.assert_array_equal(ours.query[...], theirs.query[...])
    del tensors["ln_q.bias"]
    fixture = read_fixture(write_fixture("resampler_in", {}, weights=tensors))
    with pytest.raises(WeightsError, match="resampler_in"):
        loaded(QwenResampler, SMALL, fixture, resampler_rules(SMALL))
