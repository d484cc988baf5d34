import math
from dataclasses import replace

import jax
import pytest

from seedstory_jax.generation import decode
from seedstory_jax.generation.aot import lower_programs
from seedstory_jax.generation.engine import StoryEngine
from seedstory_jax.generation.interface import GenerationConfig
from seedstory_jax.generation.policies import MultimodalSink, slot_count
from seedstory_jax.models.parameters import abstract_parameters
from seedstory_jax.models.story_mllm import StoryMLLM, StoryMLLMConfig


def test_full_size_lowers_from_shapes_alone():
    """LLaMA-2-7B state 50 turns: nothing of it is allocated."""
    config = StoryMLLMConfig()
    config = replace(config, llama=replace(config.llama, lora=None, dtype="bfloat16"))
    module_def, parameters = abstract_parameters(lambda rngs: StoryMLLM(config, rngs=rngs).for_inference())
    image = tuple(range(32002, 32066))
    tokens = decode.SpecialTokens(bos=1, eos=2, boi=32000, eoi=32001, image=image, barred=(*image, 32001))
    spec = decode.EngineSpec(module_def, config, tokens, "slot", max_text_tokens=40)
    slots = slot_count(MultimodalSink(), 50, 106)
    calls = lower_programs(spec, parameters, MultimodalSink(), batch=1, slots=slots, dtype="bfloat16")
    assert list(calls) == ["prefill_text", "decode_text", "predict_image", "append_image", "evict"]
    for lower in calls.values():
        out = lower().out_info
        state = out if isinstance(out, decode.GenerationState) else out[0]
        assert [keys.shape for keys in state.buffer.k] == [(1, 32, 128, 2048)] * 32
        assert [values.shape for values in state.buffer.v] == [(1, 32, 2048, 128)] * 32
    kv = jax.tree.leaves((state.buffer.k, state.buffer.v))
    assert sum(math.prod(one.shape) * one.dtype.itemsize for one in kv) == 1_073_741_824  # bytes for fifty images


@pytest.mark.parametrize("name", ["decode_text", "evict"])
def test_what_is_lowered_compiles_and_updates_in_place(name, story_model, tokenizer):
    engine = StoryEngine(
        story_model, tokenizer, MultimodalSink(window=2), GenerationConfig(length=8, max_text_tokens=6)
    )
    parameters = {key: jax.ShapeDtypeStruct(value.shape, value.dtype) for key, value in engine.parameters.items()}
    calls = lower_programs(engine.spec, parameters, engine.policy, batch=2, slots=1024, dtype="float32")
    memory = calls[name]().compile().memory_analysis()
    buffer = 2 * 2 * 2 * 1024 * 2 * 8 * 4
    assert memory.alias_size_in_bytes >= buffer
    assert memory.temp_size_in_bytes < buffer / 2, "a second buffer was made"


@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="older versions copy what a barrier is to protect")
def test_decoding_copies_neither_weights_nor_buffer():
    """bfloat16 on a CPU: of the float32 copies that its products want, one layer's are held at a time."""
    config = StoryMLLMConfig()
    width = {"hidden_size": 128, "intermediate_size": 384, "num_layers": 24, "num_heads": 4, "num_kv_heads": 4}
    llama = replace(config.llama, vocab_size=500, lora=None, dtype="bfloat16", **width)
    resampler = {"embed_dim": 128, "num_heads": 4, "kv_dim": 128}
    config = replace(
        config,
        llama=llama,
        input_resampler=replace(config.input_resampler, **resampler),
        output_resampler=replace(config.output_resampler, **resampler),
    )
    module_def, shapes = abstract_parameters(lambda rngs: StoryMLLM(config, rngs=rngs).for_inference())
    shapes = {name: jax.ShapeDtypeStruct(shape.shape, "bfloat16") for name, shape in shapes.items()}
    image = tuple(range(430, 494))
    tokens = decode.SpecialTokens(bos=1, eos=2, boi=3, eoi=4, image=image, barred=image)
    spec = decode.EngineSpec(module_def, config, tokens, "slot", max_text_tokens=40)
    program = lower_programs(spec, shapes, MultimodalSink(), batch=1, slots=256, dtype="bfloat16")["decode_text"]()
    memory = program.compile().memory_analysis()
    weights = sum(2 * math.prod(shape.shape) for name, shape in shapes.items() if name.startswith("llama."))
    assert memory.temp_size_in_bytes < 0.15 * weights
