from pathlib import Path

import pytest

from seedstory_jax.config import Config, differing_keys, from_dict, load_config, override, to_dict
from seedstory_jax.errors import UserError

TOY = Path(__file__).resolve().parents[1] / "configs" / "toy.py"


def test_defaults_are_the_published_sizes():
    model = Config().model
    assert model.story.llama.vocab_size == 32066
    assert model.vit.width == 1664
    assert model.detokenizer.unet.block_out_channels == (320, 640, 1280)
    assert model.vae.scaling_factor == 0.13025
    assert Config().story.optimizer.learning_rate == 1e-4


def test_a_config_survives_json():
    config = load_config(TOY)
    assert from_dict(Config, to_dict(config)) == config


@pytest.mark.parametrize(
    ("key", "text", "read"),
    [
        ("story.steps", "12", lambda c: c.story.steps == 12),
        ("stages", "story,adapt", lambda c: c.stages == ("story", "adapt")),
        ("stages", "story", lambda c: c.stages == ("story",)),
        ("model.story.llama.lora", "none", lambda c: c.model.story.llama.lora is None),
        ("story.optimizer.learning_rate", "1", lambda c: c.story.optimizer.learning_rate == 1.0),
        ("story.dropout", "false", lambda c: c.story.dropout is False),
        ("data.folder", "1", lambda c: c.data.folder == "1"),
    ],
)
def test_overrides_are_read_in_the_fields_type(key, text, read):
    assert read(load_config(TOY, {key: text}))


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("story.stpes", "1", "did you mean 'steps'"),
        ("stroy.steps", "1", "did you mean 'story'"),
        ("story.steps.more", "1", "has no key 'more'"),
        ("story.steps", "x", "takes int, not 'x'"),
        ("story", "x", "is a section"),
    ],
)
def test_a_wrong_override_names_the_way_out(key, text, message):
    with pytest.raises(UserError, match=message):
        override(load_config(TOY), {key: text})


@pytest.mark.parametrize("key", ["story.supervise", "sample.checkpoint", "sample.weights", "adapt.on_nonfinite"])
def test_a_word_that_is_no_choice_is_refused_with_the_choices(key):
    with pytest.raises(UserError, match=rf"{key} is 'latest'; choose from '"):
        load_config(TOY, {key: "latest"})


def test_sizes_that_do_not_fit_together_are_refused():
    with pytest.raises(UserError, match=r"perceiver\.embedding_dim is 128, but model\.vit\.output_dim is 64"):
        changes = {"model.vit.output_dim": "64", "model.story.input_resampler.kv_dim": "64"}
        load_config(TOY, changes | {"model.story.output_resampler.embed_dim": "64"})


def test_keys_that_depend_on_each_other_are_set_together():
    sizes = {"model.vit.image_size": "60", "model.vit.patch_size": "12"}
    for changes in (sizes, dict(reversed(sizes.items()))):
        vit = load_config(TOY, changes).model.vit
        assert (vit.image_size, vit.patch_size) == (60, 12)
    with pytest.raises(UserError, match=r"config section 'model\.vit': image_size 60 is no multiple of patch_size 16"):
        load_config(TOY, {"model.vit.image_size": "60"})
    with pytest.raises(UserError, match=r"model\.vit\.patch_size is 0, but must be at least 1"):
        load_config(TOY, {"model.vit.patch_size": "0"})


def test_config_files_that_do_not_run(tmp_path):
    with pytest.raises(UserError, match="not found"):
        load_config(tmp_path / "none.py")
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config(:\n")
    with pytest.raises(UserError, match="does not run: SyntaxError"):
        load_config(broken)
    broken.write_text("x = 1\n")
    with pytest.raises(UserError, match=r"no get_config"):
        load_config(broken)


def test_differing_keys_are_dotted():
    assert differing_keys({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ["a.c: 2 -> 3"]


def test_a_config_has_a_name_that_works_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy").mkdir()  # a folder of that name is no config
    assert load_config("toy") == load_config(TOY)
    assert load_config("seedstory_7b:paper") == load_config(f"{TOY.parent / 'seedstory_7b.py'}:paper")
    assert load_config("finetune").model.image_size == 1024


def test_what_is_no_name_lists_the_names():
    with pytest.raises(UserError, match="unknown config 'toi': choose from finetune, seedstory_7b, small, toy, or"):
        load_config("toi")
    with pytest.raises(UserError, match=r"'configs/toi.py' not found.*--config=toy"):
        load_config("configs/toi.py")
