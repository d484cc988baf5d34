import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def precise():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="session")
def original():
    """The published modules in torch."""
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("original", Path(__file__).parent / "original.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _array(value):
    array = np.asarray(value.detach() if hasattr(value, "detach") else value)
    return array.astype({"int64": np.int32, "float64": np.float32}.get(array.dtype.name, array.dtype))


@pytest.fixture
def write_fixture(tmp_path):
    """Writes a fixture folder of arrays (numpy's or torch's): `write_fixture(kind, outputs, ...)` -> its path."""

    def write(kind, outputs, config=None, inputs=None, **weights):
        from safetensors.numpy import save_file

        folder = tmp_path / kind
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config or {}))
        np.savez(folder / "inputs.npz", **{name: _array(value) for name, value in (inputs or {}).items()})
        np.savez(folder / "outputs.npz", **{name: _array(value) for name, value in outputs.items()})
        for name, tensors in weights.items():
            tensors = {key: np.ascontiguousarray(_array(value)) for key, value in tensors.items()}
            save_file(tensors, folder / f"{name}.safetensors")
        return folder

    return write
