"""Parameters of a run, each array read once and straight into the dtype and sharding in which it is used."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from seedstory_jax.checkpoints.parts import part_shapes, random_parameters
from seedstory_jax.checkpoints.readers import NEWEST, LayeredReader, Reader, layers_of
from seedstory_jax.config import STAGES, ModelConfig
from seedstory_jax.errors import UserError
from seedstory_jax.models.parameters import Parameters, under_prefix, with_prefix

Layout = Callable[[str, jax.ShapeDtypeStruct], jax.ShapeDtypeStruct]
"""(name, shape) -> the same with the dtype and the sharding that the parameter shall have."""


def load_parameters(
    model: ModelConfig,
    parts: Iterable[str],
    workdir: Path,
    *,
    seed: int,
    stages: Sequence[str] = STAGES,
    may_be_random: Iterable[str] = (),
    trained_by: Mapping[str, str] | None = None,
    layout: Layout | None = None,
    checkpoint: str = NEWEST,
) -> Parameters:
    """Parameters of `parts`, under their prefixes: what `stages` trained in `workdir`, over the base, over random ones.

    Args:
        model: the model's sizes, and its base.
        parts: which parts.
        workdir: the run.
        seed: of what is stored nowhere.
        stages: those that count, in the order of training.
        may_be_random: parts that need be stored nowhere.
        trained_by: the stage that trains a part, for the message where it is not stored.
        layout: dtype and sharding of each, so that no device ever holds more than its share; without it as the model
            says, on this process's first device.
        checkpoint: "newest", or "best" of the stages that were evaluated.

    Raises UserError for a part that must be stored and is not, names that the model has not, and other shapes.
    """
    parts = list(parts)
    layers = layers_of(model, parts, workdir, stages=stages, which=checkpoint)
    parameters: Parameters = {}
    for part in parts:
        shapes = part_shapes(model, part)
        if layout is not None:
            shapes = {name: layout(name, shape) for name, shape in shapes.items()}
        if part not in layers and part not in may_be_random:
            raise UserError(
                f"{workdir} has no trained {part}: run train.py with this workdir and the stage that trains it "
                f"({(trained_by or {}).get(part, part)}), give converted weights as model.base, or set "
                "init_from=none for random ones"
            )
        stored = LayeredReader(layers.get(part, ()))
        where = f"{workdir} over {model.base}" if model.base else str(workdir)
        unknown = [name for name in stored.names if f"{part}.{name}" not in shapes]
        if unknown:
            raise UserError(
                f"{where}: {len(unknown)} stored parameters of {part} are not in this config, {unknown[:3]} for "
                "example; use the config it was trained with"
            )
        found = with_prefix(part, read_parameters(stored, under_prefix(part, shapes), f"{where}: {part}"))
        # Whatever else there is starts fresh: a bare LLaMA has no adapters and no resamplers.
        fresh = {name: shape for name, shape in shapes.items() if name not in found}
        parameters |= found | (random_parameters(model, part, seed, fresh) if fresh else {})
    return parameters


def read_parameters(stored: Reader, shapes: Mapping[str, jax.ShapeDtypeStruct], where: str) -> Parameters:
    """The arrays of one part that `shapes` asks for and are stored, in its dtypes and shardings.

    Raises UserError, which says `where`, for an array of another shape, before any is read.
    """
    held = [name for name in stored.names if name in shapes]
    for name in held:
        have, want = stored.shape(name), tuple(shapes[name].shape)
        if have != want:
            raise UserError(
                f"{where}.{name} has shape {list(have)}, the config says {list(want)}; sizes must be those of the "
                "stored model"
            )
    return {name: _read(stored, name, shapes[name]) for name in held}


def _read(stored: Reader, name: str, shape: jax.ShapeDtypeStruct) -> jax.Array:
    pieces: dict[tuple[slice, ...], np.ndarray] = {}  # devices that share a piece share its reading

    def piece(index: tuple[slice, ...]) -> np.ndarray:
        key = tuple((part.start, part.stop, part.step) for part in index)
        if key not in pieces:
            pieces[key] = np.asarray(stored.read(name, index), shape.dtype)
        return pieces[key]

    sharding = shape.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.make_array_from_callback(shape.shape, sharding, piece)
