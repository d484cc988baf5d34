import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seedstory_jax.convert.llama import LORA_PATHS, llama_rules
from seedstory_jax.convert.rules import export_tensors, load_tensors
from seedstory_jax.convert.story_mllm import STORY_IGNORE, story_config_from_published, story_rules
from seedstory_jax.models.llama import LlamaConfig
from seedstory_jax.models.lora import LoRAConfig
from seedstory_jax.models.resampler import ResamplerConfig
from seedstory_jax.models.story_mllm import StoryMLLM, StoryMLLMConfig

CONFIG = StoryMLLMConfig(
    llama=LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2,
        lora=LoRAConfig(rank=2, alpha=4.0, dropout=0.0),
    ),
    input_resampler=ResamplerConfig(grid_size=2, embed_dim=32, num_heads=2, kv_dim=24),
    output_resampler=ResamplerConfig(grid_size=3, embed_dim=24, num_heads=2, kv_dim=32),
)  # fmt: skip


def random(seed: int = 0) -> StoryMLLM:
    rng = np.random.default_rng(seed)
    graph, state = nnx.split(nnx.eval_shape(lambda: StoryMLLM(CONFIG, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), state))


@pytest.mark.parametrize("naming", ["published", "peft"])
def test_round_trip_is_exact(naming):
    tensors = export_tensors(random(), story_rules(CONFIG, naming=naming))
    assert "llm.base_model.model.model.norm.modules_to_save.default.weight" in tensors
    assert {"input_resampler.kv_proj.weight", "output_resampler.attn.in_proj_weight"} <= tensors.keys()
    other = random(1)
    load_tensors(other, tensors, story_rules(CONFIG), ignore=STORY_IGNORE)
    for name, tensor in export_tensors(other, story_rules(CONFIG, naming=naming)).items():
        np.testing.assert_array_equal(tensor, tensors[name])


def test_base_model_then_what_was_trained():
    """A bare LLaMA first, then a checkpoint of the trained part over it: together they are the whole."""
    whole = random()
    rules = story_rules(CONFIG)
    bare = dataclasses.replace(CONFIG.llama, lora=None)
    base = export_tensors(whole.llama, llama_rules(bare, naming="plain"), partial=True)
    assert "model.layers.0.self_attn.q_proj.weight" in base
    published = export_tensors(whole, rules)
    trained = {name: tensor for name, tensor in published.items() if not name.endswith("_proj.weight")}
    trained |= {name: tensor for name, tensor in published.items() if "resampler" in name}
    assert len(trained) < len(published)

    other = random(1)
    load_tensors(other, base, rules, partial=[LORA_PATHS, r"(input|output)_resampler\..*", r"llama\.lm_head.*"])
    load_tensors(other, trained, rules, partial=True)
    for name, tensor in export_tensors(other, rules).items():
        np.testing.assert_array_equal(tensor, published[name])


def test_config_from_published_arguments():
    published = {
        "llm": {
            "model": {
                "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
            },
            "peft_config": {
                "r": 2, "lora_alpha": 4, "lora_dropout": 0.0,
                "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            },
        },
        "input_resampler": {"grid_size": 2, "embed_dim": 32, "num_heads": 2, "kv_dim": 24},
        "output_resampler": {"grid_size": 3, "embed_dim": 24, "num_heads": 2, "kv_dim": 32},
        "rec_loss_scale": 6.0,
    }  # fmt: skip
    assert story_config_from_published(published) == dataclasses.replace(CONFIG, feature_loss_scale=6.0)
