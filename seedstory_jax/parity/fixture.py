"""Fixtures: folders that hold numbers of the original PyTorch code, one module each.

A folder is named after its kind and holds `config.json` (constructor arguments under the original's names),
`inputs.npz`, `outputs.npz` and `weights.safetensors` (tensors under their published names); kinds without parameters
have no weights, `story_sample` has stories, images and a tokenizer in place of inputs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seedstory_jax.errors import UserError

Arrays = Mapping[str, Any]  # numpy or jax arrays by name
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Fixture:
    """One folder without its outputs: what a run of our module needs."""

    folder: Path
    config: Mapping[str, Any]
    inputs: Arrays
    weights: Arrays

    def sibling(self, name: str) -> "Fixture":
        """The fixture of that name in the same folder of fixtures."""
        return read_fixture(self.folder.parent / name)


def read_fixture(folder: Path, weights: str = WEIGHTS) -> Fixture:
    """Reads one folder, with another file of weights if it is named. Raises UserError if a file cannot be read."""
    from safetensors.numpy import load_file

    tensors = folder / weights
    try:
        config = json.loads((folder / "config.json").read_text())
        inputs = _arrays(folder / "inputs.npz") if (folder / "inputs.npz").exists() else {}
        return Fixture(folder, config, inputs, load_file(tensors) if tensors.exists() else {})
    except Exception as error:  # json, zip, numpy and safetensors each raise their own
        raise _unreadable(folder, error) from error


def read_outputs(folder: Path) -> dict[str, np.ndarray]:
    """The original's numbers. Raises UserError if the file cannot be read."""
    try:
        return _arrays(folder / "outputs.npz")
    except Exception as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: Exception) -> UserError:
    return UserError(f"{folder}: cannot be read as a fixture: {error}")


def _arrays(file: Path) -> dict[str, np.ndarray]:
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
        return dict(arrays)
