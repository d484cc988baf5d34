import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seedstory_jax.models.lora import LoRAConfig, LoRALinear, LoRAParam

LORA = LoRAConfig(rank=2, alpha=6.0, dropout=0.5)


def layer(lora=LORA) -> LoRALinear:
    linear = LoRALinear(5, 3, lora, rngs=nnx.Rngs(0))
    if lora is not None:
        linear.lora_b[...] = jax.random.normal(jax.random.key(9), (2, 3))
    return linear


def test_the_formula():
    linear, x = layer(), jax.random.normal(jax.random.key(1), (4, 5))
    w, a, b = (np.asarray(p[...], np.float64) for p in (linear.kernel, linear.lora_a, linear.lora_b))
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(linear(x), x @ w + 3.0 * x @ a @ b, rtol=1e-5, atol=1e-6)


def test_it_begins_as_nothing():
    fresh, x = LoRALinear(5, 3, LORA, rngs=nnx.Rngs(0)), jnp.ones((2, 5))
    np.testing.assert_array_equal(fresh(x), x @ fresh.kernel[...])
    assert fresh.lora_a[...].any()


def test_dropout_needs_a_key_and_touches_the_adapter_alone():
    linear, x = layer(), jnp.ones((1, 5))
    np.testing.assert_array_equal(linear(x), linear(x))
    dropped = jax.vmap(lambda key: linear(x, key))(jax.random.split(jax.random.key(0), 400))
    assert not np.allclose(dropped[0], dropped[1])
    np.testing.assert_allclose(np.mean(dropped, axis=0), linear(x), atol=0.8)  # right on average
    linear.lora = LoRAConfig(rank=2, alpha=6.0, dropout=0.0)
    np.testing.assert_array_equal(linear(x, jax.random.key(0)), linear(x))
    linear.lora, linear.lora_b[...] = LORA, jnp.zeros((2, 3))
    np.testing.assert_array_equal(linear(x, jax.random.key(0)), linear(x))


def test_without_an_adapter_there_is_only_the_kernel():
    linear = layer(None)
    assert [path for path, _ in nnx.to_flat_state(nnx.state(linear))] == [("kernel",)]
    assert linear(jnp.ones((2, 5)), jax.random.key(0)).shape == (2, 3)


def test_adapters_can_be_filtered():
    assert issubclass(LoRAParam, nnx.Param)
    lora, rest = nnx.state(layer(), LoRAParam, nnx.Param)
    assert set(lora) == {"lora_a", "lora_b"}
    assert set(rest) == {"kernel"}


@pytest.mark.parametrize(("field", "value"), [("rank", 0), ("dropout", 1.0)])
def test_impossible_configs(field, value):
    with pytest.raises(ValueError, match=field):
        LoRAConfig(**{field: value})
