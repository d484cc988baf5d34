"""Another run's workdir as the base: what it trained is taken over, what it has not starts fresh."""

import dataclasses

import numpy as np
import pytest

from seedstory_jax.checkpoints.converted import ModuleWriter, write_manifest
from seedstory_jax.checkpoints.load import load_parameters
from seedstory_jax.config import to_dict
from seedstory_jax.data.text_tokenizer import train_tokenizer
from seedstory_jax.errors import UserError
from seedstory_jax.features.run_data import RunData
from seedstory_jax.models.lora import LoRAConfig


def with_llama(model, base, **changes):
    llama = dataclasses.replace(model.story.llama, **changes)
    return dataclasses.replace(model, base=str(base), story=dataclasses.replace(model.story, llama=llama))


def test_lora_over_another_run(micro, trained_workdir, tmp_path):
    own = load_parameters(micro.model, ("story",), trained_workdir, seed=micro.seed)
    found = load_parameters(with_llama(micro.model, trained_workdir, lora=LoRAConfig(2)), ("story",), tmp_path, seed=5)
    for name, value in own.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    fresh = found.keys() - own.keys()
    assert len(fresh) == 14 and all(".lora_" in name for name in fresh)
    assert all(not np.asarray(found[name]).any() for name in fresh if name.endswith("lora_b"))


def test_a_base_of_another_size_or_without_the_part(micro, trained_workdir, tmp_path):
    with pytest.raises(UserError, match=r"sizes must be those of the stored model"):
        load_parameters(with_llama(micro.model, trained_workdir, intermediate_size=48), ("story",), tmp_path, seed=0)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text((trained_workdir / "config.json").read_text())
    with pytest.raises(UserError, match=r"holds no checkpoint yet"):
        load_parameters(dataclasses.replace(micro.model, base=str(tmp_path / "run")), ("vit",), tmp_path, seed=0)


def test_a_base_that_is_a_language_model_alone(micro, tmp_path):
    """It speaks of no other part, and brings its own tokenizer."""
    base = tmp_path / "lm"
    base.mkdir()
    ModuleWriter(base / "story", {"llama.norm.scale": np.dtype("f4")})
    write_manifest(base, {"modules": {"story": {}}, "config": to_dict(micro.model)})
    model = dataclasses.replace(micro.model, base=str(base))
    with pytest.raises(UserError, match="has no trained vae"):
        load_parameters(model, ("vae",), tmp_path, seed=0)
    without = load_parameters(dataclasses.replace(model, base=""), ("vae",), tmp_path, seed=0, may_be_random=("vae",))
    for name, value in load_parameters(model, ("vae",), tmp_path, seed=0, may_be_random=("vae",)).items():
        np.testing.assert_array_equal(value, without[name])
    train_tokenizer(["A fox and a bear."], base / "tokenizer")
    config = dataclasses.replace(micro, model=model, data=dataclasses.replace(micro.data, tokenizer=""))
    assert RunData(config, tmp_path).tokenizer.folder == base / "tokenizer"
