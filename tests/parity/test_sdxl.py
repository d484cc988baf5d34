import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from seedstory_jax.parity.runner import compare, tolerance_of
from seedstory_jax.parity.sdxl import KINDS


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_array_of_the_fixture_agrees(kind, fixtures_dir):
    folder = fixtures_dir / kind
    config = json.loads((folder / "config.json").read_text())
    inputs, outputs = (dict(np.load(folder / f"{name}.npz")) for name in ("inputs", "outputs"))
    weights = folder / "weights.safetensors"
    with jax.default_matmul_precision("highest"):
        ours = KINDS[kind](folder, config, inputs, load_file(weights) if weights.exists() else {})
    results = {name: compare(ours[name], value, tolerance_of(kind, name)) for name, value in outputs.items()}
    assert {name: result for name, result in results.items() if not result.ok} == {}
    if kind == "sdxl_adapter":
        gradients = {name.removeprefix("train:grad:") for name in ours if name.startswith("train:grad:")}
        assert set(config["trainable_params"]) <= gradients
