"""Where `model.base` lies: a path, or the name of a model that is converted once into the user's cache."""

import os
from pathlib import Path

CACHE_VARIABLE = "SEEDSTORY_CACHE"
NAMED = {"smollm2": "smollm2-b179c9523d0e-1"}  # name -> folder in the cache: file's SHA-256, format


def base_folder(base: str) -> Path:
    """The folder that `model.base` means; `convert.smollm2.prepare` fills a named one."""
    return cache_folder() / NAMED[base] if base in NAMED else Path(base)


def cache_folder() -> Path:
    """Folder of converted named models: $SEEDSTORY_CACHE, else below the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "seedstory_jax"
