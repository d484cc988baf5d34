from dataclasses import replace

import jax
import pytest

from seedstory_jax.generation import decode
from seedstory_jax.generation.aot import lower_programs
from seedstory_jax.generation.flops import buffer_bytes, turn_cost
from seedstory_jax.generation.policies import Dense, MultimodalSink, Window, WindowRecompute
from seedstory_jax.models.llama import LlamaConfig
from seedstory_jax.models.parameters import abstract_parameters
from seedstory_jax.models.resampler import ResamplerConfig
from seedstory_jax.models.story_mllm import StoryMLLM, StoryMLLMConfig

WIDE = StoryMLLMConfig(
    llama=LlamaConfig(
        vocab_size=256, hidden_size=128, intermediate_size=256, num_layers=2, num_heads=4, num_kv_heads=4, lora=None,
    ),
    input_resampler=ResamplerConfig(grid_size=4, embed_dim=128, num_heads=4, kv_dim=128),
    output_resampler=ResamplerConfig(grid_size=8, embed_dim=128, num_heads=4, kv_dim=128),
)  # fmt: skip


@pytest.mark.parametrize("name", ["predict_image", "append_image"])
def test_counted_as_xla_counts(name):
    module_def, parameters = abstract_parameters(lambda rngs: StoryMLLM(WIDE, rngs=rngs).for_inference())
    image = tuple(range(200, 216))
    tokens = decode.SpecialTokens(bos=1, eos=2, boi=3, eoi=4, image=image, barred=(*image, 4))
    spec = decode.EngineSpec(module_def, WIDE, tokens, "slot", max_text_tokens=14)
    calls = lower_programs(spec, parameters, Window(window=2), batch=1, slots=128, dtype="float32")
    analysis = calls[name]().compile().cost_analysis()
    counted = getattr(turn_cost(WIDE, Window(window=2), turns=9, text_tokens=14, max_text_tokens=14), name)
    assert counted <= analysis["flops"] < 1.1 * counted


def test_the_papers_setting_at_full_size():
    """LLaMA-2-7B, captions of 40 tokens, 50 turns: reading the window again costs several times as much."""
    config = StoryMLLMConfig()
    config = replace(config, llama=replace(config.llama, lora=None))

    def total(policy):
        return turn_cost(config, policy, turns=50, text_tokens=40, max_text_tokens=40).total

    assert total(WindowRecompute()) / total(MultimodalSink()) == pytest.approx(5.48, abs=0.05)
    assert total(MultimodalSink()) / total(Window()) == pytest.approx(1.04, abs=0.01)
    assert total(Dense()) > total(MultimodalSink())
    assert buffer_bytes(config.llama, 1, 2048, "bfloat16") == 2**30


def test_decoding_choices_are_counted():
    cost = turn_cost(WIDE, Window(window=2), turns=9, text_tokens=14, max_text_tokens=14)
    longer = turn_cost(WIDE, Window(window=2), turns=9, text_tokens=7, max_text_tokens=14)
    assert jax.tree.leaves([cost.predict_image, cost.append_image]) == [longer.predict_image, longer.append_image]
    assert 1.8 < cost.decode_text / longer.decode_text < 2
