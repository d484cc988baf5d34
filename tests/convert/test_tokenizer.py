"""The tokenizer's folder of a converted model."""

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Fast

from seedstory_jax.config import ModelConfig
from seedstory_jax.convert.sources import find_sources
from seedstory_jax.convert.tokenizer import Tokenizer
from seedstory_jax.data.slow_tokenizer import read_slow_tokenizer
from seedstory_jax.data.text_tokenizer import StoryTokenizer, train_tokenizer
from seedstory_jax.errors import UserError

HERE = Path(__file__).resolve().parents[1] / "data" / "slow_tokenizers"
_spec = importlib.util.spec_from_file_location("make_slow_tokenizers", HERE / "make.py")
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)
CONFIG = ModelConfig()
KNOWN = json.loads((HERE / "ids.json").read_text())


def published(where, name="llama-new-special-by-name"):
    model, files = next((model, files) for each, model, files in make.folders(KNOWN["sizes"]) if each == name)
    where.mkdir(parents=True)
    shutil.copyfile(HERE / f"{model}.model", where / "tokenizer.model")
    for file, content in files.items():
        (where / file).write_text(json.dumps(content))
    return where


def written(source, out, config=CONFIG):
    (found,) = find_sources(source)
    tokenizer = Tokenizer(found, config)
    tokenizer.write(out)
    return tokenizer


@pytest.mark.parametrize("name", ["llama-new-special-by-name", "squeezing-unsaid-added", "seed-x"])
def test_a_tokenizer_json_with_the_slow_class_s_ids(tmp_path, name):
    config = ModelConfig()
    tokenizer = written(published(tmp_path / "in", name), tmp_path / "out", config)
    fast, ours = Fast.from_file(str(tmp_path / "out" / "tokenizer.json")), StoryTokenizer(tmp_path / "out")
    for text, ids in zip(make.TEXTS, KNOWN["folders"][name]["ids"]):
        if text.strip()[:1] != "<":
            assert fast.encode(text, add_special_tokens=False).ids == ids == ours.encode(text)
    assert "equals sentencepiece on" in tokenizer.variant
    again = written(tmp_path / "out", tmp_path / "again")  # what was imported, and exported, imports the same
    assert again.variant == tokenizer.variant
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "again" / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("name", ["llama-new-special-by-name", "llama-unsaid-added"])
def test_transformers_reads_the_same_ids(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    written(published(tmp_path / "in", name), tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    for text, ids in zip(make.TEXTS, KNOWN["folders"][name]["ids"]):
        if text.strip()[:1] != "<":
            assert theirs.encode(text, add_special_tokens=False) == ids
    assert theirs.bos_token_id == 1 and theirs.eos_token_id == 2


def test_another_tokenizer_json_beside_the_model_does_not_count(tmp_path):
    folder = published(tmp_path / "in")
    train_tokenizer(["a b c"] * 3, tmp_path / "own")
    shutil.copyfile(tmp_path / "own" / "tokenizer.json", folder / "tokenizer.json")
    written(folder, tmp_path / "out")
    text = make.TEXTS[0]
    assert StoryTokenizer(tmp_path / "out").encode(text) == read_slow_tokenizer(folder).encode(text)


def test_a_folder_without_a_model_is_copied(tmp_path):
    train_tokenizer(["a b c"] * 3, tmp_path / "own")
    tokenizer = written(tmp_path / "own", tmp_path / "out")
    assert "as it came" in tokenizer.variant
    assert (tmp_path / "own" / "tokenizer.json").read_bytes() == (tmp_path / "out" / "tokenizer.json").read_bytes()


def test_more_tokens_than_the_model_has_rows(tmp_path):
    config = ModelConfig()
    llama = replace(config.story.llama, vocab_size=500)
    config = replace(config, story=replace(config.story, llama=llama))
    with pytest.raises(UserError, match=r"a tokenizer of 526 tokens, but model\.story\.llama\.vocab_size is 500"):
        written(published(tmp_path / "in"), tmp_path / "out", config)


def test_verify_sees_a_changed_tokenizer(tmp_path):
    (found,) = find_sources(published(tmp_path / "in"))
    tokenizer = Tokenizer(found, CONFIG)
    assert tokenizer.complaints(tmp_path / "out") == ["tokenizer.json: missing"]
    tokenizer.write(tmp_path / "out")
    assert tokenizer.complaints(tmp_path / "out") == []
    path = tmp_path / "out" / "tokenizer.json"
    path.write_text(path.read_text().replace('"lstrip": false', '"lstrip": true', 1))
    assert tokenizer.complaints(tmp_path / "out") == ["tokenizer.json: differs from what the source gives"]
