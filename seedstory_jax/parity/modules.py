"""Modules with published weights, run as they are in production, and the values inside them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from seedstory_jax.convert.rules import Rule, load_tensors
from seedstory_jax.parity.fixture import Fixture


def loaded(make: Any, config: Any, fixture: Fixture, rules: Sequence[Rule], *, ignore: Sequence[str] = ()) -> Any:
    """The module `make(config)`, its parameters read from a fixture's weights as a real checkpoint's are.

    Raises WeightsError, which names the fixture, if tensors are missing, left over or of another shape.
    """
    module = nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(0)))  # initialising it first would take the longest
    load_tensors(module, fixture.weights, rules, ignore=ignore, what=fixture.folder.name)
    return module


def under_jit(module: nnx.Module, function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(module, *arguments)` as one program; run operation by operation it would compile each of them."""
    graph, state = nnx.split(module)
    return jax.jit(lambda state, *arguments: function(nnx.merge(graph, state), *arguments))(state, *arguments)


def module_outputs(call: Callable[..., Any], *arguments: Any) -> tuple[Any, dict[str, Any]]:
    """Result of a module (or of a method of it), and what every module and public method inside returned.

    The names are paths: `down_blocks.0.resnets.1` for the call of a submodule, `embed` for a method of the module
    itself. Of repeated calls the first counts. What happens inside a scan over layers stays there: see `layer_of`.
    """
    result, captured = nnx.capture(call, nnx.Intermediate, method_outputs=nnx.Intermediate)(*arguments)
    outputs = {}
    for path, calls in nnx.to_flat_state(captured):
        name = ".".join(str(part) for part in path if part != "__call__")
        outputs[name] = calls.get_value()[0]
    return result, outputs


def layer_of(stack: nnx.Module, number: int) -> Any:
    """One layer of a stack of equal layers."""
    return jax.tree.map(lambda leaf: leaf[number], stack)
