"""The buffer's own rules, on rows of small integers."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seedstory_jax.models.kv_buffer import (
    EMPTY,
    TokenChunk,
    append_metadata,
    compact,
    empty_buffer,
    next_story_index,
    rewind,
    slot_targets,
    visible,
    write_keys,
    write_values,
)
from seedstory_jax.models.rope import rotate

LAYERS, SLOTS, HEADS, SIZE = 3, 8, 2, 4


def chunk_of(position, story_index, turn, count):
    rows = [np.array(row, np.int32) for row in (position, story_index, np.ones_like(position), turn)]
    return TokenChunk(*(jnp.asarray(row) for row in rows), count=jnp.asarray(count, jnp.int32))


@jax.jit
def append(buffer, chunk, k, v):
    """What `InferenceLlama.extend` does, for given keys and values [l b t k h]."""
    targets = slot_targets(buffer, chunk)
    return replace(
        append_metadata(buffer, chunk),
        k=tuple(write_keys(old, new, targets) for old, new in zip(buffer.k, k, strict=True)),
        v=tuple(write_values(old, new, targets) for old, new in zip(buffer.v, v, strict=True)),
    )


def keys(buffer):
    """[l b k s h]"""
    return np.stack(buffer.k).swapaxes(-1, -2)


@pytest.fixture(scope="module")
def two_stories():
    """Row 0 holds 5 tokens, row 1 holds 3; keys are rotated to their positions."""
    buffer = empty_buffer(LAYERS, 2, SLOTS, HEADS, SIZE, "float32")
    raw = jnp.asarray(np.random.default_rng(0).normal(size=(2, LAYERS, 2, 5, HEADS, SIZE)), jnp.float32)
    position = np.tile(np.arange(5), (2, 1))
    k = rotate(raw[0], jnp.asarray(position)[None].repeat(LAYERS, 0), 1e4)
    return append(buffer, chunk_of(position, position, position // 2, [5, 3]), k, raw[1]), raw


def test_append_puts_each_story_at_its_own_offset(two_stories):
    buffer, _ = two_stories
    chunk = chunk_of([[5, 6], [3, 4]], [[5, 6], [3, 4]], [[2, 2], [1, 1]], [1, 2])
    np.testing.assert_array_equal(slot_targets(buffer, chunk), [[5, SLOTS], [3, 4]])
    ones = jnp.ones((LAYERS, 2, 2, HEADS, SIZE))
    grown = append(buffer, chunk, ones, ones)
    np.testing.assert_array_equal(grown.position, [[0, 1, 2, 3, 4, 5, -1, -1], [0, 1, 2, 3, 4, -1, -1, -1]])
    np.testing.assert_array_equal(grown.turn, [[0, 0, 1, 1, 2, 2, -1, -1], [0, 0, 1, 1, 1, -1, -1, -1]])
    np.testing.assert_array_equal(grown.length, [6, 5])
    np.testing.assert_array_equal(keys(grown)[..., :3, :], keys(buffer)[..., :3, :])
    np.testing.assert_array_equal(
        grown.k[0][:, 0, 0] == 1, np.array([[0, 0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 0, 0, 0]])
    )
    np.testing.assert_array_equal(next_story_index(grown), [6, 5])


def test_padding_overwrites_nothing_in_a_full_buffer():
    buffer = empty_buffer(1, 1, 4, 1, 2, "float32")
    full = append(buffer, chunk_of([[0, 1, 2, 3]], [[0, 1, 2, 3]], [[0] * 4], [4]), *[jnp.ones((1, 1, 4, 1, 2))] * 2)
    again = append(full, chunk_of([[4, 5, 6]], [[4, 5, 6]], [[1] * 3], [0]), *[jnp.zeros((1, 1, 3, 1, 2))] * 2)
    jax.tree.map(np.testing.assert_array_equal, again, full)


def test_visible_is_one_mask_for_all():
    slots = jnp.array([[0, 1, 2, EMPTY], [0, 5, EMPTY, EMPTY]])
    mask = visible(slots, jnp.array([[1, 2], [4, 5]]))
    np.testing.assert_array_equal(mask.astype(int), [[[1, 1, 0, 0], [1, 1, 1, 0]], [[1, 0, 0, 0], [1, 1, 0, 0]]])


def test_rewind_forgets_the_newest(two_stories):
    buffer, _ = two_stories
    back = rewind(buffer, jnp.array([3, 9]))
    np.testing.assert_array_equal(back.length, [3, 3])
    np.testing.assert_array_equal(back.position, [[0, 1, 2] + [-1] * 5] * 2)
    np.testing.assert_array_equal(back.story_index, back.position)
    np.testing.assert_array_equal(next_story_index(back), [3, 3])


@pytest.mark.parametrize("positions", ["slot", "absolute"])
def test_compact_moves_what_is_kept_to_the_front(positions, two_stories):
    buffer, raw = two_stories
    keep = jnp.array([[1, 0, 0, 1, 1, 0, 0, 1], [0, 1, 1, 1, 1, 0, 0, 0]], bool)  # empty slots are never kept
    kept = [[0, 3, 4], [1, 2]]
    small = jax.jit(compact, static_argnums=(2, 3), donate_argnums=0)(
        jax.tree.map(jnp.copy, buffer), keep, positions, 1e4, keep & (buffer.story_index == 0)
    )
    np.testing.assert_array_equal(small.length, [3, 2])
    np.testing.assert_array_equal(small.story_index, [[0, 3, 4] + [-1] * 5, [1, 2] + [-1] * 6])
    np.testing.assert_array_equal(small.is_sink, np.array([[1] + [0] * 7, [0] * 8], bool))
    assert np.isfinite(keys(small)).all()
    for row, tokens in enumerate(kept):
        count = len(tokens)
        position = np.arange(count) if positions == "slot" else np.array(tokens)
        np.testing.assert_array_equal(small.position[row, :count], position)
        assert (np.asarray(small.position[row, count:]) == EMPTY).all()
        kept_k, kept_v = raw[:, :, row, np.array(tokens)]
        expected = rotate(kept_k, jnp.asarray(position)[None].repeat(LAYERS, 0), 1e4)
        np.testing.assert_allclose(keys(small)[:, row, :, :count].swapaxes(1, 2), expected, atol=1e-6)
        np.testing.assert_array_equal(np.stack(small.v)[:, row, :, :count].swapaxes(1, 2), kept_v)


def test_positions_never_pass_through_bfloat16():
    """257 has no bfloat16: a buffer of bfloat16 keys still knows it, and what it turns by is exact."""
    buffer = empty_buffer(1, 1, 4, 1, 64, "bfloat16")
    k = jnp.asarray(np.random.default_rng(1).normal(size=(1, 1, 2, 1, 64)), jnp.float32)
    chunk = chunk_of([[257, 4099]], [[257, 4099]], [[0, 0]], [2])
    rotated = rotate(k, chunk.position[None], 1e4)
    small = compact(append(buffer, chunk, rotated, rotated), jnp.ones((1, 4), bool), "slot", 1e4)
    np.testing.assert_array_equal(small.position, [[0, 1, -1, -1]])
    expected = rotate(k[0], jnp.array([[0, 1]]), 1e4)
    np.testing.assert_allclose(keys(small)[0, :, :, :2].astype(np.float32).swapaxes(1, 2), expected, atol=0.03)


def test_keeping_all_changes_nothing(two_stories):
    buffer, _ = two_stories
    same = compact(buffer, jnp.ones((2, SLOTS), bool), "slot", 1e4)
    used = np.asarray(buffer.position != EMPTY)
    np.testing.assert_array_equal(keys(same).swapaxes(2, 3)[:, used], keys(buffer).swapaxes(2, 3)[:, used])
    np.testing.assert_array_equal(same.position, buffer.position)
