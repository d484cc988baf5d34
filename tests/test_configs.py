from pathlib import Path

import pytest

from seedstory_jax.config import load_config
from seedstory_jax.errors import UserError
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
