"""A LLaMA in llama.cpp's GGUF format, read without torch: tensors, config and tokenizer under Hugging Face's names.

Quantised tensors are given back as float32, dequantised by the `gguf` package as llama.cpp defines it. Two things are
not as in a Hugging Face checkpoint and are undone here: the names, and the rows of the query and key projections,
which llama.cpp stores with the two halves of every head interleaved (its rotary embedding turns neighbours, ours turns
halves).
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from seedstory_jax.errors import UserError

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# By tokenizer.ggml.pre: how text is cut before pairs of bytes are merged. GPT-2's pattern lies in ByteLevel itself.
DIGITS_APART = {"smollm": True, "gpt-2": False}
CONTROL = 3  # tokenizer.ggml.token_type of tokens that no text contains


class GGUFFile(Mapping[str, np.ndarray]):
    """One `.gguf` file of a LLaMA; a tensor is dequantised when it is asked for."""

    def __init__(self, path: Path):
        """Reads the header (seconds, for a large vocabulary).

        Raises UserError without the `gguf` package, for a broken file, or for another architecture than LLaMA's.
        """
        self.path = path
        try:
            from gguf import GGUFReader, dequantize
        except ImportError as error:
            raise UserError(f"{path} needs the package gguf to be read: pip install 'seedstory_jax[small]'") from error
        self._dequantize = dequantize
        try:
            self._reader = GGUFReader(path)
        except (ValueError, KeyError, IndexError) as error:
            raise UserError(f"{path}: no GGUF file, or a broken one: {error}") from error
        if self._field("general.architecture") != "llama":
            raise UserError(f"{path} holds a {self._field('general.architecture')!r} model; only 'llama' can be read")
        self._tensors = {published_name(tensor.name): tensor for tensor in self._reader.tensors}

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        values = self._dequantize(tensor.data, tensor.tensor_type)
        heads = {"q_proj.weight": "head_count", "k_proj.weight": "head_count_kv"}.get(name.rpartition("self_attn.")[2])
        return halves_apart(values, int(self._field(f"llama.attention.{heads}"))) if heads else values

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header; GGUF lists the fastest axis first."""
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def dtype(self, name: str) -> np.dtype:
        """Dtype of a tensor as given back."""
        return np.dtype(np.float32)

    @cached_property
    def config(self) -> dict[str, Any]:
        """What a Hugging Face `config.json` would say of this model."""
        heads, width = self._field("llama.attention.head_count"), self._field("llama.embedding_length")
        rotated = self._field("llama.rope.dimension_count", width // heads)
        if rotated != width // heads:
            raise UserError(f"{self.path}: {rotated} of {width // heads} channels of a head are rotated; all must be")
        scaling = self._field("llama.rope.scaling.type", "none")
        return {
            "model_type": "llama",
            "vocab_size": self.shape("model.embed_tokens.weight")[0],
            "hidden_size": width,
            "intermediate_size": self._field("llama.feed_forward_length"),
            "num_hidden_layers": self._field("llama.block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._field("llama.attention.head_count_kv", heads),
            # Stored in single precision: 1e-5 comes back as 9.9999997e-06.
            "rms_norm_eps": float(f"{self._field('llama.attention.layer_norm_rms_epsilon'):.6g}"),
            "rope_theta": float(self._field("llama.rope.freq_base", 1e4)),
            "rope_scaling": None if scaling == "none" else {"type": scaling},
            "max_position_embeddings": self._field("llama.context_length"),
            "tie_word_embeddings": "lm_head.weight" not in self._tensors,
        }

    def write_tokenizer(self, folder: Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json` of the file's byte-level BPE with the 66 image tokens.

        A story begins with the token 0, `<|endoftext|>`, with which every training document began, and not with the
        chat format's `<|im_start|>` that the header names; it is this model's `<s>` and its attention sink.
        Raises UserError for a tokenizer of another kind.
        """
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        from seedstory_jax.data.text_tokenizer import BOI, EOI, PUBLISHED_IMAGE_TOKENS, image_token

        kind, cut = self._field("tokenizer.ggml.model"), self._field("tokenizer.ggml.pre", "gpt-2")
        if kind != "gpt2" or cut not in DIGITS_APART:
            raise UserError(
                f"{self.path}: its tokenizer is {kind!r} with {cut!r}; known: gpt2 with {list(DIGITS_APART)}"
            )
        names = self._field("tokenizer.ggml.tokens")
        merges = [tuple(pair.split(" ")) for pair in self._field("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, merges))
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digits = [pre_tokenizers.Digits(individual_digits=True)] if DIGITS_APART[cut] else []
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, byte_level])
        tokenizer.decoder = decoders.ByteLevel()
        types = self._field("tokenizer.ggml.token_type")
        special = [name for name, each in zip(names, types, strict=True) if each == CONTROL]
        special += [BOI, EOI, *map(image_token, range(PUBLISHED_IMAGE_TOKENS))]
        tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": names[0],
            "eos_token": names[self._field("tokenizer.ggml.eos_token_id")],
            "unk_token": names[self._field("tokenizer.ggml.unknown_token_id", 0)],
            "clean_up_tokenization_spaces": False,
        }
        folder.mkdir()
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")

    def _field(self, name: str, default: Any = None) -> Any:
        field = self._reader.fields.get(name)
        if field is None and default is None:
            raise UserError(f"{self.path}: its header has no {name}")
        return default if field is None else field.contents()


@lru_cache(maxsize=1)  # an import asks for config, tensors and tokenizer, and reading the header takes seconds
def open_gguf(path: Path) -> GGUFFile:
    """The file, its header read once; raises what `GGUFFile` raises."""
    return GGUFFile(path)


def published_name(name: str) -> str:
    """Hugging Face's name of a GGUF tensor; a name that is not known stays, for the importer to complain of."""
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    stem = layer[2] if layer else name.removesuffix(".weight")
    if stem not in NAMES:
        return name
    return f"model.layers.{layer[1]}.{NAMES[stem]}.weight" if layer else f"{NAMES[stem]}.weight"


def halves_apart(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection [heads · h, d] from pairs (x0, y0, x1, y1, ...) to halves (x..., y...)."""
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)
