"""A digest of named arrays that depends on their values alone, not on where or how they are laid out.

Every 32-bit word is mixed with its place by a bijection, and an array's words are added up modulo 2**32: a change of
one word always changes the sum, many changes go unnoticed once in 2**32. The sum can be computed of sharded arrays on
a mesh and of pieces on the host, and is the same.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WORDS_AT_ONCE = 1 << 22  # on the host: what is mixed stays in the processor's cache
U32 = np.uint32


def digest_of(arrays: Mapping[str, jax.Array]) -> str:
    """Sixteen hex digits over names, shapes, dtypes and values of arrays on any devices."""
    sums = jax.device_get(_device_sums(dict(arrays)))
    return combined((name, tuple(value.shape), value.dtype, int(sums[name])) for name, value in arrays.items())


def combined(sums: Iterable[tuple[str, tuple[int, ...], Any, int]]) -> str:
    """The digest of (name, shape, dtype, sum) of every array, whatever their order."""
    facts = {name: [list(shape), np.dtype(dtype).name, total] for name, shape, dtype, total in sums}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def host_sum(value: np.ndarray | np.generic) -> int:
    """The sum of one array (or scalar) in host memory."""
    bits = np.ascontiguousarray(value).reshape(-1).view(_word(value.dtype.itemsize))
    total = 0
    for first in range(0, bits.size, WORDS_AT_ONCE):
        words = bits[first : first + WORDS_AT_ONCE].astype(U32)
        index = np.arange(first, first + words.size, dtype=np.uint64).astype(U32)
        total += int(_mixed(words, index).sum(dtype=U32))
    return total % 2**32


@jax.jit
def _device_sums(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    def one(value: jax.Array) -> jax.Array:
        words = jax.lax.bitcast_convert_type(value, _word(value.dtype.itemsize)).astype(jnp.uint32)
        index, stride = jnp.zeros(words.shape, jnp.uint32), 1
        for axis in reversed(range(words.ndim)):  # not reshaped: a sharded array stays where it is
            index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * U32(stride % 2**32)
            stride *= words.shape[axis]
        return jnp.sum(_mixed(words, index), dtype=jnp.uint32)

    return jax.tree.map(one, arrays)


def _word(itemsize: int) -> Any:
    return {1: np.uint8, 2: np.uint16, 4: np.uint32}[itemsize]


def _mixed(words: Any, index: Any) -> Any:
    """MurmurHash3's finaliser, a bijection of 32 bits, over words that were made different by their place."""
    mixed = words ^ (index * U32(0x9E3779B1) + U32(0x7F4A7C15))
    mixed = (mixed ^ (mixed >> U32(16))) * U32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> U32(13))) * U32(0xC2B2AE35)
    return mixed ^ (mixed >> U32(16))
