from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.generation.build import for_sampling
from seedstory_jax.generation.engine import StoryEngine
from seedstory_jax.generation.interface import GenerationConfig
from seedstory_jax.generation.policies import Dense
from seedstory_jax.models.lora import LoRAConfig
from seedstory_jax.models.parameters import abstract_parameters, initial_parameters, split_module
from seedstory_jax.models.story_mllm import StoryMLLM


@pytest.fixture(scope="module")
def adapted(story_model):
    """The tiny model with adapters that do something."""
    config = replace(story_model.config, llama=replace(story_model.config.llama, lora=LoRAConfig(rank=4)))

    def make(rngs):
        return StoryMLLM(config, rngs=rngs)

    parameters = initial_parameters(make, jax.random.key(1))
    rng = np.random.default_rng(0)
    for name, value in parameters.items():
        if name.endswith("lora_b"):
            parameters[name] = jnp.asarray(rng.normal(size=value.shape) * 0.05, value.dtype)
    return abstract_parameters(make)[0].build(parameters)


def predicted_features(model, tokenizer, image_features):
    config = GenerationConfig(length=4, max_text_tokens=6, allow_end=False)
    story = StoryEngine(model, tokenizer, Dense(), config).start(image_features[0], "abc")
    return np.stack([story.next(text).predicted_image_features for text in ("de", "f", "gh")])


def test_merged_adapters_generate_the_same(adapted, tokenizer, image_features):
    merged = for_sampling(adapted, dtype="float32")
    assert not any("lora" in name for name in split_module(merged)[1])
    full, same = (predicted_features(model, tokenizer, image_features) for model in (adapted, merged))
    np.testing.assert_allclose(full, same, atol=1e-4)


@pytest.mark.parametrize(("weights", "limit"), [("", 0.05), ("int8", 0.08)])
def test_fewer_bits_generate_nearly_the_same(weights, limit, adapted, tokenizer, image_features):
    small = for_sampling(adapted, weights=weights)
    parameters = split_module(small)[1]
    wanted = {"kernel": jnp.int8 if weights else jnp.bfloat16, "scale": jnp.float32}
    for name, value in parameters.items():
        if name.startswith("llama.layers."):
            assert value.dtype == wanted[name.rpartition(".")[2]], name
    full, rounded = (predicted_features(model, tokenizer, image_features) for model in (adapted, small))
    assert np.linalg.norm(rounded - full) < limit * np.linalg.norm(full)


def test_unknown_weights_are_refused(adapted):
    with pytest.raises(UserError, match="choose int8"):
        for_sampling(adapted, weights="int4")
