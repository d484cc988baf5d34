"""The registry of the model's parts by name: how each is built, its shapes, its random parameters."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
from flax import nnx

from seedstory_jax.config import ModelConfig
from seedstory_jax.models.parameters import (
    ModuleDef,
    Parameters,
    abstract_parameters,
    initial_parameters,
    jit_for_one_run,
    split_module,
    with_prefix,
)
from seedstory_jax.models.qwen_vit import QwenViT
from seedstory_jax.models.sdxl.detokenizer import Detokenizer
from seedstory_jax.models.sdxl.linear_skip import LinearSkipVAE
from seedstory_jax.models.sdxl.vae import VAE
from seedstory_jax.models.story_mllm import StoryMLLM

PARTS: dict[str, Callable[[ModelConfig], Callable[[nnx.Rngs], nnx.Module]]] = {
    "vit": lambda model: lambda rngs: QwenViT(model.vit, rngs=rngs),
    "vae": lambda model: lambda rngs: (LinearSkipVAE if model.vae.linear_skip else VAE)(model.vae, rngs=rngs),
    "detokenizer": lambda model: lambda rngs: Detokenizer(model.detokenizer, rngs=rngs),
    "story": lambda model: lambda rngs: StoryMLLM(model.story, rngs=rngs),
}


@cache  # every stage asks several times, and tracing a module's initialisers takes seconds
def _abstract(model: ModelConfig, part: str) -> tuple[ModuleDef, dict[str, jax.ShapeDtypeStruct]]:
    return abstract_parameters(PARTS[part](model))


def module_def(model: ModelConfig, part: str) -> ModuleDef:
    """The structure of one part."""
    return _abstract(model, part)[0]


def module_shapes(model: ModelConfig, part: str) -> dict[str, tuple[int, ...]]:
    """Every parameter's shape in one part by its path inside it; nothing is allocated."""
    return {path: tuple(leaf.shape) for path, leaf in _abstract(model, part)[1].items()}


def part_shapes(model: ModelConfig, part: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of one part's parameters, under its prefix ("story.llama.norm.scale")."""
    return with_prefix(part, _abstract(model, part)[1])


def build(model: ModelConfig, part: str, parameters: Mapping[str, Any]) -> Any:
    """The module of one part around its parameters (names with the part's prefix)."""
    names = module_def(model, part)
    return names.build({name: parameters[f"{part}.{name}"] for name in names.names})


def random_parameters(
    model: ModelConfig, part: str, seed: int, shapes: Mapping[str, jax.ShapeDtypeStruct] | None = None
) -> Parameters:
    """Random initial parameters of one part, under its prefix.

    With `shapes` those alone, each in the dtype and on the devices that its shape says; nothing else is ever computed.
    """
    key = jax.random.fold_in(jax.random.key(seed), list(PARTS).index(part))
    if shapes is None:
        return with_prefix(part, initial_parameters(PARTS[part](model), key))

    def initialise(key: jax.Array) -> Parameters:
        values = with_prefix(part, split_module(PARTS[part](model)(nnx.Rngs(key)))[1])
        return {name: values[name].astype(shape.dtype) for name, shape in shapes.items()}

    return jit_for_one_run(initialise, {name: shape.sharding for name, shape in shapes.items()})(key)
