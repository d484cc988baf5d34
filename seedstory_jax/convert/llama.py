"""Names of LLaMA's tensors: plain (Hugging Face), wrapped by peft 0.4 (as SEED-Story published), by newer peft, or as
an adapter folder.

One table reads all four; `naming` chooses which of them is written.

* plain: `model.layers.0.self_attn.q_proj.weight`; no adapter; norms `...input_layernorm.weight`.
* published: all behind `base_model.model.`, adapters `...q_proj.lora_A.default.weight` beside the base's
  `...q_proj.weight`, norms `...input_layernorm.modules_to_save.default.weight`.
* peft: the same with the base's `...q_proj.base_layer.weight`.
* adapter: no base matrices; `...q_proj.lora_A.weight`, norms `...input_layernorm.weight`.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from seedstory_jax.convert.rules import LINEAR, Rule, Transform, chained
from seedstory_jax.errors import UserError
from seedstory_jax.models.llama import LlamaConfig
from seedstory_jax.models.lora import LoRAConfig

Naming = Literal["plain", "published", "peft", "adapter"]

LLAMA_IGNORE = (
    r".*\.rotary_emb\..*",  # buffers that the original's class stores (frequencies, tables); computed here
    r".*\.original_module\.weight",  # peft's leftover beside modules_to_save.default, which is the one in use
)
LORA_PATHS = r"(.*\.)?lora_[ab]"  # our paths that a base model's checkpoint does not fill
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SAVED = ("input_layernorm", "post_attention_layernorm", "norm")  # trained whole, beside the adapter


def llama_rules(config: LlamaConfig, *, naming: Naming = "published", base_rows: int | None = None) -> tuple[Rule, ...]:
    """The table of one LLaMA.

    Args:
        config: the model to fill.
        naming: which names an export writes; reading takes them all.
        base_rows: a vocabulary shorter than the config's that is welcome as well (32000 for Llama-2 itself, whose
            66 image tokens are new). The new rows become the mean of the old ones.
    """
    wrapped = naming != "plain"
    prefix = "base_model.model." if wrapped else ""
    head = r"(?:base_model\.model\.)?"
    layer = head + r"model\.layers\.(?P<layer>\d+)\."
    layer_out = prefix + "model.layers.{layer}."
    saved = r"\.(?:modules_to_save\.default\.)?weight"
    saved_out = ".modules_to_save.default.weight" if naming in ("published", "peft") else ".weight"
    base_out = ".base_layer.weight" if naming == "peft" else ".weight"
    lora_out = ".weight" if naming == "adapter" else ".default.weight"
    table = vocabulary_rows(config, base_rows)
    projection = r"(?P<part>self_attn|mlp)\.(?P<name>[a-z]+_proj)"
    projection_out = "{part}.{name}"

    rules = [
        Rule(
            head + r"model\.embed_tokens" + saved,
            "embed_tokens.embedding",
            table,
            template=prefix + "model.embed_tokens.weight",
            shared=config.tie_word_embeddings,
        ),
        Rule(
            layer + r"(?P<norm>input_layernorm|post_attention_layernorm)" + saved,
            r"layers.\g<norm>.scale",
            template=layer_out + "{norm}" + saved_out,
        ),
    ]
    if naming != "adapter":
        rules.append(
            Rule(
                layer + projection + r"\.(?:base_layer\.)?weight",
                r"layers.\g<part>.\g<name>.kernel",
                LINEAR,
                template=layer_out + projection_out + base_out,
            )
        )
    if wrapped and config.lora is not None:
        rules += [
            Rule(
                layer + projection + rf"\.lora_{published}\.(?:default\.)?weight",
                rf"layers.\g<part>.\g<name>.lora_{ours}",
                LINEAR,
                template=layer_out + projection_out + f".lora_{published}" + lora_out,
            )
            for published, ours in (("A", "a"), ("B", "b"))
        ]
    return (
        *rules,
        Rule(head + r"model\.norm" + saved, "norm.scale", template=prefix + "model.norm" + saved_out),
        # Of a tied model some files hold the table a second time, under the head's name.
        Rule(head + r"lm_head" + saved, "embed_tokens.embedding", table, prefix + "lm_head.weight", shared=True)
        if config.tie_word_embeddings
        else Rule(
            head + r"lm_head" + saved,
            "lm_head.kernel",
            chained(table, LINEAR),
            template=prefix + "lm_head.weight",
        ),
    )


def vocabulary_rows(config: LlamaConfig, base_rows: int | None = None) -> Transform:
    """A [vocab d] table padded with zeros to `padded_vocab_size` rows; the padding never leaves again."""
    rows, padded = config.vocab_size, config.padded_vocab_size

    def forward(table: np.ndarray) -> np.ndarray:
        if table.ndim == 2 and table.shape[0] == padded != rows:  # its last rows are tokens there, and padding here
            raise ValueError(f"a table of {padded} rows, where the vocabulary has {rows}")
        if table.ndim != 2 or not table.shape[0] or table.shape[0] not in (rows, base_rows):
            return table  # the caller's shape check says what is wrong
        if table.shape[0] < rows:
            mean = table.astype(np.float32).mean(0, keepdims=True).astype(table.dtype)
            table = np.concatenate([table, np.repeat(mean, rows - table.shape[0], axis=0)])
        return np.pad(table, ((0, padded - rows), (0, 0)))

    return Transform(forward, lambda table: table[:rows])


def llama_config_from_published(model: Mapping[str, Any], peft: Mapping[str, Any] | None = None) -> LlamaConfig:
    """Reads a LLaMA's `config.json` and, where there is one, the `adapter_config.json` (or `peft_config`) beside it.

    Raises UserError for what this model is not: another activation, scaled or partial rotary positions,
    biases, adapters of another kind or on other layers.
    """
    rope = model.get("rope_parameters") or {}
    scaling = model.get("rope_scaling")
    scaled = rope.get("rope_type", "default") != "default" or (
        scaling and scaling.get("rope_type", scaling.get("type")) != "default"
    )
    heads, width = model["num_attention_heads"], model["hidden_size"]
    refused = {
        f"hidden_act {model.get('hidden_act', 'silu')!r} (only silu)": model.get("hidden_act", "silu") != "silu",
        f"rope_scaling {scaling or rope}": scaled,
        "rotary positions of a part of each head": (
            rope.get("partial_rotary_factor") or model.get("partial_rotary_factor") or 1.0
        )
        != 1.0,
        f"quantization_config {model.get('quantization_config')}": bool(model.get("quantization_config")),
        "biases": model.get("attention_bias", False) or model.get("mlp_bias", False),
        f"head_dim {model.get('head_dim')}": (model.get("head_dim") or width // heads) * heads != width,
    }
    _refuse("LLaMA config", refused)
    return LlamaConfig(
        vocab_size=model["vocab_size"],
        hidden_size=width,
        intermediate_size=model["intermediate_size"],
        num_layers=model["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=model.get("num_key_value_heads") or heads,
        rms_norm_eps=model.get("rms_norm_eps", 1e-6),
        rope_theta=float(rope.get("rope_theta") or model.get("rope_theta") or 1e4),
        tie_word_embeddings=bool(model.get("tie_word_embeddings", False)),
        lora=None if peft is None else lora_config_from_published(peft),
    )


def lora_config_from_published(peft: Mapping[str, Any]) -> LoRAConfig:
    """Reads peft's LoRA config; raises UserError for adapters of another kind or on other layers."""
    targets = peft.get("target_modules") or ()
    modules = peft.get("modules_to_save") or ()
    refused = {
        f"r {peft.get('r')!r}": type(peft.get("r")) is not int,
        f"lora_alpha {peft.get('lora_alpha')!r}": type(peft.get("lora_alpha")) not in (int, float),
        f"peft_type {peft.get('peft_type')!r} (only LORA)": str(peft.get("peft_type") or "LORA")
        .upper()
        .rpartition(".")[2]
        != "LORA",
        f"target_modules {sorted(targets)} (all of {', '.join(ADAPTED)} are adapted here)": set(targets)
        != set(ADAPTED),
        f"modules_to_save {sorted(modules)}": not set(modules) <= {*SAVED, "embed_tokens", "lm_head"},
        "use_rslora (scaled by alpha / sqrt(rank))": peft.get("use_rslora", False),
        "use_dora": peft.get("use_dora", False),
        "fan_in_fan_out (matrices stored transposed)": peft.get("fan_in_fan_out", False),
        f"init_lora_weights {peft.get('init_lora_weights')!r}, which changes the base's matrices": peft.get(
            "init_lora_weights", True
        )
        not in (True, False, None, "gaussian"),
        "adapters on some layers only": any(
            peft.get(key) for key in ("layers_to_transform", "layers_pattern", "layer_replication", "exclude_modules")
        ),
        "adapter biases": peft.get("bias", "none") != "none" or peft.get("lora_bias", False),
        f"rank_pattern {peft.get('rank_pattern')}": bool(peft.get("rank_pattern")),
        f"alpha_pattern {peft.get('alpha_pattern')}": bool(peft.get("alpha_pattern")),
    }
    _refuse("LoRA config", refused)
    return LoRAConfig(rank=peft["r"], alpha=float(peft["lora_alpha"]), dropout=float(peft.get("lora_dropout", 0.0)))


def adapter_config(config: LlamaConfig, base_model: str | None = None) -> dict[str, Any]:
    """`adapter_config.json` for peft: what `PeftModel.from_pretrained` needs beside the adapter's tensors."""
    if config.lora is None:
        raise UserError("this model has no LoRA adapter to describe; export the whole model instead")
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": config.lora.dropout,
        "target_modules": list(ADAPTED),
        "modules_to_save": list(SAVED),
        "bias": "none",
        "inference_mode": True,
    }


def llama_config_to_published(config: LlamaConfig, *, max_position_embeddings: int = 4096) -> dict[str, Any]:
    """`config.json` of transformers' LlamaForCausalLM."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": max_position_embeddings,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tie_word_embeddings,
    }


def _refuse(what: str, reasons: Mapping[str, Any]) -> None:
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise UserError(f"{what}: not supported here: {'; '.join(found)}")
