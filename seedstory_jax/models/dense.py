"""The matrix product of every linear layer, whose weight's gradient is laid out for CPUs.

That gradient sums over all tokens, so XLA's CPU backend transposes the product's first operand, copying it with all
that is fused into it. JAX's own rule puts the output's gradient there: in a feed-forward the wide one, fresh from an
activation, and one more for each of the projections that share an input. Here it is the narrower of the two, or else
the shared one; a small model's step takes a third less time. Accelerators see no difference.
"""

from functools import partial

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

PROJECTED = "projected"  # name of a linear layer's output, for rematerialisation policies


@jax.custom_vjp
def dense(x: Float[Array, "*b i"], kernel: Float[Array, "i o"]) -> Float[Array, "*b o"]:
    """x @ kernel, both of one dtype."""
    return x @ kernel


def _forward(x, kernel):
    return x @ kernel, (x, kernel)


def _backward(saved, gradient):
    x, kernel = saved
    tokens = tuple(range(x.ndim - 1))
    if kernel.shape[0] <= kernel.shape[1]:
        kernel_gradient = jax.lax.dot_general(x, gradient, ((tokens, tokens), ((), ())))
    else:
        kernel_gradient = jax.lax.dot_general(gradient, x, ((tokens, tokens), ((), ()))).T
    return gradient @ kernel.T, kernel_gradient


dense.defvjp(_forward, _backward)


def _dot_general(x, kernel, dimension_numbers, precision=None, **options) -> Array:
    """`dense`, named, in the place of `lax.dot_general`."""
    if dimension_numbers != (((x.ndim - 1,), (0,)), ((), ())) or precision is not None or any(options.values()):
        raise ValueError(f"not a plain linear layer: {dimension_numbers}, precision {precision}, {options}")
    return checkpoint_name(dense(x, kernel), PROJECTED)


Linear = partial(nnx.Linear, dot_general=_dot_general)
