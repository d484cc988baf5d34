"""Names of the files in a run's workdir, and the run's config."""

import json
from pathlib import Path

from seedstory_jax.config import Config, from_dict
from seedstory_jax.errors import UserError

CONFIG_FILE = "config.json"
SHARED_SECTIONS = ("seed", "model", "data")  # of the config, which every stage reads; a change makes another run
WORLD, TOKENIZER, CACHE = "world", "text_tokenizer", "cache"  # of the toy: its stories, their tokenizer; decoded images
CHECKPOINTS = "checkpoints"  # below a stage's folder; one folder a step, with the items below
TRAINED, OPTIMIZER, FACTS = "trained", "optimizer", "facts"
BEST = "best"  # below a stage's folder: what did best on held-out stories


def is_run(folder: Path) -> bool:
    """Whether `train.py` began a run in this folder."""
    return (folder / CONFIG_FILE).is_file()


def read_config(workdir: Path) -> Config:
    """The config that a run was begun with. Raises UserError if it is damaged or another version's."""
    path = workdir / CONFIG_FILE
    try:
        return from_dict(Config, json.loads(path.read_text()))
    except (OSError, ValueError, UserError) as error:
        raise UserError(
            f"{path} cannot be used ({error}): it is from another version or damaged; train anew"
        ) from error


def committed_steps(folder: Path) -> list[int]:
    """The steps whose checkpoints below a stage's folder are complete, newest first; Orbax renames what is complete."""
    root = folder / CHECKPOINTS
    return sorted((int(path.name) for path in root.glob("*") if path.name.isdigit()), reverse=True)


def latest_step(folder: Path) -> int | None:
    """The newest committed step below a stage's folder, None without any."""
    return next(iter(committed_steps(folder)), None)


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies below a stage's folder."""
    return folder / CHECKPOINTS / str(step)
