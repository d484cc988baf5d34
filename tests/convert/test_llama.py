import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seedstory_jax.convert.llama import (
    LLAMA_IGNORE,
    LORA_PATHS,
    adapter_config,
    llama_config_from_published,
    llama_config_to_published,
    llama_rules,
    lora_config_from_published,
)
from seedstory_jax.convert.rules import export_tensors, load_tensors
from seedstory_jax.errors import UserError
from seedstory_jax.models.llama import Llama, LlamaConfig, causal_mask
from seedstory_jax.models.llama_inference import InferenceLlama
from seedstory_jax.models.lora import LoRAConfig

TINY = LlamaConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    lora=LoRAConfig(rank=3, alpha=5.0, dropout=0.1),
)
GEOMETRIES = [
    dataclasses.replace(TINY, lora=None),
    dataclasses.replace(TINY, lora=None, hidden_size=24, num_heads=3, num_kv_heads=1, num_layers=3, rms_norm_eps=1e-3),
    dataclasses.replace(TINY, lora=None, vocab_size=130, num_kv_heads=4, rope_theta=500.0),
    dataclasses.replace(TINY, lora=None, vocab_size=130, rope_theta=1e5, tie_word_embeddings=True),
]
PEFT = {
    "r": 3,
    "lora_alpha": 5,
    "lora_dropout": 0.1,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "modules_to_save": ["input_layernorm", "post_attention_layernorm", "norm"],
}


# peft asks transformers for a name that transformers is about to drop.
peft_warnings = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def blank(config: LlamaConfig) -> Llama:
    """A model of zeros, so that whatever is not loaded shows."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state))


def random(config: LlamaConfig, seed: int = 0) -> Llama:
    rng = np.random.default_rng(seed)
    graph, state = nnx.split(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.2, x.dtype), state))


def loaded(config: LlamaConfig, tensors, **kwargs) -> Llama:
    llama = blank(config)
    load_tensors(llama, tensors, llama_rules(config), ignore=LLAMA_IGNORE, **kwargs)
    return llama


def logits(llama: Llama | InferenceLlama, ids: np.ndarray) -> np.ndarray:
    graph, state = nnx.split(llama)

    @jax.jit
    def run(state):
        model = nnx.merge(graph, state)
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        return model.logits(model(model.embed(jnp.asarray(ids)), positions, causal_mask(jnp.ones(ids.shape, bool))))

    with jax.default_matmul_precision("highest"):
        return np.asarray(run(state))[..., : llama.config.vocab_size]


def ids_for(config: LlamaConfig) -> np.ndarray:
    return np.random.default_rng(5).integers(0, config.vocab_size, (2, 7))


def torch_llama(config: LlamaConfig):
    """transformers' own class with random weights and norms that are not one."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    published = llama_config_to_published(config)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**published, initializer_range=0.1)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.rand_like(parameter))
    return model


def with_adapter(base):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(base, peft.LoraConfig(**PEFT, task_type="CAUSAL_LM")).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def arrays(model) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def torch_logits(model, ids):
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor(ids)).logits.numpy()


def close(ours, reference):
    assert np.linalg.norm(ours - reference) <= 1e-4 * np.linalg.norm(reference)


@pytest.mark.parametrize("config", GEOMETRIES, ids=["grouped", "one kv head", "full heads", "tied"])
def test_plain_names_and_numbers_are_those_of_transformers(config):
    model = torch_llama(config)
    tensors = arrays(model)
    assert llama_config_from_published(model.config.to_dict()) == config
    llama = loaded(config, tensors)
    close(logits(llama, ids_for(config)), torch_logits(model, ids_for(config)))
    exported = export_tensors(llama, llama_rules(config, naming="plain"))
    # torch lists a tied table twice
    assert tensors.keys() - exported.keys() == ({"lm_head.weight"} if config.tie_word_embeddings else set())
    for name, tensor in exported.items():
        np.testing.assert_array_equal(tensor, tensors[name])


@pytest.mark.parametrize("naming", ["plain", "published", "peft"])
def test_a_tied_table_is_written_once_and_read_under_either_name(naming):
    config = dataclasses.replace(TINY, tie_word_embeddings=True, lora=None if naming == "plain" else TINY.lora)
    llama = random(config)
    tensors = export_tensors(llama, llama_rules(config, naming=naming))
    assert not any("lm_head" in name for name in tensors)
    table = next(name for name in tensors if "embed_tokens" in name)
    head = table.replace("model.embed_tokens", "lm_head")
    for given in (tensors, {head if name == table else name: tensor for name, tensor in tensors.items()}):
        again = export_tensors(loaded(config, given), llama_rules(config, naming=naming))
        assert again.keys() == tensors.keys()
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(again[name], tensor)
    with pytest.raises(UserError, match="1 missing"):
        loaded(config, {name: tensor for name, tensor in tensors.items() if name != table})


@peft_warnings
def test_todays_peft_in_and_out_and_merged():
    model = with_adapter(torch_llama(TINY))
    tensors = arrays(model)
    assert lora_config_from_published(model.peft_config["default"].to_dict()) == TINY.lora
    llama = loaded(TINY, tensors)
    reference = torch_logits(model, ids_for(TINY))
    close(logits(llama, ids_for(TINY)), reference)
    close(logits(InferenceLlama(llama), ids_for(TINY)), reference)
    exported = export_tensors(llama, llama_rules(TINY, naming="peft"))
    assert exported.keys() == {name for name in tensors if "original_module" not in name}
    for name, tensor in exported.items():
        np.testing.assert_array_equal(tensor, tensors[name])


@peft_warnings
def test_adapter_folder_loads_with_peft(tmp_path):
    """Our adapter over their base gives our numbers; and is read back to the bit."""
    pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from safetensors.numpy import load_file, save_file

    base = torch_llama(TINY)
    llama = random(TINY)
    load_tensors(llama, arrays(base), llama_rules(TINY), partial=[LORA_PATHS])
    for trained in (llama.norm.scale, llama.lm_head.kernel, llama.embed_tokens.embedding):
        trained[...] += 0.1 * np.random.default_rng(3).normal(size=trained.shape)
    adapter = export_tensors(llama, llama_rules(TINY, naming="adapter"), partial=True)
    save_file(adapter, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter_config(TINY)))
    close(
        torch_logits(peft.PeftModel.from_pretrained(base, tmp_path).eval(), ids_for(TINY)), logits(llama, ids_for(TINY))
    )

    again = random(TINY, seed=1)
    load_tensors(again, load_file(tmp_path / "adapter_model.safetensors"), llama_rules(TINY), partial=True)
    for name, tensor in export_tensors(again, llama_rules(TINY, naming="adapter"), partial=True).items():
        np.testing.assert_array_equal(tensor, adapter[name])


@pytest.mark.parametrize("naming", ["published", "peft"])
def test_round_trip_is_exact_under_both_peft_namings(naming):
    llama = random(TINY)
    tensors = export_tensors(llama, llama_rules(TINY, naming=naming))
    suffix = ".base_layer.weight" if naming == "peft" else ".weight"
    assert f"base_model.model.model.layers.1.mlp.up_proj{suffix}" in tensors
    assert "base_model.model.model.norm.modules_to_save.default.weight" in tensors
    assert tensors["base_model.model.lm_head.weight"].shape == (50, 32)
    again = export_tensors(loaded(TINY, tensors), llama_rules(TINY, naming=naming))
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(again[name], tensor)


def test_leftovers_are_ignored_and_strangers_are_not():
    tensors = export_tensors(random(TINY), llama_rules(TINY))
    layer = "base_model.model.model.layers.0."
    leftovers = {
        layer + "self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
        layer + "input_layernorm.original_module.weight": np.full(32, 7, np.float32),
    }
    llama = loaded(TINY, tensors | leftovers)
    assert not (llama.layers.input_layernorm.scale[...] == 7).any()
    with pytest.raises(UserError, match="1 unexpected"):
        loaded(TINY, tensors | {layer + "self_attn.q_proj.bias": np.zeros(32, np.float32)})
    missing = f"{layer}mlp.up_proj.lora_A.default.weight"
    with pytest.raises(UserError, match="1 missing"):
        loaded(TINY, {name: tensor for name, tensor in tensors.items() if name != missing})
    with pytest.raises(UserError, match="1 wrongly shaped"):
        loaded(TINY, tensors | {missing: np.zeros((4, 32), np.float32)})


def test_a_shorter_vocabulary_is_welcome_only_when_announced():
    config = dataclasses.replace(TINY, lora=None)
    tensors = export_tensors(random(config), llama_rules(config, naming="plain"))
    base = tensors | {name: tensors[name][:44] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    with pytest.raises(UserError, match="2 wrongly shaped"):
        loaded(config, base)
    llama = blank(config)
    load_tensors(llama, base, llama_rules(config, base_rows=44))
    table = np.asarray(llama.embed_tokens.embedding[...])
    np.testing.assert_allclose(table[44:50], np.tile(table[:44].mean(0), (6, 1)), atol=1e-6)
    assert not table[50:].any()
    assert not np.asarray(llama.lm_head.kernel[...])[:, 50:].any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_scaling"),
        ({"attention_bias": True}, "biases"),
        ({"head_dim": 64}, "head_dim 64"),
    ],
)
def test_llamas_of_another_kind_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        llama_config_from_published(llama_config_to_published(TINY) | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_modules": ["q_proj"]}, "target_modules"),
        ({"peft_type": "ADALORA"}, "peft_type 'ADALORA'"),
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"bias": "all"}, "biases"),
        ({"modules_to_save": ["rotary"]}, "modules_to_save"),
    ],
)
def test_adapters_of_another_kind_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        lora_config_from_published(PEFT | changes)
