import numpy as np
import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.parity.fixture import read_fixture, read_outputs


def test_reads_what_is_there(write_fixture):
    folder = write_fixture("thing", {"y": np.ones(3)}, {"size": 3}, {"x": np.arange(2)}, weights={"w": np.ones((2, 2))})
    fixture = read_fixture(folder)
    assert fixture.config == {"size": 3} and fixture.inputs["x"].tolist() == [0, 1]
    assert fixture.weights["w"].shape == (2, 2) and read_outputs(folder)["y"].shape == (3,)
    (folder / "inputs.npz").unlink()
    (folder / "weights.safetensors").unlink()
    assert not read_fixture(folder).inputs and not read_fixture(folder).weights


def test_a_sibling_lies_beside_it(write_fixture):
    write_fixture("other", {}, {"size": 7})
    fixture = read_fixture(write_fixture("thing", {}))
    assert fixture.sibling("other").config == {"size": 7}
    with pytest.raises(UserError, match="nowhere: cannot be read as a fixture"):
        fixture.sibling("nowhere")


@pytest.mark.parametrize("name", ["config.json", "inputs.npz", "weights.safetensors"])
def test_a_damaged_file_is_one_line(write_fixture, name):
    folder = write_fixture("thing", {"y": np.ones(3)}, weights={"w": np.ones(2)})
    (folder / name).write_bytes((folder / name).read_bytes()[:-1] if name != "config.json" else b"{")
    with pytest.raises(UserError, match="thing: cannot be read as a fixture"):
        read_fixture(folder)


def test_outputs_must_be_there(write_fixture):
    folder = write_fixture("thing", {"y": np.ones(3)})
    (folder / "outputs.npz").unlink()
    with pytest.raises(UserError, match="thing: cannot be read as a fixture"):
        read_outputs(folder)
