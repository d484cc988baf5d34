"""Words to numbers: any Hugging Face tokenizer folder that knows the 66 image tokens, and the toy's own.

The image tokens are `<img>`, `</img>` and `<img_00000>` to `<img_00063>`. Their numbers are asked of the tokenizer:
nothing relies on their order.
"""

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from seedstory_jax.errors import UserError

BOI, EOI, INST = "<img>", "</img>", "[INST]"
MAX_IMAGE_TOKENS = 64
PAD = "<pad>"


def image_token(number: int) -> str:
    """The name of one of the 64 image query tokens."""
    return f"<img_{number:05d}>"


class StoryTokenizer:
    """A tokenizer folder with what a story needs of it.

    bos, eos, unk, pad, boi, eoi: token ids (pad falls back to eos, as the published tokenizer has none);
    image_ids: the 64 query tokens' ids in order; inst_ids: what `[INST]` becomes on its own (one id in the toy's
    tokenizer, several pieces in LLaMA's).
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
        self.image_ids = [self._id(image_token(number)) for number in range(MAX_IMAGE_TOKENS)]
        self.inst_ids = self.encode(INST)

    def _id(self, token: str) -> int:
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise UserError(
                f"the tokenizer in {self.folder} has no token {token!r}; a story needs it and all 66 image tokens"
            )
        return number

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

    def image_text(self, count: int = MAX_IMAGE_TOKENS) -> str:
        """An image's place in a text: `<img>`, `count` query tokens, `</img>`."""
        return BOI + "".join(image_token(number) for number in range(count)) + EOI

    def first_turn(self, caption: str) -> list[int]:
        """Ids of a story's first caption, without bos."""
        return self.encode(caption)

    def next_turn(self, caption: str) -> list[int]:
        """Ids of `[INST]caption` as it reads behind an image (a prefix blank depends on what stands before)."""
        return self.encode(EOI + INST + caption)[1:]

    def refuse_markup(self, text: str) -> None:
        """Raise UserError if a person's text holds one of the tokens that structure a story."""
        for marker in (BOI, EOI, "<img_", "<s>", "</s>", PAD, INST, *self.tokens((self.bos, self.eos))):
            if marker in text:
                raise UserError(
                    f"the text holds {marker!r}, which marks a story's structure: take it out of {text[:60]!r}"
                )


def _load(folder: Path):
    """(a `tokenizers.Tokenizer`, the names of the special tokens) of a tokenizer folder."""
    from tokenizers import Tokenizer

    config = folder / "tokenizer_config.json"
    try:
        names = json.loads(config.read_text()) if config.is_file() else {}
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        elif (folder / "tokenizer.model").is_file():  # sentencepiece only: transformers knows how to convert it
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(str(folder), use_fast=True).backend_tokenizer
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


def train_tokenizer(captions: Sequence[str], folder: Path | str, *, vocab_size: int = 4096) -> StoryTokenizer:
    """Train a tokenizer on captions and save it as a Hugging Face folder.

    Byte-pair encoding within words, punctuation apart, so that what the captions say often is one token. Texts of
    printable ASCII and of the captions' own characters survive `decode(encode(text)) == text` if words stand one blank
    apart. The folder gets bos, eos, unk, pad, `[INST]` and the 66 image tokens.
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
    added = [INST, BOI, EOI, *map(image_token, range(MAX_IMAGE_TOKENS))]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in added])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
    }
    beside = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    tokenizer.save(str(beside / "tokenizer.json"))
    (beside / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(beside, folder)
    return StoryTokenizer(folder)


def toy_tokenizer(folder: Path | str) -> StoryTokenizer:
    """The toy world's tokenizer, trained on captions of both series where the folder does not exist yet."""
    from seedstory_jax.data.toy_world import toy_captions

    folder = Path(folder)
    return StoryTokenizer(folder) if folder.exists() else train_tokenizer(toy_captions(), folder)
