"""Runs the configured stages in order; each starts from the previous stages' checkpoints."""

import contextlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from seedstory_jax.checkpoints.layout import CONFIG_FILE, SHARED_SECTIONS, checkpoint_folder, latest_step
from seedstory_jax.checkpoints.load import load_parameters
from seedstory_jax.checkpoints.readers import check_digest
from seedstory_jax.config import STAGES as NAMES
from seedstory_jax.config import Config, differing_keys, from_dict, to_dict
from seedstory_jax.convert.smollm2 import prepare
from seedstory_jax.distributed import first_process_first, on_host
from seedstory_jax.errors import UserError
from seedstory_jax.features.run_data import RunData
from seedstory_jax.files import read_json, write_json
from seedstory_jax.locks import owned
from seedstory_jax.models.parameters import Parameters
from seedstory_jax.sharding import make_mesh
from seedstory_jax.training.loop import run_stage
from seedstory_jax.training.stage import StageSpec
from seedstory_jax.training.stages import STAGES
from seedstory_jax.training.trainable import trainable_names, training_layout

# May change between two runs of one stage: how often to look, where to compute.
RESUMABLE_KEYS = (
    "save_every",
    "keep",
    "log_every",
    "preview_every",
    "eval_every",
    "eval_batches",
    "on_nonfinite",
    "max_skipped",
    "init_from",
)


def train(config: Config, workdir: Path) -> None:
    """Runs `config.stages` in `workdir`; a stage that is done is passed over, one that was stopped goes on.

    Raises UserError if the workdir was begun with another config (naming the keys) or another run is at work in it,
    Interrupted after a signal to stop.
    """
    with owned(workdir, by="train") if jax.process_index() == 0 else contextlib.nullcontext():
        _train(config, workdir)


def _train(config: Config, workdir: Path) -> None:
    mesh = make_mesh(config.mesh)
    run_data = RunData(config, workdir)
    with first_process_first("workdir"):
        prepare(config.model.base)
        workdir.mkdir(parents=True, exist_ok=True)
        check_or_write_config(config, workdir)
        check_tokenizer(config, run_data)
    for name in config.stages:
        spec, steps = STAGES[name], getattr(config, name).steps
        if is_done(workdir / name, steps):
            print(f"{name} is done ({steps} steps)", flush=True)
            continue
        parameters = stage_parameters(config, spec, workdir, mesh)
        with first_process_first(name):  # it writes the caches
            stage = spec.make(config, run_data, parameters)
            # The encoders have done their work; previews alone ask for them again.
            parameters |= on_host({key: value for key, value in parameters.items() if _is_of(key, spec.encoders)})
        run_stage(stage, workdir, seed=config.seed, mesh=mesh, workers=config.data.workers, watch=config.watch)


def is_done(folder: Path, steps: int) -> bool:
    """Whether a stage's last checkpoint is there and whole; a damaged one is trained and saved again."""
    if latest_step(folder) != steps:
        return False
    try:
        check_digest(checkpoint_folder(folder, steps))
    except UserError:
        return False
    return True


def stage_parameters(config: Config, spec: StageSpec, workdir: Path, mesh: Mesh) -> Parameters:
    """What a stage starts from, as its `init_from` says: its own parts on the mesh, the encoders on this process."""
    section = getattr(config, spec.name)
    own = training_layout(mesh, trainable_names(spec.trains, section.trainable), config.model.frozen_dtype)

    def layout(name: str, shape: Any) -> Any:
        if not _is_of(name, spec.encoders):
            return own(name, shape)
        online = config.data.features == "online" and name.startswith("vit.")  # the VAE stays in float32
        return jax.ShapeDtypeStruct(shape.shape, jnp.dtype(config.model.frozen_dtype) if online else shape.dtype)

    options: dict[str, Any] = {"seed": config.seed, "layout": layout}
    if section.init_from == "none":
        return load_parameters(
            config.model, spec.needs, workdir / "none", stages=(), may_be_random=spec.needs, **options
        )
    own_workdir = section.init_from == "previous"
    origin = workdir if own_workdir else Path(section.init_from)
    if not origin.is_dir():
        raise UserError(
            f"{spec.name}.init_from is {section.init_from!r}: no such folder; 'previous', 'none' or a workdir"
        )
    before = NAMES[: NAMES.index(spec.name)] if own_workdir else NAMES
    trained_by = {STAGES[name].trains: name for name in reversed(before)}
    begins = [part for part in spec.needs if part not in trained_by]
    return load_parameters(
        config.model, spec.needs, origin, stages=before, may_be_random=begins, trained_by=trained_by, **options
    )


def _is_of(name: str, parts: tuple[str, ...]) -> bool:
    return name.partition(".")[0] in parts


def check_or_write_config(config: Config, workdir: Path) -> None:
    """Writes the config into a new workdir; in an old one, refuses a config that differs where it matters."""
    path = workdir / CONFIG_FILE
    new = to_dict(config)
    if path.exists():
        old = with_defaults(read_json(path))
        rows = differing_keys(
            {key: old.get(key) for key in SHARED_SECTIONS}, {key: new[key] for key in SHARED_SECTIONS}
        )
        for stage in (name for name in NAMES if (workdir / name).is_dir()):
            rows += [
                row
                for row in differing_keys({stage: old.get(stage)}, {stage: new[stage]})
                if row.partition(":")[0].rpartition(".")[2] not in RESUMABLE_KEYS
            ]
        if rows:
            shown = "; ".join(sorted(set(rows))[:5])
            raise UserError(
                f"{workdir} was begun with another config ({len(set(rows))} keys differ: {shown}); "
                "use another --workdir, or the config it was begun with"
            )
    write_json(path, new)


def with_defaults(old: dict[str, Any]) -> dict[str, Any]:
    """A stored config with what keys that are younger than it default to."""
    try:
        return to_dict(from_dict(Config, old))
    except UserError:  # a key that is no more: shown as a difference
        return old


def check_tokenizer(config: Config, run_data: RunData) -> None:
    """Raises UserError if the vocabulary of the text tokenizer is not the model's."""
    found, wanted = len(run_data.tokenizer), config.model.story.llama.vocab_size
    if found > wanted:
        raise UserError(
            f"the tokenizer has {found} tokens, model.story.llama.vocab_size is {wanted}; set it to {found}"
        )
