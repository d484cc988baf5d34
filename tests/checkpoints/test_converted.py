import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from seedstory_jax.checkpoints.converted import (
    CHUNK_BYTES,
    ModuleWriter,
    _chunks,
    read_manifest,
    write_manifest,
)
from seedstory_jax.checkpoints.load import read_parameters
from seedstory_jax.checkpoints.readers import StoreReader
from seedstory_jax.errors import UserError

LAYERS = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(ml_dtypes.bfloat16)


@pytest.fixture
def module(tmp_path):
    """Two arrays: stacked layers, filled backwards, and a vector of zeros (which must be stored too)."""
    folder = tmp_path / "module"
    writer = ModuleWriter(folder, {"layers.kernel": LAYERS.dtype, "bias": np.dtype("f4")})
    store = writer.create("layers.kernel", LAYERS.shape, LAYERS.dtype, stacked=True)
    for layer in (2, 0, 1):
        store[layer].write(LAYERS[layer]).result()
    writer.create("bias", (5,), np.dtype("f4"), stacked=False).write(np.zeros(5, "f4")).result()
    return folder


def shapes(**changes):
    known = {"layers.kernel": ((3, 4, 6), jnp.float32), "bias": ((5,), jnp.float32), **changes}
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in known.items()}


def test_orbax_restores_what_was_written_in_the_wanted_dtype(module):
    restored = read_parameters(StoreReader(module), shapes(), "here")
    np.testing.assert_array_equal(restored["layers.kernel"], LAYERS.astype(np.float32), strict=True)
    assert restored["bias"].tolist() == [0] * 5


def test_a_part_can_be_restored_and_what_is_not_there_is_left_out(module):
    wanted = shapes()
    del wanted["bias"]
    wanted["fresh"] = jax.ShapeDtypeStruct((1,), jnp.float32)
    assert list(read_parameters(StoreReader(module), wanted, "here")) == ["layers.kernel"]


def test_another_shape_is_refused(module):
    with pytest.raises(UserError, match=r"bias has shape \[5\], the config says \[6\]"):
        read_parameters(StoreReader(module), shapes(bias=((6,), jnp.float32)), "here")


def test_layers_are_read_one_at_a_time(module):
    reader = StoreReader(module)
    assert reader.names == ["bias", "layers.kernel"]
    np.testing.assert_array_equal(reader.read("layers.kernel", 1), LAYERS[1], strict=True)
    assert reader.dtype("layers.kernel") == LAYERS.dtype


def test_damage_is_an_error(module):
    chunk = module / "layers.kernel" / "1.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-3])
    with pytest.raises(UserError, match="damaged"):
        StoreReader(module).read("layers.kernel")
    (module / "bias" / ".zarray").unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        StoreReader(module).read("bias")


@pytest.mark.parametrize(
    ("shape", "stacked", "chunks"),
    [
        ((), False, []),
        ((5,), False, [5]),
        ((3, 5), True, [1, 5]),
        ((32, 4096, 11008), True, [1, CHUNK_BYTES // (2 * 11008), 11008]),
        ((32128, 4096), False, [CHUNK_BYTES // (2 * 4096), 4096]),
    ],
)
def test_a_chunk_is_a_layer_or_less(shape, stacked, chunks):
    assert _chunks(shape, 2, stacked) == chunks


def test_a_folder_without_a_manifest_or_of_another_format(tmp_path):
    with pytest.raises(UserError, match=r"no manifest\.json"):
        read_manifest(tmp_path)
    write_manifest(tmp_path, {"modules": {}})
    assert read_manifest(tmp_path)["modules"] == {}
    write_manifest(tmp_path, {"format": 99})
    with pytest.raises(UserError, match="format 99"):
        read_manifest(tmp_path)
    with pytest.raises(UserError, match="no stored arrays"):
        StoreReader(tmp_path)
