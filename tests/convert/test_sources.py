"""What `convert import` makes of a tree of downloads: prefixes, constants, unknown files, settings beside weights."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from seedstory_jax.checkpoints.readers import StoreReader
from seedstory_jax.convert.importing import import_model, summary
from seedstory_jax.convert.rules import WeightsError
from seedstory_jax.convert.sources import Found, find_sources
from seedstory_jax.errors import UserError

torch = pytest.importorskip("torch")
# What is read does not depend on sizes: one geometry is enough.
pytestmark = pytest.mark.parametrize("published", ["square"], indirect=True, scope="session")


@pytest.fixture
def tree(published, tmp_path):
    """LLaMA and a place for one more checkpoint."""
    shutil.copytree(published.root / "Llama-2-7b-hf", tmp_path / "in" / "Llama-2-7b-hf")
    return tmp_path / "in"


def agent_of(published):
    return torch.load(published.root / "agent" / "pytorch_model.bin", weights_only=True)


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture(scope="module")
def wanted(published, tmp_path_factory):
    """The story model as it comes out of the published names."""
    out = tmp_path_factory.mktemp("wanted") / "model"
    import_model(published.root / "agent", out, published.config)
    return StoreReader(out / "story")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "llm->llm._orig_mod"])
def test_wrappers_prefixes_change_nothing(published, wanted, tree, tmp_path, prefix):
    old, _, new = prefix.partition("->")
    state = agent_of(published)
    state = {(name.replace(old, new, 1) if new else prefix + name): value for name, value in state.items()}
    torch.save(state, tree / "pytorch_model.bin")
    manifest = import_model(tree, tmp_path / "model", published.config)
    assert manifest["modules"]["story"]["fresh"] == []
    ours = StoreReader(tmp_path / "model" / "story")
    for path in wanted.names:
        np.testing.assert_array_equal(ours.read(path), wanted.read(path), strict=True)


def test_an_unknown_prefix_is_no_fresh_story_model(published, tree, tmp_path):
    torch.save({f"student.{name}": value for name, value in agent_of(published).items()}, tree / "pytorch_model.bin")
    with pytest.raises(
        UserError, match=r"pytorch_model\.bin looks like a checkpoint of SEED-Story, .* \('student\.llm"
    ):
        import_model(tree, tmp_path / "model", published.config)


def test_every_file_is_named_with_what_it_was_taken_for(published, tree):
    torch.save(agent_of(published), tree / "agent.bin")
    torch.save({"tower.weight": torch.ones(2)}, tree / "other.pt")
    shutil.copytree(published.root / "QwenViT", tree / "QwenViT")
    found = Found()
    find_sources(tree, found=found)
    seen = {path.relative_to(tree).as_posix(): what for path, what in found.seen.items()}
    assert seen == {
        "Llama-2-7b-hf": "LLaMA",
        "QwenViT/qwen_vit_G.pt": "Qwen-VL's image encoder",
        "agent.bin": "story model",
        "other.pt": "not known, passed over: its tensors' names begin with tower",
    }


def test_constants_may_be_surplus_or_missing(published, wanted, tree, tmp_path):
    state = agent_of(published)
    missing = [name for name in state if name.endswith("resampler.pos_embed")]
    tables = {name: state.pop(name) for name in missing}
    head = "llm.base_model.model.model.layers.0.self_attn.rotary_emb."
    surplus = {f"{head}{each}": torch.ones(4) for each in ("inv_freq", "cos_cached", "sin_cached")}
    torch.save({**state, **surplus, "patch_pos_embed": torch.ones(4, 8)}, tree / "agent.bin")
    manifest = import_model(tree, tmp_path / "model", published.config)
    assert len(tables) == 2 and manifest["modules"]["story"]["fresh"] == []
    ours = StoreReader(tmp_path / "model" / "story")
    from seedstory_jax.models.resampler import sincos_2d

    for part in ("input_resampler", "output_resampler"):
        config = getattr(published.config.story, part)
        table = np.asarray(sincos_2d(config.embed_dim, config.grid_size))
        np.testing.assert_array_equal(ours.read(f"{part}.pos_embed"), table)
    path = "llama.layers.mlp.up_proj.kernel"
    np.testing.assert_array_equal(ours.read(path), wanted.read(path))


def test_what_an_older_detokenizer_holds_twice(published, tmp_path):
    state = torch.load(published.root / "detokenizer" / "pytorch_model.bin", weights_only=True)
    root = tmp_path / "in"
    shutil.copytree(published.root / "stable-diffusion-xl-base-1.0", root / "sdxl")
    again = {f"adapter.{i}.weight": value for i, value in enumerate(v for k, v in state.items() if ".to_k." in k)}
    torch.save({**state, **again}, root / "detokenizer.bin")
    manifest = import_model(root, tmp_path / "model", published.config)
    assert manifest["modules"]["detokenizer"]["fresh"] == []
    torch.save({**{k: v for k, v in state.items() if ".to_k." not in k}, **again}, root / "detokenizer.bin")
    with pytest.raises(WeightsError, match=r"adapter\.0\.weight"):
        import_model(root, tmp_path / "again", published.config)


def test_ignore_passes_over_what_one_names(published, tree, tmp_path):
    state = agent_of(published)
    lacking = next(name for name in state if name.endswith("output_resampler.query"))
    del state[lacking]
    torch.save({**state, "extra.table": torch.ones(2)}, tree / "agent.bin")
    with pytest.raises(WeightsError, match="1 missing, 1 unexpected"):
        import_model(tree, tmp_path / "model", published.config)
    ignore = [r"extra\..*", r"output_resampler\.query"]
    manifest = import_model(tree, tmp_path / "model", published.config, ignore=ignore)
    assert manifest["modules"]["story"]["fresh"] == ["output_resampler.query"]
    assert manifest["ignore"] == ignore
    with pytest.raises(UserError, match="is no regular expression"):
        import_model(tree, tmp_path / "other", published.config, ignore=["("])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_alpha": 64}, r"model\.story\.llama\.lora\.alpha is 8\.0, adapter/adapter_config\.json says 64\.0"),
        ({"r": 7}, r"model\.story\.llama\.lora\.rank is \d, adapter/adapter_config\.json says 7"),
        ({"use_rslora": True}, "use_rslora"),
        ({"use_dora": True}, "use_dora"),
        ({"alpha_pattern": {"q_proj": 32}}, r"alpha_pattern \{'q_proj': 32\}"),
        ({"rank_pattern": {"q_proj": 32}}, "rank_pattern"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"peft_type": "ADALORA"}, "peft_type 'ADALORA'"),
        ({"layers_to_transform": [0]}, "adapters on some layers only"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"target_modules": None}, "target_modules"),
        ({"r": None}, r"adapter/adapter_config\.json: LoRA config: not supported here: r None"),
    ],
)
@pytest.mark.parametrize("given", ["folder", "file"])
def test_an_adapter_s_settings_count(published, tmp_path, adapter, change, message, given):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    edit(folder / "adapter_config.json", **change)
    path = folder if given == "folder" else folder / "adapter_model.safetensors"
    chosen = {"agent": [published.root / "agent" / "pytorch_model.bin", path]}
    with pytest.raises(UserError, match=message) as error:
        import_model(published.root / "Llama-2-7b-hf", tmp_path / "model", published.config, chosen=chosen)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def adapter(published, wanted, tmp_path_factory):
    from seedstory_jax.convert.exporting import export_model

    out = tmp_path_factory.mktemp("export")
    import_model(published.root / "agent", out / "model", published.config)
    export_model(out / "model", out / "parts", parts=("adapter",))
    return out / "parts" / "adapter"


def test_an_adapter_as_trained_is_taken(published, tmp_path, adapter):
    chosen = {"agent": [published.root / "agent" / "pytorch_model.bin", adapter]}
    manifest = import_model(published.root / "Llama-2-7b-hf", tmp_path / "model", published.config, chosen=chosen)
    names = [file["name"] for source in manifest["sources"] for file in source["files"]]
    assert any(name.endswith("adapter_config.json") for name in names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_theta": 5e5, "rope_parameters": None}, r"rope_theta is 10000\.0, Llama-2-7b-hf/config\.json says 5"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"intermediate_size": 99}, "intermediate_size is"),
        ({"rms_norm_eps": 0.1}, r"rms_norm_eps is .*, Llama-2-7b-hf/config\.json says 0\.1"),
        ({"partial_rotary_factor": 0.5}, "rotary positions of a part"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
@pytest.mark.parametrize("given", ["folder", "file"])
def test_a_llama_s_settings_count(published, tree, tmp_path, change, message, given):
    folder = tree / "Llama-2-7b-hf"
    edit(folder / "config.json", **change)
    chosen = {}
    if given == "file":  # a file alone is read with the settings beside it
        tensors = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
        save_file(tensors, folder / "whole.safetensors")
        chosen = {"llama": [folder / "whole.safetensors"]}
    with pytest.raises(UserError, match=message) as error:
        import_model(tree, tmp_path / "model", published.config, chosen=chosen)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("vae", {"scaling_factor": 0.18215}, r"scaling_factor is 0\.13025, vae/config\.json says 0\.18215"),
        ("vae", {"shift_factor": 0.1}, "shift_factor is 0.1"),
        ("scheduler", {"prediction_type": "v_prediction"}, r"prediction_type is 'epsilon', scheduler/scheduler_config"),
        ("scheduler", {"use_karras_sigmas": True}, "use_karras_sigmas is True"),
        ("scheduler", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ("scheduler", {"_class_name": "DDIMScheduler"}, "_class_name is 'DDIMScheduler'"),
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type"),
    ],
)
def test_sdxl_s_settings_count(published, tmp_path, part, change, message):
    shutil.copytree(published.root / "stable-diffusion-xl-base-1.0", tmp_path / "sdxl")
    edit(tmp_path / "sdxl" / part / ("scheduler_config.json" if part == "scheduler" else "config.json"), **change)
    with pytest.raises(UserError, match=message):
        import_model(tmp_path / "sdxl", tmp_path / "model", published.config)


@pytest.mark.parametrize("rows", [0, 7, "base", "multiple"])
def test_vocabularies_of_other_sizes(published, tree, tmp_path, rows):
    """An agent's table of any other size is one clear error; only LLaMA's own is filled up."""
    llama = published.config.story.llama
    given = {"base": llama.vocab_size - 9, "multiple": llama.padded_vocab_size}.get(rows, rows)
    state = agent_of(published)
    for name in [name for name in state if "embed_tokens" in name or "lm_head" in name]:
        state[name] = state[name].new_ones((given, state[name].shape[1]))
    torch.save(state, tree / "agent.bin")
    hint = "ZeRO-3 placeholder" if rows == 0 else f"--config.model.story.llama.vocab_size={given}"
    with pytest.raises(WeightsError, match=hint):
        import_model(tree, tmp_path / "model", published.config)


def test_llama_s_own_table_may_not_be_empty(published, tree, tmp_path):
    for file in (tree / "Llama-2-7b-hf").glob("*.safetensors"):
        tensors = load_file(file)
        if "model.embed_tokens.weight" in tensors:
            tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:0]
            save_file(tensors, file)
    edit(tree / "Llama-2-7b-hf" / "config.json", vocab_size=0)
    with pytest.raises(UserError, match="ZeRO-3 placeholder"):
        import_model(tree, tmp_path / "model", published.config)


@pytest.mark.parametrize("how", ["name", "folder", "template"])
def test_llama_chat_is_named(published, tree, tmp_path, how):
    folder = tree / "Llama-2-7b-hf"
    if how == "name":
        edit(folder / "config.json", _name_or_path="meta-llama/Llama-2-7b-chat-hf")
    elif how == "folder":
        folder = folder.rename(tree / "Llama-2-7b-chat-hf")
    else:
        (folder / "tokenizer_config.json").write_text('{"chat_template": "..."}')
    manifest = import_model(tree, tmp_path / "model", published.config)
    assert manifest["sources"][0]["variant"] == "chat"
    assert f"{folder.name} is LLaMA's chat variant" in summary(manifest)


def test_llama_itself_is_base(published, tree, tmp_path):
    manifest = import_model(tree, tmp_path / "model", published.config)
    assert manifest["sources"][0]["variant"] == "base"
    assert "chat" not in summary(manifest)
