"""`train.py`'s one function: the configured stages in order, each from what those before it left in the workdir."""

import json
from collections.abc import Callable
from pathlib import Path

import jax

from seedstory_jax.config import Config, StageConfig, differing_keys, to_dict
from seedstory_jax.errors import UserError
from seedstory_jax.models.parameters import Parameters
from seedstory_jax.sharding import make_mesh
from seedstory_jax.training.adapt import adapt_stage
from seedstory_jax.training.checkpoint import latest_step, write_json
from seedstory_jax.training.detokenizer import detokenizer_stage
from seedstory_jax.training.loop import Stage, run_stage
from seedstory_jax.training.parts import TRAINED_BY, cast_frozen, load_parameters
from seedstory_jax.training.story import story_stage
from seedstory_jax.training.tokenizer import vae_stage, vit_stage
from seedstory_jax.training.workspace import Workspace

CONFIG_FILE = "config.json"
# What each stage reads besides its own section; a change in any of it is another run.
SHARED_SECTIONS = ("seed", "model", "data")
# May change between two runs of one stage: how often to look, where to compute.
FREE_KEYS = ("save_every", "keep", "log_every", "preview_every", "on_nonfinite", "init_from")

PARTS_NEEDED: dict[str, tuple[str, ...]] = {
    "detokenizer": ("vit", "vae", "detokenizer"),
    "story": ("vit", "story"),
    "adapt": ("vit", "vae", "story", "detokenizer"),
}
MAKE: dict[str, Callable[[Config, Workspace, Parameters], Stage]] = {
    "detokenizer": detokenizer_stage,
    "story": story_stage,
    "adapt": adapt_stage,
}


def train(config: Config, workdir: Path) -> None:
    """Runs `config.stages` in `workdir`; a stage that is done is passed over, one that was stopped goes on.

    Raises UserError if the workdir was begun with another config (naming the keys), Interrupted after SIGTERM.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    claim(config, workdir)
    mesh = make_mesh(config.mesh)
    workspace = Workspace(config, workdir)
    check_tokenizer(config, workspace)
    for name in config.stages:
        if name == "tokenizer":
            train_tokenizer(config, workspace, mesh)
            continue
        section: StageConfig = getattr(config, name)
        if latest_step(workdir / name) == section.steps:
            print(f"{name} is done ({section.steps} steps)", flush=True)
            continue
        parameters = stage_parameters(config, name, section, workdir)
        stage = MAKE[name](config, workspace, parameters)
        stage.parameters.update(cast_frozen(stage.parameters, stage.trainable, config.model.frozen_dtype))
        run_stage(stage, workdir, seed=config.seed, mesh=mesh)


def train_tokenizer(config: Config, workspace: Workspace, mesh: jax.sharding.Mesh) -> None:
    """The toy's two first steps: the VAE, then the ViT on its latents."""
    workdir = workspace.workdir
    if latest_step(workdir / "tokenizer_vit") == config.tokenizer.steps:
        print("tokenizer is done", flush=True)
        return
    if latest_step(workdir / "tokenizer_vae") != config.tokenizer.vae_steps:
        run_stage(vae_stage(config, workspace), workdir, seed=config.seed, mesh=mesh)
    vae = load_parameters(config.model, ("vae",), workdir, seed=config.seed, before="tokenizer_vit")
    run_stage(vit_stage(config, workspace, vae), workdir, seed=config.seed, mesh=mesh)


def stage_parameters(config: Config, stage: str, section: StageConfig, workdir: Path) -> Parameters:
    """What a stage starts from, as its `init_from` says."""
    parts = PARTS_NEEDED[stage]
    if section.init_from == "none":
        return load_parameters(config.model, parts, workdir / "none", seed=config.seed, strict=False)
    origin = workdir if section.init_from == "previous" else Path(section.init_from)
    if not origin.is_dir():
        raise UserError(f"{stage}.init_from is {section.init_from!r}: no such folder; 'previous', 'none' or a workdir")
    before = stage if section.init_from == "previous" else None
    return load_parameters(config.model, parts, origin, seed=config.seed, before=before)


def claim(config: Config, workdir: Path) -> None:
    """Writes the config into a new workdir; in an old one, refuses a config that differs where it matters."""
    path = workdir / CONFIG_FILE
    new = to_dict(config)
    if path.exists():
        old = json.loads(path.read_text())
        rows = differing_keys(
            {key: old.get(key) for key in SHARED_SECTIONS}, {key: new[key] for key in SHARED_SECTIONS}
        )
        for stage in {name for name, _ in TRAINED_BY} & {p.name for p in workdir.iterdir()}:
            section = stage.partition("_")[0]
            rows += [
                row
                for row in differing_keys({section: old.get(section)}, {section: new[section]})
                if row.partition(":")[0].rpartition(".")[2] not in FREE_KEYS
            ]
        if rows:
            shown = "; ".join(sorted(set(rows))[:5])
            raise UserError(
                f"{workdir} was begun with another config ({len(set(rows))} keys differ: {shown}); "
                "use another --workdir, or the config it was begun with"
            )
    write_json(path, new)


def check_tokenizer(config: Config, workspace: Workspace) -> None:
    """Raises UserError if the vocabulary of the text tokenizer is not the model's."""
    found, wanted = len(workspace.tokenizer), config.model.story.llama.vocab_size
    if found > wanted:
        raise UserError(
            f"the tokenizer has {found} tokens, model.story.llama.vocab_size is {wanted}; set it to {found}"
        )
