"""`train.py`'s one function: the configured stages in order, each from what those before it left in the workdir."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from seedstory_jax.checkpoints.parts import TRAINED_BY, frozen_and_trained, load_parameters, trainable_names
from seedstory_jax.checkpoints.stage import latest_step, write_json
from seedstory_jax.config import Config, StageConfig, differing_keys, from_dict, to_dict
from seedstory_jax.distributed import first_process_first, on_host
from seedstory_jax.errors import UserError
from seedstory_jax.features.run_data import RunData
from seedstory_jax.models.parameters import Parameters
from seedstory_jax.sharding import make_mesh
from seedstory_jax.training.loop import Stage, run_stage
from seedstory_jax.training.stages.adapt import adapt_stage
from seedstory_jax.training.stages.detokenizer import detokenizer_stage
from seedstory_jax.training.stages.story import story_stage
from seedstory_jax.training.stages.visual_tokenizer import vae_stage, vit_stage

CONFIG_FILE = "config.json"
# What each stage reads besides its own section; a change in any of it is another run.
SHARED_SECTIONS = ("seed", "model", "data")
# May change between two runs of one stage: how often to look, where to compute.
RESUMABLE_KEYS = (
    "save_every",
    "keep",
    "log_every",
    "preview_every",
    "eval_every",
    "eval_batches",
    "on_nonfinite",
    "init_from",
)

PARTS_NEEDED: dict[str, tuple[str, ...]] = {
    "detokenizer": ("vit", "vae", "detokenizer"),
    "story": ("vit", "story"),
    "adapt": ("vit", "vae", "story", "detokenizer"),
}
ENCODERS = ("vit", "vae")  # frozen: they fill the caches that the stages read
MAKE: dict[str, Callable[[Config, RunData, Parameters], Stage]] = {
    "detokenizer": detokenizer_stage,
    "story": story_stage,
    "adapt": adapt_stage,
}


def train(config: Config, workdir: Path) -> None:
    """Runs `config.stages` in `workdir`; a stage that is done is passed over, one that was stopped goes on.

    Raises UserError if the workdir was begun with another config (naming the keys), Interrupted after SIGTERM.
    """
    mesh = make_mesh(config.mesh)
    run_data = RunData(config, workdir)
    with first_process_first("workdir"):
        workdir.mkdir(parents=True, exist_ok=True)
        claim(config, workdir)
        check_tokenizer(config, run_data)
    for name in config.stages:
        if name == "tokenizer":
            train_tokenizer(config, run_data, mesh)
            continue
        section: StageConfig = getattr(config, name)
        if latest_step(workdir / name) == section.steps:
            print(f"{name} is done ({section.steps} steps)", flush=True)
            continue
        parameters = stage_parameters(config, name, section, workdir, mesh)
        with first_process_first(name):  # it writes the caches
            stage = MAKE[name](config, run_data, parameters)
            # The encoders have done their work; previews alone ask for them again.
            parameters |= on_host({name: value for name, value in parameters.items() if is_encoder(name)})
        run_stage(stage, workdir, seed=config.seed, mesh=mesh, workers=config.data.workers, watch=config.watch)


def train_tokenizer(config: Config, run_data: RunData, mesh: Mesh) -> None:
    """The toy's two first steps: the VAE, then the ViT on its latents."""
    workdir = run_data.workdir
    if latest_step(workdir / "tokenizer_vit") == config.tokenizer.steps:
        print("tokenizer is done", flush=True)
        return
    if latest_step(workdir / "tokenizer_vae") != config.tokenizer.vae_steps:
        with first_process_first("tokenizer_vae"):
            stage = vae_stage(config, run_data)
        run_stage(stage, workdir, seed=config.seed, mesh=mesh)
    vae = load_parameters(config.model, ("vae",), workdir, seed=config.seed, before="tokenizer_vit")
    with first_process_first("tokenizer_vit"):
        stage = vit_stage(config, run_data, vae)
    run_stage(stage, workdir, seed=config.seed, mesh=mesh)


def stage_parameters(config: Config, stage: str, section: StageConfig, workdir: Path, mesh: Mesh) -> Parameters:
    """What a stage starts from, as its `init_from` says: its own parts on the mesh, the encoders on this process."""
    parts = PARTS_NEEDED[stage]
    own = frozen_and_trained(
        mesh, trainable_names(dict(TRAINED_BY)[stage], section.trainable), config.model.frozen_dtype
    )

    def layout(name: str, shape: Any) -> Any:
        return shape if is_encoder(name) else own(name, shape)

    if section.init_from == "none":
        nowhere = workdir / "none"
        return load_parameters(config.model, parts, nowhere, seed=config.seed, strict=False, layout=layout)
    origin = workdir if section.init_from == "previous" else Path(section.init_from)
    if not origin.is_dir():
        raise UserError(f"{stage}.init_from is {section.init_from!r}: no such folder; 'previous', 'none' or a workdir")
    before = stage if section.init_from == "previous" else None
    return load_parameters(config.model, parts, origin, seed=config.seed, before=before, layout=layout)


def is_encoder(name: str) -> bool:
    """Whether a parameter is of a part that only fills the caches."""
    return name.partition(".")[0] in ENCODERS


def claim(config: Config, workdir: Path) -> None:
    """Writes the config into a new workdir; in an old one, refuses a config that differs where it matters."""
    path = workdir / CONFIG_FILE
    new = to_dict(config)
    if path.exists():
        old = with_defaults(json.loads(path.read_text()))
        rows = differing_keys(
            {key: old.get(key) for key in SHARED_SECTIONS}, {key: new[key] for key in SHARED_SECTIONS}
        )
        for stage in {name for name, _ in TRAINED_BY} & {p.name for p in workdir.iterdir()}:
            section = stage.partition("_")[0]
            rows += [
                row
                for row in differing_keys({section: old.get(section)}, {section: new[section]})
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
