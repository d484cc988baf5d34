"""Which parameters a stage trains: named sets of patterns over dotted names."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from seedstory_jax.config import nearest
from seedstory_jax.errors import UserError
from seedstory_jax.sharding import parameter_shardings

# A parameter trains if the set's pattern matches its whole name inside the part. Position tables never do.
FIXED = re.compile(r"(.*\.)?pos_embed")
EVERYTHING = r".*"
TRAINABLE: dict[str, dict[str, str]] = {
    "vae": {"all": EVERYTHING},
    "vit": {"all": EVERYTHING},
    "detokenizer": {
        "released": r"perceiver\..*|unet\..*\.to_[kv]\.kernel",
        "paper": EVERYTHING,
        "all": EVERYTHING,
    },
    "story": {
        # LoRA, the norms, the whole embedding and head, both resamplers.
        "released": r"llama\..*(\.lora_[ab]|norm\.scale)|llama\.(embed_tokens\.embedding|lm_head\.kernel)"
        r"|\w+_resampler\..*",
        # The paper names LoRA alone inside the LLM; its rank is the model config's.
        "paper": r"llama\..*\.lora_[ab]|llama\.(embed_tokens\.embedding|lm_head\.kernel)|\w+_resampler\..*",
        "all": EVERYTHING,
    },
}


def trainable_names(part: str, chosen: str) -> Callable[[str], bool]:
    """Whether a full name ("story.llama.norm.scale") trains under the set `chosen`; UserError for an unknown set."""
    sets = TRAINABLE[part]
    if chosen not in sets:
        raise UserError(f"unknown trainable set {chosen!r} for {part}: {nearest(chosen, list(sets))}")
    trains = re.compile(sets[chosen])

    def matches(name: str) -> bool:
        head, _, rest = name.partition(".")
        return head == part and trains.fullmatch(rest) is not None and FIXED.fullmatch(rest) is None

    return matches


def training_layout(
    mesh: Mesh, trains: Callable[[str], bool], frozen_dtype: str
) -> Callable[[str, Any], jax.ShapeDtypeStruct]:
    """The layout of a stage's parameters on a mesh: by the partition rules, float32 where they train, else frozen."""

    def layout(name: str, shape: Any) -> jax.ShapeDtypeStruct:
        dtype = jnp.float32 if trains(name) else jnp.dtype(frozen_dtype)
        at = parameter_shardings(mesh, {name: shape})[name]
        return jax.ShapeDtypeStruct(shape.shape, dtype, sharding=at)

    return layout
