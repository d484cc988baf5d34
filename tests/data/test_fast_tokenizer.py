"""tokenizer.json made from sentencepiece folders, against ids of transformers 4.34.0's slow class.

`slow_tokenizers/ids.json` was made once by the script `make.py` beside it, where that release was installed.
"""

import importlib.util
import json
import random
import shutil
from pathlib import Path

import pytest

from seedstory_jax.data.fast_tokenizer import check_equal, describe, equal_tokenizer, fast_tokenizer, trying_texts
from seedstory_jax.data.slow_tokenizer import read_slow_tokenizer
from seedstory_jax.data.text_tokenizer import PUBLISHED_IMAGE_TOKENS, StoryTokenizer, image_token
from seedstory_jax.data.token_rows import SequenceConfig, encode_turns
from seedstory_jax.errors import UserError
from seedstory_jax.parity.data import released_row

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "data" / "slow_tokenizers"
_spec = importlib.util.spec_from_file_location("make_slow_tokenizers", HERE / "make.py")
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)
KNOWN = json.loads((HERE / "ids.json").read_text())
FOLDERS = {name: (model, files) for name, model, files in make.folders(KNOWN["sizes"])}


def folder_of(name, where):
    model, files = FOLDERS[name]
    shutil.copy(HERE / f"{model}.model", where / "tokenizer.model")
    for file, content in files.items():
        (where / file).write_text(json.dumps(content))
    return where


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_of_the_slow_class(name, tmp_path):
    assert KNOWN["transformers"] == "4.34.0"
    slow = read_slow_tokenizer(folder_of(name, tmp_path))
    fast, _ = equal_tokenizer(slow)
    assert fast.get_vocab_size() == KNOWN["folders"][name]["size"]
    for text, ids in zip(make.TEXTS, KNOWN["folders"][name]["ids"]):
        assert slow.encode(text) == ids, text
        found = fast.encode(text, add_special_tokens=False).ids
        begins = next((token for token in slow.added if text.strip().startswith(token.content)), None)
        if not slow.legacy and begins is not None and not begins.special and ids[0] != begins.id:
            ids = ids[1:]  # the one thing that a tokenizer.json cannot say
        assert found == ids, text


@pytest.mark.parametrize(
    "name", ["llama-new-special-by-name", "squeezing-new-added", "unigram-legacy-special-no-strip"]
)
def test_random_texts_equal_sentencepiece(name, tmp_path):
    slow = read_slow_tokenizer(folder_of(name, tmp_path))
    rng = random.Random(5)
    parts = [*" \n\t", "  ", *make.WORDS, *"abcé½№東🐵!,.'", "<img>", "</img>", "<img_00003>", "</s>", "[INST]"]
    texts = ["a" + "".join(rng.choices(parts, k=rng.randint(1, 25))) for _ in range(150)]
    assert check_equal(fast_tokenizer(slow), slow, texts) == 150


def test_the_learned_turn_apart_and_not(tmp_path):
    """With legacy=False the response's first piece has a prefix blank; in context it has none."""
    tokenizer = StoryTokenizer(folder_of("llama-new-special-by-name", tmp_path))
    captions = ["George climbs. ", "a tree", " and falls "]
    apart = encode_turns(tokenizer, captions, SequenceConfig())
    within = encode_turns(tokenizer, captions, SequenceConfig(response_apart=False))
    everywhere = encode_turns(tokenizer, captions, SequenceConfig(supervise="all"))
    assert apart.first == within.first and apart.later == within.later == within.learned == everywhere.learned
    assert apart.learned != apart.later
    text = tokenizer.image_text()
    whole = tokenizer.encode(captions[0] + text + "".join(f"[INST]{c}{text}" for c in captions[1:]))
    image = [tokenizer.boi, *tokenizer.image_ids, tokenizer.eoi]
    first, later = within.row([0, 1, 2])
    assert whole == [*first, *image, *later[0], *image, *later[1], *image]
    row = released_row(tokenizer, captions, input_tokens=64, output_tokens=64, max_length=400)
    first, later = apart.row([0, 1, 2])
    assert row.ids[: int(row.attention_mask.sum())].tolist() == [
        tokenizer.bos, *first, *image, *later[0], *image, *later[1], *image, tokenizer.eos
    ]  # fmt: skip


def test_legacy_needs_no_such_choice(tmp_path):
    tokenizer = StoryTokenizer(folder_of("llama-unsaid-added", tmp_path))
    ids = encode_turns(tokenizer, ["a ", " tree"], SequenceConfig())
    assert ids.learned == ids.later


@pytest.mark.parametrize(
    ("name", "count"), [("seed-x", 100), ("330-images", 328), ("llama-unsaid-added", PUBLISHED_IMAGE_TOKENS)]
)
def test_any_number_of_image_tokens(name, count, tmp_path):
    tokenizer = StoryTokenizer(folder_of(name, tmp_path))
    size = KNOWN["sizes"]["llama"]
    assert tokenizer.image_ids == list(range(size + 2, size + 2 + count))
    assert tokenizer.tokens([tokenizer.image_ids[-1]]) == [image_token(count - 1)]


def test_the_variant_is_named(tmp_path):
    slow = read_slow_tokenizer(folder_of("llama-unsaid-added", tmp_path))
    assert "legacy=True (not said there" in describe(slow)
    assert "66 added tokens: 66 strip blanks on both sides, 0 are special" in describe(slow)


def test_another_pipeline_is_caught(tmp_path):
    slow = read_slow_tokenizer(folder_of("llama-new-special-by-name", tmp_path))
    (tmp_path / "other").mkdir()
    other = read_slow_tokenizer(folder_of("llama-legacy-special-by-name", tmp_path / "other"))
    with pytest.raises(UserError, match="gives sentencepiece's ids: for"):
        check_equal(fast_tokenizer(other), slow, trying_texts(slow))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config.json", '{"tokenizer_class": "T5Tokenizer"}', "tokenizer_class 'T5Tokenizer'"),
        ("tokenizer_config.json", '{"sp_model_kwargs": {"nbest_size": -1}}', "sp_model_kwargs"),
        ("tokenizer_config.json", "{", "cannot be read"),
        ("added_tokens.json", '{"<img>": 9999}', "without a gap"),
        ("tokenizer.model", "no model", "no sentencepiece model"),
    ],
)
def test_refusals(file, content, message, tmp_path):
    folder = folder_of("llama-unsaid-added", tmp_path)
    (folder / file).write_text(content)
    with pytest.raises(UserError, match=message):
        StoryTokenizer(folder)
