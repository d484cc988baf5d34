"""Rotary position embedding in the half-split form (Su et al. 2021; LLaMA's layout on the Hugging Face hub)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotary_angles(
    positions: Int[Array, "*b t"] | Float[Array, "*b t"], head_dim: int, theta: float
) -> Float[Array, "*b t half"]:
    """Angles in radians, float32: position · theta^(-2i / head_dim) for i in [0, head_dim / 2)."""
    if head_dim % 2:
        raise ValueError(f"head_dim {head_dim} is odd; rotary positions need pairs of channels")
    frequencies = 1.0 / theta ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    return positions[..., None].astype(jnp.float32) * frequencies


def rotate(
    x: Float[Array, "*b t n h"], positions: Int[Array, "*b t"] | Float[Array, "*b t"], theta: float
) -> Float[Array, "*b t n h"]:
    """Turns channel pairs (i, i + h/2) of each head by the angles of `positions`.

    Rotations add up: rotate(rotate(x, p), q) = rotate(x, p + q), so a stored key moves by a position *difference*,
    which may be negative. Computed in float32, returned in x's dtype.
    """
    angles = rotary_angles(positions, x.shape[-1], theta)[..., None, :]  # [*b t 1 h/2]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
