"""A tiny story model with what an ablation needs."""

import jax.numpy as jnp
import numpy as np
import pytest

from seedstory_jax.config import SampleConfig
from seedstory_jax.evaluation.ablation import Setup
from seedstory_jax.generation.interface import GenerationConfig
from seedstory_jax.generation.story_files import Request
from seedstory_jax.models.llama import LlamaConfig
from seedstory_jax.models.parameters import abstract_parameters
from seedstory_jax.models.resampler import ResamplerConfig
from seedstory_jax.models.story_mllm import StoryMLLM, StoryMLLMConfig

CONFIG = StoryMLLMConfig(
    llama=LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2, num_kv_heads=2, lora=None
    ),
    input_resampler=ResamplerConfig(grid_size=2, embed_dim=16, num_heads=2, kv_dim=8),
    output_resampler=ResamplerConfig(grid_size=2, embed_dim=8, num_heads=2, kv_dim=16),
)


class Tokenizer:
    bos, eos, boi, eoi = 1, 2, 3, 4
    image_ids = tuple(range(5, 9))

    def first_turn(self, caption):
        return [10 + ord(letter) - ord("a") for letter in caption]

    def next_turn(self, caption):
        return [9, *self.first_turn(caption)]

    def decode(self, ids, skip_special=False):
        return "".join(chr(ord("a") + (i - 10) % 26) for i in ids)

    def refuse_markup(self, text):
        pass


@pytest.fixture(scope="session")
def setup() -> Setup:
    module_def, shapes = abstract_parameters(lambda rngs: StoryMLLM(CONFIG, rngs=rngs))
    rng = np.random.default_rng(1)
    drawn = {name: rng.normal(size=one.shape, scale=one.shape[-1] ** -0.5) for name, one in shapes.items()}
    model = module_def.build({name: jnp.asarray(value, jnp.float32) for name, value in drawn.items()})

    def render(features, stories, frames):
        value = np.asarray(stories) * 10 + np.asarray(frames)
        return np.broadcast_to(value[:, None, None, None], (len(value), 8, 8, 3)).astype(np.uint8)

    config = GenerationConfig(max_text_tokens=3, allow_end=False)
    return Setup(model, Tokenizer(), config, sample=SampleConfig(window=2), render=render, identity={"checkpoint": 1})


@pytest.fixture(scope="session")
def requests() -> list[Request]:
    rng = np.random.default_rng(2)
    picture = np.zeros((8, 8, 3), np.uint8)
    return [Request(f"s{n}", n, "ab", rng.normal(size=(4, 8)).astype(np.float32), picture) for n in range(3)]
