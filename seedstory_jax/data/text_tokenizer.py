"""Words to numbers: any Hugging Face tokenizer folder that knows image tokens.

The image tokens are `<img>`, `</img>` and `<img_00000>`, `<img_00001>` and on: 64 in the published tokenizer, in others
as many as there are. Their numbers are asked of the tokenizer: nothing relies on their order.
"""

import json
import re
import secrets
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from seedstory_jax.errors import UserError
from seedstory_jax.files import atomic_folder, write_json

BOI, EOI, INST = "<img>", "</img>", "[INST]"
PUBLISHED_IMAGE_TOKENS = 64
PAD = "<pad>"
MARKERS = (BOI, EOI, "<img_", "<s>", "</s>", PAD, INST)  # what structures a story


def image_token(number: int) -> str:
    """The name of one of the image query tokens."""
    return f"<img_{number:05d}>"


class StoryTokenizer:
    """A tokenizer folder with what a story needs of it.

    bos, eos, unk, pad, boi, eoi: token ids (pad falls back to eos, as the published tokenizer has none);
    image_ids: the query tokens' ids in order, all that there are; inst_ids: what `[INST]` becomes on its own (one id in
    the toy's tokenizer, several pieces in LLaMA's).
    """

    def __init__(self, folder: Path | str):
        """Raises UserError if the folder holds no tokenizer or one without the image tokens."""
        self.folder = Path(folder)
        self._tokenizer, names = _load(self.folder)
        self.vocab_size = self._tokenizer.get_vocab_size()
        self.bos = self._id(names.get("bos_token") or "<s>")
        self.eos = self._id(names.get("eos_token") or "</s>")
        pad, unk = names.get("pad_token"), names.get("unk_token") or "<unk>"
        self.pad = self._id(pad) if pad else self.eos
        self.unk = self._tokenizer.token_to_id(unk)
        self.boi, self.eoi = self._id(BOI), self._id(EOI)
        self.image_ids = self._image_ids()
        self.inst_ids = self.encode(INST)

    def _id(self, token: str) -> int:
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise UserError(
                f"the tokenizer in {self.folder} has no token {token!r}; a story needs {BOI}, {EOI} and "
                f"{image_token(0)} onwards, as many as an image takes"
            )
        return number

    def _image_ids(self) -> list[int]:
        pattern = re.compile(r"<img_(\d{5})>")
        known = {int(hit[1]) for name in self._tokenizer.get_vocab() if (hit := pattern.fullmatch(name))}
        return [self._id(image_token(number)) for number in range(max(known, default=0) + 1)]

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str, add_special: bool = False) -> list[int]:
        """Token ids of a text; with `add_special` between bos and eos."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self.bos, *ids, self.eos] if add_special else ids

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of token ids; `skip_special` leaves out bos, eos, pad and the image tokens, but not `[INST]`."""
        ids = [int(number) for number in ids]
        if skip_special:
            hidden = {self.bos, self.eos, self.pad, self.boi, self.eoi, *self.image_ids}
            ids = [number for number in ids if number not in hidden]
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The pieces' names, for pages that show what a buffer holds."""
        return [self._tokenizer.id_to_token(int(number)) for number in ids]

    def image_text(self, count: int | None = None) -> str:
        """An image's place in a text: `<img>`, `count` query tokens (without it all of them), `</img>`."""
        numbers = range(len(self.image_ids) if count is None else count)
        return BOI + "".join(map(image_token, numbers)) + EOI

    def first_turn(self, caption: str) -> list[int]:
        """Ids of a story's first caption, without bos (its trailing blanks are the image's to swallow).

        Special tokens in it are plain words, as they are in the two turns below.
        """
        ids = self.encode(caption + BOI)[:-1]
        return self._plain.encode(caption) if self._holds_special(ids, caption) else ids

    def next_turn(self, caption: str) -> list[int]:
        """Ids of `[INST]caption` as it reads behind an image (a prefix blank depends on what stands before)."""
        return self._instructed(self.encode(EOI + INST + caption + BOI)[1:-1], caption, behind=True)

    def response_turn(self, caption: str) -> list[int]:
        """Ids of `[INST]caption` on its own, as the published rows write the turn that is learned."""
        return self._instructed(self.encode(INST + caption + BOI)[:-1], caption, behind=False)

    def _instructed(self, ids: list[int], caption: str, *, behind: bool) -> list[int]:
        """`ids` of `[INST]caption`, or where words of the caption were taken for special tokens, ids of plain words."""
        own = 1 if self.inst_ids[0] in self._special else 0  # `[INST]` where it is one token
        if not self._holds_special(ids[own:], caption):
            return ids
        plain = self._plain.encode(caption if own else INST + caption, behind=behind or bool(own))
        return self.inst_ids[:own] + plain

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self._tokenizer.get_added_tokens_decoder())

    @cached_property
    def _plain(self) -> "_PlainWords":
        return _PlainWords(self._tokenizer)

    def _holds_special(self, ids: Sequence[int], caption: str) -> bool:
        """Whether encoding a caption took words of it for special tokens (`<unk>` also stands for odd letters)."""
        found = self._special.intersection(ids)
        return bool(found) and (found != {self.unk} or self._tokenizer.id_to_token(self.unk) in caption)

    def refuse_markup(self, text: str) -> None:
        """Raise UserError if a person's text holds one of the tokens that structure a story, or is no Unicode."""
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UserError(f"the text holds half a surrogate pair, it was no UTF-8: {text[:60]!r}")
        for marker in (*MARKERS, *self.tokens((self.bos, self.eos))):
            if marker in text:
                raise UserError(
                    f"the text holds {marker!r}, which marks a story's structure: take it out of {text[:60]!r}"
                )


class _PlainWords:
    """A tokenizer that has no special tokens: of captions whose words look like them."""

    def __init__(self, tokenizer):
        from tokenizers import AddedToken, Tokenizer

        without = json.loads(tokenizer.to_str())
        without["added_tokens"], without["post_processor"] = [], None
        self._tokenizer = Tokenizer.from_str(json.dumps(without))
        self._before = f"<{secrets.token_hex(8)}>"  # stands for what a caption follows; no caption can hold it
        self._tokenizer.add_special_tokens([AddedToken(self._before, normalized=False, special=True)])

    def encode(self, text: str, *, behind: bool = False) -> list[int]:
        """Token ids of a text; `behind`: as it reads behind a special token."""
        ids = self._tokenizer.encode(self._before * behind + text, add_special_tokens=False).ids
        return ids[behind:]


def _load(folder: Path):
    """(a `tokenizers.Tokenizer`, the names of the special tokens) of a tokenizer folder."""
    from tokenizers import Tokenizer

    config = folder / "tokenizer_config.json"
    try:
        names = json.loads(config.read_text()) if config.is_file() else {}
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        elif (folder / "tokenizer.model").is_file():  # as published: sentencepiece alone
            from seedstory_jax.data.fast_tokenizer import equal_tokenizer
            from seedstory_jax.data.slow_tokenizer import read_slow_tokenizer

            tokenizer, _ = equal_tokenizer(read_slow_tokenizer(folder))
        else:
            raise UserError(f"{folder} holds no tokenizer: expected tokenizer.json or tokenizer.model in it")
    except UserError:
        raise
    except Exception as error:  # the libraries raise bare Exceptions and whatever their parsers do
        raise UserError(f"the tokenizer in {folder} cannot be read: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, {
        key: v["content"] if isinstance(v, dict) else v for key, v in names.items() if key.endswith("_token")
    }


def train_tokenizer(
    captions: Sequence[str], folder: Path | str, *, vocab_size: int = 4096, image_tokens: int = PUBLISHED_IMAGE_TOKENS
) -> StoryTokenizer:
    """Train a tokenizer on captions and save it as a Hugging Face folder.

    Byte-pair encoding within words, punctuation apart, so that what the captions say often is one token. Texts of
    printable ASCII and of the captions' own characters survive `decode(encode(text)) == text` if words stand one blank
    apart. The folder gets bos, eos, unk, pad, `[INST]` and the image tokens.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = Path(folder)
    special = ["<unk>", "<s>", "</s>", PAD]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=[chr(code) for code in range(33, 127)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    added = [INST, BOI, EOI, *map(image_token, range(image_tokens))]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in added])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
    }
    with atomic_folder(folder) as beside:
        tokenizer.save(str(beside / "tokenizer.json"))
        write_json(beside / "tokenizer_config.json", config)
    return StoryTokenizer(folder)
