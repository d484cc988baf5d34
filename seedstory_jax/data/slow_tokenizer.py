"""LLaMA tokenizer folders of a sentencepiece model (`tokenizer.model`), read as transformers 4.34 read them.

SEED-Story was trained with that release's slow `LlamaTokenizer`, and the ids it gave depend on three things that the
files say in several ways: `legacy`, which tokens were added, and whether those strip the blanks beside them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from seedstory_jax.errors import UserError
from seedstory_jax.files import read_json

BLANK = "▁"  # sentencepiece writes blanks so
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# In small letters, as early folders spell it LLaMATokenizer; the last one is what `convert import` writes.
CLASSES = ("llamatokenizer", "llamatokenizerfast", "pretrainedtokenizerfast")


@dataclass(frozen=True)
class AddedToken:
    """A token found in the raw text before sentencepiece sees it; `lstrip`, `rstrip`: it swallows blanks beside it."""

    id: int
    content: str
    lstrip: bool = False
    rstrip: bool = False
    special: bool = False


@dataclass(frozen=True)
class SlowTokenizer:
    """What a slow folder says.

    model: sentencepiece's ModelProto, serialised. legacy: whether every stretch of text between added tokens gets a
    prefix blank (else only the beginning). legacy_said: whether the folder says so or leaves it out.
    """

    folder: Path
    model: bytes
    legacy: bool
    legacy_said: bool
    added: tuple[AddedToken, ...]  # by id
    add_bos: bool = True
    add_eos: bool = False

    @cached_property
    def proto(self) -> Any:
        """The parsed model."""
        return _parse(self.model)

    @cached_property
    def _pieces(self) -> Any:
        from sentencepiece import SentencePieceProcessor

        proto = _parse(self.model)
        if not self.legacy:
            proto.normalizer_spec.add_dummy_prefix = False
        return SentencePieceProcessor(model_proto=proto.SerializeToString())

    @cached_property
    def _by_content(self) -> dict[str, AddedToken]:
        return {token.content: token for token in self.added}

    @cached_property
    def _cut(self) -> re.Pattern:
        longest_first = sorted(self._by_content, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @cached_property
    def _unknown(self) -> tuple[str, int]:
        name = next(piece.piece for piece in self.proto.pieces if piece.type == piece.UNKNOWN)
        return name, len(self._pieces.encode(name))

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without bos and eos, by sentencepiece itself: the oracle for faster tokenizers."""
        if not self.legacy and text:
            text = BLANK + text.replace(BLANK, " ")
        parts = self._cut.split(text)  # text, token, text, token, ..., text
        texts, tokens = parts[::2], [self._by_content[name] for name in parts[1::2]]
        for i, token in enumerate(tokens):
            if token.lstrip:
                texts[i] = texts[i].rstrip()
            if token.rstrip:
                texts[i + 1] = texts[i + 1].lstrip()
        ids = self._ids(texts[0])
        # Behind the prefix alone a special token begins the text: the prefix falls.
        if not self.legacy and tokens and tokens[0].special and ids == [self._pieces.piece_to_id(BLANK)]:
            ids = []
        for token, following in zip(tokens, texts[1:]):
            ids += [token.id, *self._ids(following)]
        return ids

    def _ids(self, text: str) -> list[int]:
        if not text:
            return []
        if self.legacy or not text.startswith((BLANK, " ")):
            return self._pieces.encode(text)
        # Sentencepiece may drop a leading blank: something stands before it and is taken away again.
        name, length = self._unknown
        return self._pieces.encode(name + text)[length:]


def read_slow_tokenizer(folder: Path) -> SlowTokenizer:
    """The sentencepiece tokenizer in a folder; raises UserError if it is damaged or of another class."""
    config = _optional_json(folder / "tokenizer_config.json")
    name = str(config.get("tokenizer_class") or "LlamaTokenizer")
    refused = {
        f"tokenizer_class {name!r} (only LlamaTokenizer)": name.lower() not in CLASSES,
        f"sp_model_kwargs {config.get('sp_model_kwargs')}": bool(config.get("sp_model_kwargs")),
        "split_special_tokens": bool(config.get("split_special_tokens")),
    }
    if any(refused.values()):
        reasons = "; ".join(reason for reason, holds in refused.items() if holds)
        raise UserError(f"{folder / 'tokenizer_config.json'}: not supported here: {reasons}")
    model = (folder / "tokenizer.model").read_bytes()
    try:
        vocabulary = {piece.piece: number for number, piece in enumerate(_parse(model).pieces)}
    except Exception as error:  # protobuf's DecodeError, which is no ValueError everywhere
        raise UserError(f"{folder / 'tokenizer.model'}: no sentencepiece model, or damaged ({error})") from error
    if not vocabulary:
        raise UserError(f"{folder / 'tokenizer.model'}: no sentencepiece model: it holds no pieces")
    said = config.get("legacy")
    return SlowTokenizer(
        folder=folder,
        model=model,
        legacy=True if said is None else bool(said),
        legacy_said=said is not None,
        added=tuple(_added_tokens(folder, config, vocabulary)),
        add_bos=bool(config.get("add_bos_token", True)),
        add_eos=bool(config.get("add_eos_token", False)),
    )


def _added_tokens(folder: Path, config: Mapping[str, Any], vocabulary: Mapping[str, int]) -> list[AddedToken]:
    """The added tokens by id; in the order of 4.34: listed ones, then named special ones over them."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    names |= {key: config[key] for key in NAMED if config.get(key) is not None}
    additional = list(config.get("additional_special_tokens") or [])
    listed: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in config:
        listed = {int(number): _token(int(number), value) for number, value in config["added_tokens_decoder"].items()}
        additional = [name for name in additional if _content(name) not in {t.content for t in listed.values()}]
        additional += [token.content for token in listed.values() if token.special]
    else:  # folders from before 4.34: special_tokens_map.json counts, and listed tokens strip on both sides
        said = _optional_json(folder / "special_tokens_map.json")
        names |= {key: said[key] for key in NAMED if said.get(key) is not None}
        additional += [name for name in said.get("additional_special_tokens") or [] if name not in additional]
        for content, number in _optional_json(folder / "added_tokens.json").items():
            listed[int(number)] = AddedToken(int(number), content, lstrip=True, rstrip=True)
    numbers = {token.content: number for number, token in listed.items()}
    size = len({*vocabulary, *numbers})
    named = [(names[key], True) for key in NAMED if key in names]
    seen = {_content(value) for value, _ in named}
    for value, is_named in [*named, *((name, False) for name in additional if _content(name) not in seen)]:
        content = _content(value)
        if content not in numbers:
            numbers[content] = vocabulary.get(content, size)
            size += content not in vocabulary
        number = numbers[content]
        if isinstance(value, Mapping):
            token = _token(number, value)
        elif is_named:  # named by its text alone it strips nothing, whatever a list says of it
            token = AddedToken(number, content)
        else:
            token = listed.get(number) or AddedToken(number, content, lstrip=True, rstrip=True)
        listed[number] = AddedToken(number, content, token.lstrip, token.rstrip, special=True)
    tokens = [listed[number] for number in sorted(listed)]
    ids = [token.id for token in tokens if token.id >= len(vocabulary)]
    if ids != list(range(len(vocabulary), len(vocabulary) + len(ids))):
        raise UserError(
            f"{folder}: the added tokens' ids are not {len(vocabulary)} and on without a gap; they begin with {ids[:8]}"
        )
    return tokens


def _token(number: int, value: Any) -> AddedToken:
    if not isinstance(value, Mapping):
        raise UserError(f"added token {number} is {value!r}; a mapping with its content is expected")
    flags = {flag: bool(value.get(flag)) for flag in ("lstrip", "rstrip", "special")}
    if value.get("single_word"):
        raise UserError(f"added token {value['content']!r}: single_word is not supported")
    return AddedToken(number, str(value["content"]), **flags)


def _content(value: Any) -> str:
    return str(value["content"] if isinstance(value, Mapping) else value)


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _parse(model: bytes) -> Any:
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise UserError("tokenizer.model needs sentencepiece and protobuf: pip install sentencepiece") from error
    return sentencepiece_model_pb2.ModelProto.FromString(model)
