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


def test_an_unknown_variant_is_refused():
    with pytest.raises(UserError, match="unknown variant 'papper'"):
        load_config(f"{ROOT}/configs/seedstory_7b.py:papper")
