import dataclasses

import numpy as np
import pytest

from seedstory_jax.checkpoints.readers import StoreReader
from seedstory_jax.config import ModelConfig
from seedstory_jax.convert.gguf import GGUFFile, halves_apart, published_name
from seedstory_jax.convert.importing import import_model
from seedstory_jax.convert.llama import llama_config_from_published
from seedstory_jax.convert.verifying import verify_model
from seedstory_jax.data.text_tokenizer import StoryTokenizer
from seedstory_jax.errors import UserError
from seedstory_jax.models.llama import LlamaConfig
from seedstory_jax.models.resampler import ResamplerConfig
from seedstory_jax.models.story_mllm import StoryMLLMConfig

gguf = pytest.importorskip("gguf", reason="the package gguf (extra small) is not installed")

WIDTH, MLP, HEADS, KV_HEADS, LAYERS = 32, 48, 4, 2, 2
PIECES = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *map(chr, range(33, 127)), "Ġ", "Ċ", "Ġt", "th", "Ġth"]
MERGES = ["Ġ t", "t h", "Ġt h"]


def tensors(tied: bool) -> dict[str, np.ndarray]:
    """GGUF names, in the order that llama.cpp keeps rows of the query and key projections."""
    rng = np.random.default_rng(0)
    keys = KV_HEADS * WIDTH // HEADS
    shapes = {"token_embd": (len(PIECES), WIDTH), "output_norm": (WIDTH,)} | (
        {} if tied else {"output": (len(PIECES), WIDTH)}
    )
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.{name}": shape
            for name, shape in {
                "attn_norm": (WIDTH,),
                "ffn_norm": (WIDTH,),
                "attn_q": (WIDTH, WIDTH),
                "attn_k": (keys, WIDTH),
                "attn_v": (keys, WIDTH),
                "attn_output": (WIDTH, WIDTH),
                "ffn_gate": (MLP, WIDTH),
                "ffn_up": (MLP, WIDTH),
                "ffn_down": (WIDTH, MLP),
            }.items()
        }
    return {f"{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write(path, tied=True, architecture="llama", pre="smollm", quantised=False):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(1e5)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(PIECES)
    writer.add_token_types([3, 3, 3, *[1] * (len(PIECES) - 3)])
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(2)
    for name, values in tensors(tied).items():
        if quantised and values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0 if values.shape[1] % 32 == 0 else gguf.GGMLQuantizationType.F16
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def config(tied: bool) -> ModelConfig:
    llama = LlamaConfig(len(PIECES) + 66, WIDTH, MLP, LAYERS, HEADS, KV_HEADS, 1e-5, 1e5, tied, lora=None)
    read, drawn = ResamplerConfig(2, WIDTH, 4, 16), ResamplerConfig(2, 16, 2, WIDTH)
    return ModelConfig(story=StoryMLLMConfig(llama, read, drawn))


@pytest.mark.parametrize("tied", [True, False])
def test_config_names_and_shapes(tmp_path, tied):
    file = GGUFFile(write(tmp_path / "a.gguf", tied))
    wanted = dataclasses.replace(config(tied).story.llama, vocab_size=len(PIECES))
    assert llama_config_from_published(file.config) == wanted
    assert ("lm_head.weight" in file) == (not tied)
    given = tensors(tied)
    assert len(file) == len(given)
    np.testing.assert_array_equal(file["model.layers.1.mlp.down_proj.weight"], given["blk.1.ffn_down.weight"])
    for name, values in file.items():
        assert values.shape == file.shape(name) and values.dtype == file.dtype(name)


def test_rows_of_queries_and_keys_go_back_to_halves(tmp_path):
    """llama.cpp's order is written down here literally: a head of eight channels as x0 x4 x1 x5 ..."""
    file = GGUFFile(write(tmp_path / "a.gguf"))
    stored = tensors(True)["blk.0.attn_k.weight"]
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    wanted = np.concatenate([stored[:8][order], stored[8:][order]])
    np.testing.assert_array_equal(file["model.layers.0.self_attn.k_proj.weight"], wanted)
    np.testing.assert_array_equal(halves_apart(stored, 2), wanted)


def test_quantised_tensors_come_near(tmp_path):
    file = GGUFFile(write(tmp_path / "a.gguf", quantised=True))
    given = tensors(True)["blk.0.ffn_up.weight"]
    difference = np.abs(file["model.layers.0.mlp.up_proj.weight"] - given).max()
    assert 0 < difference <= np.abs(given).max() / 127


@pytest.mark.parametrize("tied", [True, False])
def test_import_and_verify(tmp_path, tied):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.gguf", tied)
    import_model(tmp_path / "in", tmp_path / "out", config(tied))
    reader = StoreReader(tmp_path / "out" / "story")
    table = reader.read("llama.embed_tokens.embedding")
    given = tensors(tied)
    np.testing.assert_array_equal(table[: len(PIECES)], given["token_embd.weight"])
    assert ("llama.lm_head.kernel" in reader.names) == (not tied)
    up = reader.read("llama.layers.mlp.up_proj.kernel")
    np.testing.assert_array_equal(up[1], given["blk.1.ffn_up.weight"].T)
    assert not [each for verdict in verify_model(tmp_path / "out", tmp_path / "in") for each in verdict.complaints]

    tokenizer = StoryTokenizer(tmp_path / "out" / "tokenizer")
    assert len(tokenizer) == len(PIECES) + 66
    assert (tokenizer.bos, tokenizer.eos) == (0, 2)
    assert tokenizer.boi == len(PIECES) and tokenizer.image_ids[0] == len(PIECES) + 2
    assert tokenizer.tokens(tokenizer.encode("a th12")) == ["a", "Ġth", "1", "2"]
    assert tokenizer.decode(tokenizer.encode("a th12 <img>b")) == "a th12 <img>b"
    with pytest.raises(UserError, match="marks a story's structure"):
        tokenizer.refuse_markup("The end.<|endoftext|>")


def test_what_is_no_llama_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds a 'gpt2' model"):
        GGUFFile(write(tmp_path / "a.gguf", architecture="gpt2"))
    (tmp_path / "b.gguf").write_bytes(b"no such thing, and longer than a header is")
    with pytest.raises(UserError, match="no GGUF file"):
        GGUFFile(tmp_path / "b.gguf")
    with pytest.raises(UserError, match="'llama-bpe'"):
        GGUFFile(write(tmp_path / "c.gguf", pre="llama-bpe")).write_tokenizer(tmp_path / "t")
    assert published_name("blk.3.attn_q.bias") == "blk.3.attn_q.bias"
