"""The middle size that CPU benchmarks run at: big enough for matrix products to dominate, small enough for a laptop."""

import jax
import numpy as np

from seedstory_jax.models.llama import LlamaConfig
from seedstory_jax.models.parameters import abstract_parameters, initial_parameters
from seedstory_jax.models.resampler import ResamplerConfig
from seedstory_jax.models.story_mllm import StoryMLLM, StoryMLLMConfig

TEXT_TOKENS = 40  # of a caption


def middle_config(layers: int = 8, width: int = 512, grid: int = 8) -> StoryMLLMConfig:
    """64 queries an image, 256 features, a vocabulary of 2,114."""
    llama = LlamaConfig(
        vocab_size=2048 + 66,
        hidden_size=width,
        intermediate_size=-(-width * 8 // 3 // 128) * 128,
        num_layers=layers,
        num_heads=width // 64,
        num_kv_heads=width // 64,
        lora=None,
    )
    resampler = ResamplerConfig(grid_size=grid, embed_dim=width, num_heads=width // 64, kv_dim=width)
    wide = ResamplerConfig(grid_size=2 * grid, embed_dim=width, num_heads=width // 64, kv_dim=width)
    return StoryMLLMConfig(llama=llama, input_resampler=resampler, output_resampler=wide)


class Tokens:
    """Ids alone: a benchmark's captions are lists of numbers written as text."""

    bos, eos = 1, 2

    def __init__(self, vocab_size: int, image_tokens: int):
        self.boi, self.eoi = vocab_size - image_tokens - 2, vocab_size - image_tokens - 1
        self.image_ids = tuple(range(vocab_size - image_tokens, vocab_size))

    def first_turn(self, caption: str) -> list[int]:
        return [int(word) for word in caption.split()]

    def next_turn(self, caption: str) -> list[int]:
        return self.first_turn(caption)

    def decode(self, ids, skip_special: bool = False) -> str:
        return " ".join(str(number) for number in ids)

    def refuse_markup(self, text: str) -> None:
        pass


def middle_model(config: StoryMLLMConfig) -> tuple[StoryMLLM, Tokens]:
    """Random weights; every caption runs to its limit, since `<img>` is never the best word."""

    def make(rngs):
        return StoryMLLM(config, rngs=rngs)

    tokens = Tokens(config.llama.vocab_size, config.num_image_tokens)
    parameters = initial_parameters(make, jax.random.key(0))
    parameters["llama.lm_head.kernel"] = endless_head(parameters["llama.lm_head.kernel"], tokens.boi)
    return abstract_parameters(make)[0].build(parameters), tokens


def endless_head(kernel: jax.Array, boi: int) -> jax.Array:
    """An output head that never chooses `<img>`: of two opposite columns one scores above its column of zeros."""
    return kernel.at[:, 4].set(-kernel[:, 3]).at[:, boi].set(0.0)


def prompt(config: StoryMLLMConfig, seed: int = 0) -> tuple[np.ndarray, str]:
    """Image features and a caption of 40 tokens."""
    rng = np.random.default_rng(seed)
    features = config.output_resampler.grid_size**2
    words = " ".join(str(number) for number in rng.integers(5, 2000, TEXT_TOKENS))
    return rng.normal(size=(features, config.input_resampler.kv_dim)).astype(np.float32), words
