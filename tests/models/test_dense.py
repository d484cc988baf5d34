import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seedstory_jax.models.dense import dense


@pytest.mark.parametrize("inputs, outputs", [(3, 5), (5, 3), (4, 4)])
@pytest.mark.parametrize("batch", [(), (6,), (2, 3)])
def test_value_and_gradients_are_those_of_the_plain_product(inputs, outputs, batch):
    x, kernel, weight = (
        jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)
        for seed, shape in enumerate([(*batch, inputs), (inputs, outputs), (*batch, outputs)])
    )

    def value_and_gradients(product):
        return jax.value_and_grad(lambda x, kernel: jnp.sum(weight * product(x, kernel)), argnums=(0, 1))(x, kernel)

    with jax.default_matmul_precision("highest"):
        ours, plain = value_and_gradients(dense), value_and_gradients(jnp.matmul)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, plain)
