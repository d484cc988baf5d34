"""The system's parts by name, where their parameters come from, and which of them a stage trains."""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from seedstory_jax.config import ModelConfig, nearest
from seedstory_jax.errors import UserError
from seedstory_jax.models.parameters import (
    Blueprint,
    Parameters,
    abstract_parameters,
    initial_parameters,
    jit_for_one_run,
    take_apart,
    under_prefix,
    with_prefix,
)
from seedstory_jax.models.qwen_vit import QwenViT
from seedstory_jax.models.sdxl.detokenizer import Detokenizer
from seedstory_jax.models.sdxl.vae import VAE
from seedstory_jax.models.story_mllm import StoryMLLM
from seedstory_jax.sharding import parameter_shardings
from seedstory_jax.training.checkpoint import BEST, latest_step, load_trained

PARTS: dict[str, Callable[[ModelConfig], Callable[[nnx.Rngs], nnx.Module]]] = {
    "vit": lambda model: lambda rngs: QwenViT(model.vit, rngs=rngs),
    "vae": lambda model: lambda rngs: VAE(model.vae, rngs=rngs),
    "detokenizer": lambda model: lambda rngs: Detokenizer(model.detokenizer, rngs=rngs),
    "story": lambda model: lambda rngs: StoryMLLM(model.story, rngs=rngs),
}
# Which stage trains which part, in the order of training; a later one goes on from an earlier one's result.
TRAINED_BY = (
    ("tokenizer_vae", "vae"),
    ("tokenizer_vit", "vit"),
    ("detokenizer", "detokenizer"),
    ("story", "story"),
    ("adapt", "detokenizer"),
)

# Trainable sets (design, section 1): a parameter trains if its whole name matches. Position tables never do.
FIXED = r"(.*\.)?pos_embed"
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
        # LoRA, the norms, the whole embedding and head (one table if they are tied), both resamplers.
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
    trains, fixed = re.compile(sets[chosen]), re.compile(FIXED)

    def matches(name: str) -> bool:
        head, _, rest = name.partition(".")
        return head == part and trains.fullmatch(rest) is not None and fixed.fullmatch(rest) is None

    return matches


@cache  # every stage asks several times, and tracing a module's initialisers takes seconds
def _abstract(model: ModelConfig, part: str) -> tuple[Blueprint, dict[str, jax.ShapeDtypeStruct]]:
    return abstract_parameters(PARTS[part](model))


def blueprint(model: ModelConfig, part: str) -> Blueprint:
    """The structure of one part."""
    return _abstract(model, part)[0]


def build(model: ModelConfig, part: str, parameters: Mapping[str, Any]) -> Any:
    """The module of one part around its parameters (names with the part's prefix)."""
    names = blueprint(model, part)
    return names.build({name: parameters[f"{part}.{name}"] for name in names.names})


def random_parameters(
    model: ModelConfig, part: str, seed: int, shapes: Mapping[str, jax.ShapeDtypeStruct] | None = None
) -> Parameters:
    """Freshly drawn parameters of one part, under its prefix.

    With `shapes` those alone, each in the dtype and on the devices that its shape says; nothing else is ever computed.
    """
    key = jax.random.fold_in(jax.random.key(seed), list(PARTS).index(part))
    if shapes is None:
        return with_prefix(part, initial_parameters(PARTS[part](model), key))

    def draw(key: jax.Array) -> Parameters:
        drawn = with_prefix(part, take_apart(PARTS[part](model)(nnx.Rngs(key)))[1])
        return {name: drawn[name].astype(shape.dtype) for name, shape in shapes.items()}

    return jit_for_one_run(draw, {name: shape.sharding for name, shape in shapes.items()})(key)


def part_shapes(model: ModelConfig, part: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one part's parameters, under its prefix."""
    return with_prefix(part, _abstract(model, part)[1])


def load_parameters(
    model: ModelConfig,
    parts: Iterable[str],
    workdir: Path,
    *,
    seed: int,
    before: str | None = None,
    strict: bool = True,
    layout: Callable[[str, Any], jax.ShapeDtypeStruct] | None = None,
    checkpoint: str = "newest",
) -> Parameters:
    """Parameters of `parts`: what the stages in `workdir` trained, over the base weights (or random ones).

    `before`: only stages that come before this one count. `layout(name, shape)` gives dtype and sharding that each is
    read or drawn into, so that no device ever holds more than its share; without it, float32 on this process's first
    device. With checkpoint="best" a stage that was evaluated gives what did best on held-out stories. Raises UserError
    (with `strict`) for a part that no stage has trained though one should have, and that has no base weights.
    """
    stages = [stage for stage, _ in TRAINED_BY]
    stages = stages[: stages.index(before)] if before else stages
    parameters: Parameters = {}
    for part in parts:
        trainers = [stage for stage in stages if dict(TRAINED_BY)[stage] == part]
        done = [stage for stage in trainers if latest_step(workdir / stage) is not None]
        base = _base_of(model, part)
        if strict and trainers and not done and base is None:
            raise UserError(
                f"{workdir} has no trained {part}: run train.py with this workdir and the stage that trains it "
                f"({trainers[0]}), give converted weights as model.base, or set init_from=none for random ones"
            )
        shapes = part_shapes(model, part)
        if layout is not None:
            shapes = {name: layout(name, shape) for name, shape in shapes.items()}
        found: Parameters = {}
        for stage in done:
            # A stage's checkpoint may hold helpers of its own (the tokenizer stage's heads) beside the part.
            folder, best = workdir / stage, workdir / stage / BEST
            kept_best = checkpoint == "best" and latest_step(best) is not None
            found |= load_trained(best if kept_best else folder, shapes, prefix=f"{part}.")
        if base is not None and len(found) < len(shapes):
            found |= _load_base(base, part, {name: shapes[name] for name in shapes if name not in found})
        # Whatever else there is starts fresh: a bare LLaMA has no adapters and no resamplers.
        fresh = {name: shapes[name] for name in shapes if name not in found}
        if fresh:
            found |= random_parameters(model, part, seed, fresh)
        parameters |= found
    return parameters


def _base_of(model: ModelConfig, part: str) -> Path | None:
    """The base's folder, if there is a base and it speaks of this part (a bare language model does not of the ViT)."""
    from seedstory_jax.convert.smollm2 import resolve
    from seedstory_jax.convert.store import MANIFEST, read_manifest

    base = resolve(model.base) if model.base else None
    converted = base is not None and (base / MANIFEST).is_file()
    return None if converted and part not in read_manifest(base)["modules"] else base


def _load_base(base: Path, part: str, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Parameters:
    """What `shapes` asks for of one part and the base, a converted model or the workdir of another run, has."""
    from seedstory_jax.convert.store import restore_module

    wanted = under_prefix(part, shapes)
    is_run = (base / "config.json").is_file()
    return with_prefix(part, _restore_run(base, part, wanted) if is_run else restore_module(base / part, wanted))


def _restore_run(base: Path, part: str, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Parameters:
    """What another run's stages trained of a part, each array read once and laid out as its shape says."""
    from seedstory_jax.convert.trained import open_workdir

    reader = open_workdir(base).modules.get(part)
    if reader is None:
        raise UserError(f"model.base={base} is a run without a trained {part}: train it there first")
    held, found = set(reader.names), {}
    for name, shape in shapes.items():
        if name not in held:
            continue
        if reader.shape(name) != tuple(shape.shape):
            raise UserError(
                f"model.base={base}: {part}.{name} has shape {list(reader.shape(name))}, the config says "
                f"{list(shape.shape)}; sizes must be those of the base"
            )
        value = np.asarray(reader.read(name)).astype(shape.dtype)
        sharding = shape.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        found[name] = jax.make_array_from_callback(shape.shape, sharding, value.__getitem__)
    return found


def frozen_and_trained(
    mesh: Mesh, trains: Callable[[str], bool], frozen_dtype: str
) -> Callable[[str, Any], jax.ShapeDtypeStruct]:
    """The layout of a stage's own parameters: by the partition rules, float32 where they train, else `frozen_dtype`."""

    def layout(name: str, shape: Any) -> jax.ShapeDtypeStruct:
        dtype = jnp.float32 if trains(name) else jnp.dtype(frozen_dtype)
        at = parameter_shardings(mesh, {name: shape})[name]
        return jax.ShapeDtypeStruct(shape.shape, dtype, sharding=at)

    return layout
