"""Keep masks a reader can check by eye: one row of characters a story, one column a slot."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.generation.policies import (
    POLICIES,
    MultimodalSink,
    TurnTokens,
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
    ("boi_only", {"window": 2, "start": 1, "head": (1, 2)},
                        "#--###------ --###------ ########## ############ --"),
    ("eoi_only", {"window": 2, "start": 1, "tail": (2, 1)},
                        "#--------### --------### ########## ############ --"),
    ("text_sink", {"window": 2}, "####-------- ###-------- ########## ############ --"),
    ("story_sink", {"window": 2, "start": 1, "head": (1, 2), "tail": (2, 1)},
                        "######---### #####---### ########## ############ --"),
    ("story_sink", {"window": 1, "start": 1, "head": (1, 2), "tail": (2, 1), "image_sink_cap": 1},
                        "####-------- ###-------- ####---### ############ --"),
    ("two_windows", {"window": 1, "start": 2, "text_window": 3},
                        "##---------- ###-------- ##-------- ############ --"),
    ("two_windows", {"window": 2, "start": 1, "text_window": 1},
                        "#----------- ----------- ########## ############ --"),
    ("frame_sink", {"window": 1}, "############ ----------- ---------- ############ --"),
    ("frame_sink", {"window": 1, "frames": 2}, "############ ########### ---------- ############ --"),
    ("stride", {"window": 1, "every": 2}, "############ ----------- ########## ############ --"),
    ("stride", {"window": 1, "every": 3}, "############ ----------- ---------- ############ --"),
    ("pinned", {"window": 1, "turns": (1,)}, "------------ ########### ---------- ############ --"),
    ("pinned", {"window": 1, "turns": (0, 2)}, "############ ----------- ########## ############ --"),
    ("random", {"window": 2, "start": 2, "tokens": 0},
                        "##---------- ----------- ########## ############ --"),
    ("random", {"window": 2, "start": 2, "tokens": 5},
                        "###--#------ #-#------#- ########## ############ --"),
    ("random", {"window": 2, "start": 2, "tokens": 5, "seed": 1},
                        "##-#-------# -#-#---#--- ########## ############ --"),
    ("random", {"window": 2, "start": 2, "tokens": 50},
                        "############ ########### ########## ############ --"),
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


@pytest.mark.parametrize("name", POLICIES)
def test_nobody_fills_more_than_it_says(name):
    """Turns as long as they may be, evicted one after the other, as the engine does; in stories of every length."""
    text, image, turns = 5, 40, 24
    tokens = TurnTokens(text, image)
    policy = make_policy(name, **({"window": 2} if name != "dense" else {}))
    keep, peaks = jax.jit(keep_mask, static_argnums=0), []
    held = np.zeros((4, 0), np.int32)  # rows: story index, kind, turn, is_sink
    for turn in range(turns):
        kinds = [Kind.BOS] * (turn == 0) + [Kind.TEXT] * text + [Kind.BOI] + [Kind.QUERY] * image + [Kind.EOI]
        first = held[0, -1] + 1 if held.size else 0
        held = np.hstack([held, [first + np.arange(len(kinds)), kinds, [turn] * len(kinds), [0] * len(kinds)]])
        peaks.append(held.shape[1])
        assert peaks[-1] <= policy.slot_count(turn + 1, tokens)
        rows = np.full((4, 1200), EMPTY, np.int32)
        rows[:, : held.shape[1]] = held
        index, kind, number, sink = (jnp.asarray(row)[None] for row in rows)
        slots = SlotMetadata(index, index, kind, number, is_sink=sink == 1, score=jnp.sin(index * 1.0))
        stays = np.asarray(keep(policy, slots))[0, : held.shape[1]]
        held = held[:, stays]
        held[3] = held[2] <= turn - 2
        assert held[0, -1] == first + len(kinds) - 1, "the newest token stays"
    assert policy.slot_count(turns, tokens) <= 1.5 * peaks[-1], "not much more either"


@pytest.mark.parametrize(
    ("name", "settings", "kept"),
    [
        ("tova", {}, "##----99---- 8---------- ########## ############ --"),
        ("h2o", {}, "##----99---- 8---------- ########## ############ --"),
        ("snapkv", {"pool": 3}, "##----###--- ----------- ########## ############ --"),
        ("keydiff", {}, "##---------- -----0-0-0- ########## ############ --"),
        ("knorm", {}, "##---------- -----0-0-0- ########## ############ --"),
    ],
)
def test_keep_mask_of_scores(name, settings, kept):
    score = "111111991111 81111010101 2222222222 333333333333 ..".replace(" ", "").replace(".", "0")
    slots = replace(slots_of(STORY), score=jnp.array([[float(digit) for digit in score]]))
    policy = make_policy(name, window=2, start=2, tokens=3, **settings)
    wanted = "".join(letter if letter in " -" else "#" for letter in kept)
    assert drawn(jax.jit(keep_mask, static_argnums=0)(policy, slots)) == wanted


def test_lots_are_drawn_once():
    """What stays of a random policy is the same whether evicted at once or turn by turn, and evenly spread."""
    policy = make_policy("random", window=1, start=0, tokens=300)
    index = jnp.arange(4000)[None]
    slots = SlotMetadata(index, index, jnp.full_like(index, Kind.TEXT), index // 10, jnp.zeros(index.shape, bool))
    early = SlotMetadata(*(jnp.where(index < 2000, fact, EMPTY) for fact in (index, index, slots.kind, slots.turn)),
                         is_sink=slots.is_sink)  # fmt: skip
    once, before = np.asarray(keep_mask(policy, slots))[0], np.asarray(keep_mask(policy, early))[0]
    assert once.sum() == 310 and not (once[:1990] & ~before[:1990]).any()
    assert np.histogram(np.flatnonzero(once[:3990]), bins=4, range=(0, 3990))[0] == pytest.approx([75] * 4, abs=25)


def test_numbers_are_arguments_of_a_compiled_program():
    static, numbers = split_policy(MultimodalSink(window=3, head=(1, 2)))
    assert static == MultimodalSink()
    assert numbers == {"window": 3, "start": 4, "head": (1, 2), "tail": (8, 4), "image_sink_cap": None}


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("windw", {}, "unknown policy 'windw': did you mean 'window'"),
        ("window", {"start": 4}, "has no setting 'start'"),
        ("window", {"window": 0}, "window=1 or more"),
        ("sink", {"positions": "relative"}, "unknown positions='relative'"),
    ],
)
def test_what_cannot_be_is_refused(name, settings, words):
    with pytest.raises(UserError, match=words):
        make_policy(name, **settings)
