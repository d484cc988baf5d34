"""Keep masks a reader can check by eye: one row of characters a story, one column a slot."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.generation.policies import (
    MultimodalSink,
    Window,
    keep_mask,
    make_policy,
    policy_name,
    sink_mask,
    slot_count,
    split_policy,
)
from seedstory_jax.models.kv_buffer import EMPTY, Kind, SlotMetadata

LETTERS = {"s": Kind.BOS, "t": Kind.TEXT, "(": Kind.BOI, "q": Kind.QUERY, ")": Kind.EOI}
STORY = "sttt(qqqqqq) ttt(qqqqqq) tt(qqqqqq) tttt(qqqqqq) .."
KEPT = [
    ("dense", {}, "############ ########### ########## ############ --"),
    ("window", {"window": 1}, "------------ ----------- ---------- ############ --"),
    ("window", {"window": 2}, "------------ ----------- ########## ############ --"),
    ("window", {"window": 9}, "############ ########### ########## ############ --"),
    ("window_recompute", {"window": 2}, "------------ ----------- ########## ############ --"),
    ("sink", {"window": 2}, "####-------- ----------- ########## ############ --"),
    ("sink", {"window": 2, "start": 1}, "#----------- ----------- ########## ############ --"),
    ("multimodal_sink", {"window": 2}, "############ ########### ########## ############ --"),
    ("multimodal_sink", {"window": 2, "start": 1, "head": (1, 2), "tail": (2, 1)},
                        "#--###---### --###---### ########## ############ --"),
    ("multimodal_sink", {"window": 2, "start": 1, "head": (1, 3), "tail": (1, 3)},
                        "#--####---## ######---## ########## ############ --"),
    ("multimodal_sink", {"window": 1, "start": 1, "head": (0, 1), "tail": (0, 1)},
                        "#---#------# ---#------# --#------# ############ --"),
    ("multimodal_sink", {"window": 2, "start": 1, "head": (1, 2), "tail": (2, 1), "image_sink_cap": 1},
                        "#----------- --###---### ########## ############ --"),
    ("multimodal_sink", {"window": 2, "start": 1, "head": (2, 0), "tail": (0, 0)},
                        "#-##-------- -##-------- ########## ############ --"),
]  # fmt: skip


def slots_of(story):
    """`.` is an empty slot; a blank ends a turn."""
    rows = []
    for turn, text in enumerate(story.split(" ")):
        rows += [(LETTERS[letter], turn) if letter != "." else (EMPTY, EMPTY) for letter in text]
    kind, turn = (np.array(column, np.int32)[None] for column in zip(*rows))
    index = np.where(kind == EMPTY, EMPTY, np.arange(kind.size)).astype(np.int32)
    return SlotMetadata(
        *(jnp.asarray(fact) for fact in (index, index, kind, turn)), is_sink=jnp.zeros(kind.shape, bool)
    )


def drawn(mask, story=STORY):
    marks = iter("#" if kept else "-" for kept in np.asarray(mask)[0])
    return "".join(letter if letter == " " else next(marks) for letter in story)


@pytest.mark.parametrize(("name", "settings", "kept"), KEPT)
def test_keep_mask(name, settings, kept):
    keep = jax.jit(keep_mask, static_argnums=0)
    assert drawn(keep(make_policy(name, **settings), slots_of(STORY))) == kept


def test_what_is_kept_besides_the_window_is_a_sink():
    policy = MultimodalSink(window=2, start=1, head=(1, 2), tail=(2, 1))
    assert drawn(sink_mask(policy, slots_of(STORY))) == "#--###---### --###---### ---------- ------------ --"


def test_counts_that_lose_their_mark_keep_what_was_a_sink():
    """head=(2, 0) leaves out <img>: when it is gone, the two tokens before it stay all the same."""
    policy = MultimodalSink(window=1, start=0, head=(2, 0), tail=(0, 0))
    slots = slots_of("tt q) tt(qq) t(qq)")
    is_sink = jnp.asarray(np.arange(slots.story_index.size) < 2)[None]
    slots = SlotMetadata(slots.position, slots.story_index, slots.kind, slots.turn, is_sink)
    assert drawn(keep_mask(policy, slots), "tt q) tt(qq) t(qq)") == "## -- ##---- #####"


def test_a_policy_of_ones_own():
    @dataclass(frozen=True)
    class WithFirst(Window):
        def keep_mask(self, slots):
            return super().keep_mask(slots) | (slots.turn == 0)

        def slot_count(self, turns, turn_tokens):
            return super().slot_count(turns, turn_tokens) + turn_tokens

    policy = WithFirst(window=1)
    assert drawn(keep_mask(policy, slots_of(STORY))) == "############ ----------- ---------- ############ --"
    assert policy_name(policy) == "WithFirst"


def test_slot_counts_at_full_size():
    """40-token captions, 50 images: the figures of the paper's setting."""
    assert MultimodalSink().slot_count(50, 106) == 1 + 4 + 42 * 24 + 9 * 106
    assert slot_count(MultimodalSink(), 50, 106) == 2048
    assert slot_count(make_policy("dense"), 50, 106) == 5376
    assert slot_count(make_policy("window"), 50, 106) == slot_count(make_policy("window"), 5000, 106) == 1024
    capped = MultimodalSink(image_sink_cap=10)
    assert slot_count(capped, 1000, 106) == slot_count(capped, 50_000, 106)


def test_numbers_are_arguments_of_a_compiled_program():
    static, numbers = split_policy(MultimodalSink(window=3, head=(1, 2)))
    assert static == MultimodalSink()
    assert numbers == {"window": 3, "start": 4, "head": (1, 2), "tail": (8, 4), "image_sink_cap": None}


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("windw", {}, "unknown; choose from dense, window"),
        ("window", {"start": 4}, "has no setting 'start'"),
        ("window", {"window": 0}, "window=1 or more"),
        ("sink", {"positions": "relative"}, "'slot' or keeps 'absolute'"),
    ],
)
def test_what_cannot_be_is_refused(name, settings, words):
    with pytest.raises(UserError, match=words):
        make_policy(name, **settings)
