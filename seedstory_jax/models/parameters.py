"""Modules as data: a module taken apart into a static module_def and a flat dict of arrays, and put together again.

Everything outside the models (optimizer, checkpoints, sharding, conversion) handles parameters under dotted names,
"layers.self_attn.q_proj.kernel"; nnx objects exist only inside the functions that compute.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
from flax import nnx

Parameters = dict[str, Any]  # arrays by dotted name; where nothing is computed, their shapes


@dataclass(frozen=True)
class ModuleDef:
    """The structure of a module without its arrays; hashable, so it may be a static argument."""

    graphdef: nnx.GraphDef
    treedef: Any
    names: tuple[str, ...]

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Computed once: as a static argument it is asked for at every call."""
        return hash((self.graphdef, self.treedef, self.names))

    def build(self, parameters: Mapping[str, Any]) -> Any:
        """The module around `parameters`; raises KeyError for a name that is missing."""
        state = jax.tree.unflatten(self.treedef, [parameters[name] for name in self.names])
        return nnx.merge(self.graphdef, state)


def split_module(module: nnx.Module) -> tuple[ModuleDef, dict[str, Any]]:
    """The module's module_def and its parameters by dotted name."""
    graphdef, state = nnx.split(module)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
    parameters = {dotted_name(path): leaf for path, leaf in leaves}
    return ModuleDef(graphdef, treedef, tuple(parameters)), parameters


def dotted_name(path: tuple[Any, ...]) -> str:
    """jax's key path as a dotted name, without the step from a Variable to its value."""
    parts = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    if parts and parts[-1] in ("value", "raw_value"):
        parts = parts[:-1]
    return ".".join(parts)


def abstract_parameters(make: Callable[[nnx.Rngs], nnx.Module]) -> tuple[ModuleDef, dict[str, jax.ShapeDtypeStruct]]:
    """ModuleDef and shapes of `make(rngs)` without allocating anything."""
    return split_module(nnx.eval_shape(lambda: make(nnx.Rngs(0))))


def initial_parameters(make: Callable[[nnx.Rngs], nnx.Module], key: jax.Array, shardings: Any = None) -> Parameters:
    """Freshly drawn parameters of `make(rngs)`, computed under jit, each where `shardings[name]` says."""
    return jit_for_one_run(lambda key: split_module(make(nnx.Rngs(key)))[1], shardings)(key)


def jit_for_one_run(function: Callable[..., Any], out_shardings: Any = None) -> Callable[..., Any]:
    """jax.jit of what runs once, such as initialisers: on CPUs compiled in a third of the time, to run slower."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(function, out_shardings=out_shardings, compiler_options=options)


def with_prefix(prefix: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Every name as "prefix.name"."""
    return {f"{prefix}.{name}": value for name, value in parameters.items()}


def under_prefix(prefix: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters below "prefix.", without it."""
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in parameters.items() if name.startswith(start)}
