"""The registry of training stages; a new one is a file here, and a section of `config.Config`."""

from seedstory_jax.config import STAGES as NAMES
from seedstory_jax.training.stage import StageSpec
from seedstory_jax.training.stages import adapt, detokenizer, story, vae, vit

_SPECS = {module.SPEC.name: module.SPEC for module in (vae, vit, detokenizer, story, adapt)}
STAGES: dict[str, StageSpec] = {name: _SPECS[name] for name in NAMES}
"""Every stage by name, in the order of training."""
