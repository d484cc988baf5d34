from pathlib import Path

import pytest

from seedstory_jax.config import SampleConfig, load_config
from seedstory_jax.errors import UserError
from seedstory_jax.generation.policy_names import parse_policy
from seedstory_jax.models.qwen_vit import QwenViTConfig
from seedstory_jax.models.resampler import ResamplerConfig
from seedstory_jax.models.sdxl.vae import VAEConfig

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("variant", "rank", "trainable"), [("", 16, "released"), (":released", 16, "released"), (":paper", 6, "paper")]
)
def test_full_size(variant, rank, trainable):
    config = load_config(f"{ROOT}/configs/seedstory_7b.py{variant}")
    assert config.model.story.llama.lora.rank == rank
    assert config.story.trainable == config.adapt.trainable == trainable
    assert config.model.vit == QwenViTConfig(dtype="bfloat16")
    assert config.model.vae == VAEConfig()
    assert config.model.story.input_resampler == ResamplerConfig(grid_size=8, dtype="bfloat16")
    assert config.story.optimizer.weight_decay == 0.05
    assert config.adapt.optimizer.accumulation == 4


@pytest.mark.parametrize(("variant", "devices"), [("", 8), (":v5e-16", 16), (":one-gpu", 1)])
def test_finetuning(variant, devices):
    """The published model; batches that its mesh divides, in every micro-batch."""
    config = load_config(f"{ROOT}/configs/finetune.py{variant}")
    assert config.model == load_config(f"{ROOT}/configs/seedstory_7b.py").model
    assert config.mesh.data * config.mesh.fsdp * config.mesh.tensor == devices
    for stage in (config.story, config.adapt):
        assert stage.eval_every and stage.optimizer.accumulation >= 1
        assert stage.batch_size // stage.optimizer.accumulation % devices == 0
    assert config.story.supervise == "all" and config.story.max_length >= 2 + 10 * (40 + 66) + 9 * 64


def test_an_unknown_variant_is_refused():
    with pytest.raises(UserError, match="unknown variant 'papper'"):
        load_config(f"{ROOT}/configs/seedstory_7b.py:papper")


def test_small():
    """A published system in small: released adapter and row rule, and sinks scaled to 16 tokens a picture."""
    config = load_config(f"{ROOT}/configs/small.py")
    llama = config.model.story.llama
    assert config.model.base == "smollm2" and llama.tie_word_embeddings and llama.vocab_size == 49152 + 66
    assert (llama.lora.rank, llama.lora.alpha, config.story.trainable) == (16, 32.0, "released")
    assert (config.story.turns, config.story.max_turns, config.sample.window) == ("prefix", 10, 8)
    queries = config.model.story.num_image_tokens
    kept = (config.sample.head[1] - 1) + config.sample.tail[0]  # without <img>
    published = SampleConfig()
    assert kept / queries == pytest.approx(((published.head[1] - 1) + published.tail[0]) / 64, abs=0.02)
    assert config.story.max_length >= 1 + 10 * (2 * queries + 2 + 26)  # captions of tales have 26 tokens on average
    policy = parse_policy("multimodal_sink", config.sample, window=3)
    assert (policy.window, policy.head, policy.tail) == (3, (1, 3), (2, 1))


@pytest.mark.parametrize("counts", ["(4,)", "(1,2,3)"])
def test_counts_around_a_mark_are_two(counts):
    with pytest.raises(UserError, match="two counts are wanted"):
        load_config(f"{ROOT}/configs/small.py", {"sample.head": counts})
