"""The tokenizer's folder of a converted model: a `tokenizer.json` beside what was published."""

import json
import shutil
from pathlib import Path

from seedstory_jax.config import ModelConfig
from seedstory_jax.convert.gguf import open_gguf
from seedstory_jax.convert.sources import Source
from seedstory_jax.data.fast_tokenizer import describe, equal_tokenizer
from seedstory_jax.data.slow_tokenizer import read_slow_tokenizer
from seedstory_jax.data.text_tokenizer import StoryTokenizer
from seedstory_jax.errors import UserError


class Tokenizer:
    """A published tokenizer, checked before anything is written.

    Where a folder has a `tokenizer.model`, that is what the model was trained with, and `tokenizer.json` is made from
    it, whatever lies beside it. variant: what it is, in one line.
    """

    def __init__(self, source: Source, config: ModelConfig):
        """Raises UserError for a folder that cannot be read, or whose ids the model has no rows for."""
        self.files, self.made = source.files, None
        size = 0
        if (source.path / "tokenizer.model").is_file():
            slow = read_slow_tokenizer(source.path)
            self.made, texts = equal_tokenizer(slow)
            self.variant = f"{describe(slow)}; equals sentencepiece on {texts} of {texts} texts"
            size = self.made.get_vocab_size()
        if self.made is None:
            size = StoryTokenizer(source.path).vocab_size
            self.variant = f"tokenizer.json of {size} tokens, as it came"
        rows = config.story.llama.vocab_size
        if size > rows:
            raise UserError(
                f"{source.path}: a tokenizer of {size} tokens, but model.story.llama.vocab_size is {rows}; "
                f"choose another one with --tokenizer=DIR, or --config.model.story.llama.vocab_size={size}"
            )

    def complaints(self, folder: Path) -> list[str]:
        """What is missing or different in the converted folder's tokenizer."""
        found, name = folder / "tokenizer.json", "tokenizer.json"
        if not found.is_file():
            return [f"{name}: missing"]
        own = next((file for file in self.files if file.name == name), None)
        wanted = own.read_text() if self.made is None and own is not None else self.made.to_str()
        try:
            same = json.loads(found.read_text()) == json.loads(wanted)
        except ValueError:
            same = False
        return [] if same else [f"{name}: differs from what the source gives"]

    def write(self, folder: Path) -> None:
        """Writes the new folder."""
        folder.mkdir()
        for file in self.files:
            shutil.copyfile(file, folder / file.name)
        if self.made is None:
            return
        self.made.save(str(folder / "tokenizer.json"))
        # Read as it stands by any release of transformers, and not rebuilt from the model with that release's habits.
        settings = folder / "tokenizer_config.json"
        said = json.loads(settings.read_text()) if settings.is_file() else {}
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        settings.write_text(
            json.dumps({**names, **said, "tokenizer_class": "PreTrainedTokenizerFast"}, indent=1) + "\n"
        )


class GGUFTokenizer:
    """The tokenizer inside a GGUF file, with the image tokens added."""

    def __init__(self, source: Source):
        self.file = open_gguf(source.path)
        self.variant = f"of {source.path.name}, with the image tokens added"

    def complaints(self, folder: Path) -> list[str]:
        """What is missing in the converted folder's tokenizer."""
        return [] if (folder / "tokenizer.json").is_file() else ["tokenizer.json: missing"]

    def write(self, folder: Path) -> None:
        """Writes the new folder."""
        self.file.write_tokenizer(folder)


def tokenizer_of(source: Source, config: ModelConfig) -> Tokenizer | GGUFTokenizer:
    """The tokenizer of a source of that kind. Raises UserError for one that cannot be read."""
    return GGUFTokenizer(source) if source.path.suffix == ".gguf" else Tokenizer(source, config)
