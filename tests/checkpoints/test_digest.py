"""One digest on devices, on a mesh and on the host; it sees every bit and its place."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from seedstory_jax.checkpoints.digest import combined, digest_of, host_sum

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int8, np.int32, np.float16])
@pytest.mark.parametrize("shape", [(), (7,), (3, 4, 5), (0, 3), (1, 5000)])
def test_the_host_computes_what_the_devices_do(dtype, shape):
    value = (RANDOM.normal(size=shape) * 50).astype(dtype)
    on_host = combined([("a", value.shape, value.dtype, host_sum(value))])
    assert digest_of({"a": jnp.asarray(value)}) == on_host


def test_a_large_array_is_summed_in_pieces(monkeypatch):
    from seedstory_jax.checkpoints import digest

    value = RANDOM.normal(size=1000).astype(np.float32)
    whole = host_sum(value)
    monkeypatch.setattr(digest, "WORDS_AT_ONCE", 7)
    assert host_sum(value) == whole


def test_every_flipped_bit_is_seen():
    value = RANDOM.normal(size=40).astype(np.float32)
    total = host_sum(value)
    for bit in range(value.size * 32):
        damaged = value.view(np.uint32).copy()
        damaged[bit // 32] ^= np.uint32(1) << np.uint32(bit % 32)
        assert host_sum(damaged.view(np.float32)) != total


def test_signs_places_names_shapes_and_dtypes_count():
    values = jnp.asarray(RANDOM.normal(size=(4, 6)), jnp.float32)
    digests = {
        digest_of({"a": values}),
        digest_of({"a": -values}),
        digest_of({"b": values}),
        digest_of({"a": values.T}),
        digest_of({"a": values.reshape(6, 4)}),
        digest_of({"a": values[::-1]}),
        digest_of({"a": values.astype(jnp.bfloat16)}),
        digest_of({"a": values, "b": values}),
    }
    assert len(digests) == 8
    assert digest_of({"b": values, "a": -values}) == digest_of({"a": -values, "b": values})


def test_many_random_changes_are_seen():
    value = RANDOM.normal(size=200).astype(np.float32)
    totals = {host_sum(value + np.float32(1e-3) * RANDOM.normal(size=200).astype(np.float32)) for _ in range(500)}
    assert len(totals | {host_sum(value)}) == 501


def test_no_layout_changes_it():
    value = jnp.asarray(RANDOM.normal(size=(8, 6)), jnp.float32)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    there = jax.device_put(value, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    assert digest_of({"a": there}) == digest_of({"a": value})
