"""Export from a training workdir: stages over each other, over a converted base."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seedstory_jax.checkpoints.parts import PARTS
from seedstory_jax.checkpoints.readers import StoreReader, open_model
from seedstory_jax.checkpoints.stage import Checkpoints
from seedstory_jax.config import Config, ModelConfig, to_dict
from seedstory_jax.convert.exporting import export_model
from seedstory_jax.convert.importing import import_model
from seedstory_jax.errors import UserError
from seedstory_jax.models.llama import LlamaConfig
from seedstory_jax.models.lora import LoRAConfig
from seedstory_jax.models.parameters import initial_parameters, with_prefix
from seedstory_jax.models.resampler import ResamplerConfig
from seedstory_jax.models.story_mllm import StoryMLLMConfig

MODEL = ModelConfig(
    story=StoryMLLMConfig(
        llama=LlamaConfig(30, 16, 20, 2, 2, 2, lora=LoRAConfig(2)),
        input_resampler=ResamplerConfig(2, 16, 2, 64),
        output_resampler=ResamplerConfig(2, 64, 2, 16),
    )
)


def trained(seed):
    return with_prefix("story", initial_parameters(PARTS["story"](MODEL), jax.random.key(seed)))


def make_workdir(folder, parameters, base="", step=7):
    folder.mkdir(parents=True)
    config = Config(model=ModelConfig(**{**MODEL.__dict__, "base": base}))
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    checkpoints = Checkpoints(folder / "story")
    for at, shift in ((step - 1, 1), (step, 0)):  # only the newest counts
        checkpoints.save(at, {name: value + shift for name, value in parameters.items()}, [jnp.zeros(1)], {"step": at})
    checkpoints.close()


@pytest.fixture(scope="module")
def parameters():
    return trained(0)


def test_a_workdir_is_exported_and_imported_again(parameters, tmp_path):
    # The stage did not train the position tables, which are what they were at the start.
    make_workdir(tmp_path / "run", {name: value for name, value in parameters.items() if "pos_embed" not in name})
    verdicts = export_model(tmp_path / "run", tmp_path / "out")
    assert [part for part, reason in verdicts.items() if not reason] == ["agent", "adapter", "llama", "scheduler"]
    assert "are in no checkpoint" in verdicts["unet"]
    import_model(tmp_path / "out", tmp_path / "again", MODEL)
    reader = StoreReader(tmp_path / "again" / "story")
    padded = ("llama.embed_tokens.embedding", "llama.lm_head.kernel")
    for name, value in parameters.items():
        path = name.removeprefix("story.")
        value = np.array(value)
        if path in padded:  # the padding of the vocabulary does not travel
            (value if path == padded[0] else value.T)[30:] = 0
        np.testing.assert_array_equal(reader.read(path), value, strict=True)


def test_what_was_trained_lies_over_the_base(parameters, tmp_path):
    make_workdir(tmp_path / "first", parameters)
    export_model(tmp_path / "first", tmp_path / "published", parts=("agent",))
    import_model(tmp_path / "published", tmp_path / "base", MODEL)
    newer = {name: value for name, value in trained(1).items() if "lora" in name}
    make_workdir(tmp_path / "second", newer, base=str(tmp_path / "base"))
    story = open_model(tmp_path / "second").modules["story"]
    np.testing.assert_array_equal(
        story.read("llama.layers.mlp.up_proj.lora_a"), newer["story.llama.layers.mlp.up_proj.lora_a"]
    )
    np.testing.assert_array_equal(
        story.read("llama.layers.mlp.up_proj.kernel", 1), parameters["story.llama.layers.mlp.up_proj.kernel"][1]
    )


def test_what_cannot_be_exported_is_refused(parameters, tmp_path):
    make_workdir(tmp_path / "run", parameters)
    for part, message in (
        ("vae", "are in no checkpoint"),
        ("tokenizer", "no tokenizer"),
        ("vea", "did you mean 'vae'"),
    ):
        with pytest.raises(UserError, match=message):
            export_model(tmp_path / "run", tmp_path / "out", parts=(part,))
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither a workdir"):
        export_model(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "empty" / "config.json").write_text(json.dumps(to_dict(Config())))
    with pytest.raises(UserError, match="no checkpoint yet"):
        export_model(tmp_path / "empty", tmp_path / "out")
