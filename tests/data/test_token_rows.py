import numpy as np
import pytest

from seedstory_jax.data.text_tokenizer import train_tokenizer
from seedstory_jax.data.token_rows import (
    IGNORE,
    RowTooLong,
    SequenceConfig,
    check_tokens,
    choose_turns,
    encode_turns,
    pack_rows,
    story_row,
)
from seedstory_jax.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(["a b c d"] * 4, tmp_path_factory.mktemp("letters") / "tokenizer")


def row_of(tokenizer, captions, config, **options):
    ids = encode_turns(tokenizer, captions, config)
    return story_row(tokenizer, *ids.row(range(len(captions))), config, **options)


def spell(tokenizer, row, name="ids"):
    """The row in short: letters, < > for an image's ends, 0 1 for its queries, I for [INST]."""
    short = {
        tokenizer.bos: "s",
        tokenizer.eos: "e",
        tokenizer.boi: "<",
        tokenizer.eoi: ">",
        IGNORE: ".",
        tokenizer.pad: "_",
    }
    short |= {tokenizer.inst_ids[0]: "I", **{tokenizer.encode(x)[0]: x for x in "abcd"}}
    short |= {number: str(i) for i, number in enumerate(tokenizer.image_ids[:2])}
    return "".join(short[int(number)] for number in row[name])


def test_labels_of_the_last_turn_stand_where_they_are_predicted(tokenizer):
    config = SequenceConfig(num_image_tokens=2, max_tokens=24, max_images=3)
    row = row_of(tokenizer, ["a b", "c", "d a"], config)
    assert spell(tokenizer, row, "ids") == "sab<01>Ic<01>Ida<01>e___"
    assert spell(tokenizer, row, "labels") == "............Ida<...e...."
    assert row["position"].tolist() == [*range(21), 0, 0, 0]
    assert row["segment"].tolist() == [1] * 21 + [0] * 3
    assert not row["generated_block"].any()
    images, targets = row["image_slot"], row["target_slot"]
    assert images[4:6].tolist() == [0, 1] and images[10:12].tolist() == [2, 3] and (images >= 0).sum() == 4
    assert targets[17:19].tolist() == [4, 5] and (targets >= 0).sum() == 2
    assert row["image_valid"].tolist() == [True] * 3


def test_all_turns_write_each_image_twice_at_the_same_positions(tokenizer):
    config = SequenceConfig(num_image_tokens=2, max_tokens=28, max_images=4, supervise="all")
    row = row_of(tokenizer, ["a", "b c", "d"], config, ends_story=True, position_offset=100)
    assert spell(tokenizer, row) == "sa<01>Ibc<0101>Id<0101>e____"
    expected = "." * 5 + "Ibc<" + "." * 5 + "Id<" + "." * 5 + "e"
    assert spell(tokenizer, row, "labels") == expected + "." * (28 - len(expected))
    assert row["generated_block"][:23].tolist() == [0] * 10 + [2, 2] + [0] * 6 + [3, 3] + [0] * 3
    assert row["target_slot"][10:14].tolist() == [2, 3, -1, -1]
    assert row["image_slot"][10:14].tolist() == [-1, -1, 2, 3]
    position = row["position"] - 100
    assert position[10:15].tolist() == [10, 11, 10, 11, 12]
    assert position[18:24].tolist() == [16, 17, 16, 17, 18, 19]


def test_end_only_where_the_story_ends(tokenizer):
    config = SequenceConfig(num_image_tokens=2, max_tokens=28, max_images=4, supervise="all")
    assert tokenizer.eos not in row_of(tokenizer, ["a", "b"], config)["ids"]
    assert tokenizer.eos in row_of(tokenizer, ["a", "b"], config, ends_story=True)["ids"]


def test_first_turn_may_be_learnt(tokenizer):
    config = SequenceConfig(num_image_tokens=2, max_tokens=12, max_images=2, supervise="all", supervise_first=True)
    row = row_of(tokenizer, ["a b"], config)
    assert spell(tokenizer, row) == "sab<0101>___"
    assert spell(tokenizer, row, "labels") == "ab<........."


def test_too_long_is_never_cut(tokenizer):
    with pytest.raises(RowTooLong, match="has 13 tokens, more than max_tokens 12"):
        row_of(tokenizer, ["a", "b"], SequenceConfig(num_image_tokens=2, max_tokens=12))
    with pytest.raises(RowTooLong, match="more images than max_images 1"):
        row_of(tokenizer, ["a", "b"], SequenceConfig(num_image_tokens=2, max_tokens=50, max_images=1))


def test_packing_keeps_rows_apart(tokenizer):
    config = SequenceConfig(num_image_tokens=2, max_tokens=40, max_images=5, supervise="all")
    rows = [row_of(tokenizer, ["a", "b"], config, position_offset=3), row_of(tokenizer, ["c", "d"], config)]
    packed = pack_rows(rows, config)
    length = int((rows[0]["segment"] > 0).sum())
    assert packed["segment"].tolist() == [1] * length + [2] * length + [0] * (40 - 2 * length)
    for name in ("ids", "labels", "position"):
        assert packed[name][length : 2 * length].tolist() == rows[1][name][:length].tolist()
    second = slice(length, 2 * length)
    assert set(packed["generated_block"][second]) == {0, 4}
    assert packed["image_slot"][second].max() == 7 and packed["target_slot"][second].max() == 7
    assert packed["image_valid"].tolist() == [True] * 4 + [False]
    with pytest.raises(RowTooLong, match="3 rows need"):
        pack_rows([*rows, rows[0]], config)


@pytest.mark.parametrize("mode", ["whole", "prefix", "window", "opening"])
def test_choice_of_turns(mode):
    rng = np.random.default_rng(0)
    seen = [choose_turns(rng, 30, 8, mode=mode) for _ in range(300)]
    assert all(len(turns) <= 8 and turns == sorted(set(turns)) and turns[-1] < 30 for turns in seen)
    if mode == "opening":
        assert all(turns[0] == 0 and len(turns) == 8 for turns in seen)
        assert {turns[-1] for turns in seen} == set(range(7, 30))
    if mode == "window":
        assert {turns[0] for turns in seen} == set(range(23))
    if mode == "prefix":
        assert {len(turns) for turns in seen} == set(range(2, 9))
    assert choose_turns(rng, 3, 8, mode=mode)[0] == 0 and len(choose_turns(rng, 3, 8, mode=mode)) <= 3


def test_config_refuses():
    with pytest.raises(ValueError, match="choose last or all"):
        SequenceConfig(supervise="some")
    with pytest.raises(ValueError, match="unknown end"):
        SequenceConfig(end="never")


def test_more_image_tokens_than_the_tokenizer_has_are_refused(tokenizer):
    check_tokens(SequenceConfig(num_image_tokens=64), tokenizer)
    with pytest.raises(UserError, match=r"81 image tokens are configured, the tokenizer in .* has 64"):
        check_tokens(SequenceConfig(num_image_tokens=81), tokenizer)
