import json

import pytest

from seedstory_jax.data.text_tokenizer import StoryTokenizer, train_tokenizer
from seedstory_jax.data.token_rows import SequenceConfig, check_tokens
from seedstory_jax.errors import UserError
from seedstory_jax.toy.tokenizer import toy_tokenizer
from seedstory_jax.toy.world import toy_captions


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return toy_tokenizer(tmp_path_factory.mktemp("toy") / "tokenizer")


def test_round_trip(tokenizer):
    for caption in toy_captions(seed=7, stories=20):
        ids = tokenizer.encode(caption)
        assert tokenizer.decode(ids) == caption
        assert len(ids) <= 32  # a word or a mark each


@pytest.mark.parametrize("text", ["Zebra, what's up? (42 ok)", "A/B; c-d: \"e\" 'f'."])
def test_round_trip_of_other_words(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens(tokenizer):
    special = [tokenizer.bos, tokenizer.eos, tokenizer.unk, tokenizer.pad, tokenizer.boi, tokenizer.eoi]
    assert len({*special, *tokenizer.image_ids, *tokenizer.inst_ids}) == 6 + 64 + 1
    text = tokenizer.image_text(3)
    assert tokenizer.encode(text) == [tokenizer.boi, *tokenizer.image_ids[:3], tokenizer.eoi]
    assert tokenizer.next_turn("The monkey") == tokenizer.inst_ids + tokenizer.encode("The monkey")
    ids = tokenizer.encode("The monkey waves", add_special=True)
    assert ids[0] == tokenizer.bos and ids[-1] == tokenizer.eos
    assert tokenizer.decode([*ids, *tokenizer.image_ids], skip_special=True) == "The monkey waves"
    assert tokenizer.encode("ж")[-1] == tokenizer.unk
    assert tokenizer.encode("") == []
    with pytest.raises(UserError, match="marks a story's structure"):
        tokenizer.refuse_markup("look <img> here")


CAPTIONS = [
    "</s>",
    "[INST] go",
    "a <img> b",
    "<img><img_00003></img>",
    "x <s> y",
    "<pad>",
    "<unk> Ж",
    "[INST]",
    "<img_0",
]


@pytest.mark.parametrize("caption", CAPTIONS)
def test_special_tokens_in_captions_are_plain_words(tokenizer, caption, fixtures_dir):
    for one in (tokenizer, StoryTokenizer(fixtures_dir / "story_sample" / "tokenizer")):
        special = {one.bos, one.eos, one.boi, one.eoi, one.pad, *one.image_ids, *one._special} - {one.unk}
        first, later = one.first_turn(caption), one.next_turn(caption)
        own = 1 if one.inst_ids[0] in special else 0
        assert later[:own] == one.inst_ids[:own]
        assert not special & set(first) and not special & set(later[own:])
        if one is tokenizer:  # whose alphabet lacks no letter of these but one
            assert one.decode(first) == caption.replace("Ж", "<unk>")
        for clean in ("a monkey waves", "< img >", "Ж"):  # nothing else is encoded otherwise than before
            assert one.first_turn(clean) == one.encode(clean)
            assert one.next_turn(clean) == one.encode("</img>[INST]" + clean)[1:]


def test_a_text_that_was_no_utf8_is_refused(tokenizer):
    with pytest.raises(UserError, match="half a surrogate pair"):
        tokenizer.refuse_markup("a\udcff")


def test_opens_as_a_hugging_face_folder(tokenizer):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(tokenizer.folder))
    caption = toy_captions(stories=1)[0]
    assert theirs.encode(caption, add_special_tokens=False) == tokenizer.encode(caption)
    assert theirs.bos_token_id == tokenizer.bos and theirs.pad_token_id == tokenizer.pad
    assert len(theirs) == len(tokenizer)


def test_reference_cases(fixtures_dir):
    folder = fixtures_dir / "story_sample"
    tokenizer = StoryTokenizer(folder / "tokenizer")
    expected = json.loads((folder / "outputs_text.json").read_text())
    assert tokenizer.vocab_size == expected["vocab_size"]
    for case in expected["tokenizer_cases"]:
        assert tokenizer.encode(case["text"]) == case["ids"]
        assert tokenizer.decode(case["ids"]) == case["decoded"]


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="holds no tokenizer"):
        StoryTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        StoryTokenizer(tmp_path)
    tokenizer = train_tokenizer(["a b c"] * 3, tmp_path / "own")
    data = json.loads((tokenizer.folder / "tokenizer.json").read_text())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] != "<img_00063>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert len(StoryTokenizer(tmp_path).image_ids) == 63
    with pytest.raises(UserError, match=r"64 image tokens are configured, the tokenizer in .* has 63"):
        check_tokens(SequenceConfig(), StoryTokenizer(tmp_path))
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] != "<img_00007>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="no token '<img_00007>'"):
        StoryTokenizer(tmp_path)


def test_image_tokens_are_counted(tmp_path):
    tokenizer = train_tokenizer(["a b c"] * 3, tmp_path, image_tokens=8)
    assert len(tokenizer.image_ids) == 8
    assert tokenizer.encode(tokenizer.image_text()) == [tokenizer.boi, *tokenizer.image_ids, tokenizer.eoi]
