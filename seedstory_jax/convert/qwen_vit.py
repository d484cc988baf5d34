"""Names of Qwen-VL's image encoder (`transformer.visual.*` of Qwen-VL-Chat, or the extracted `qwen_vit_G.pt`)."""

from collections.abc import Mapping
from typing import Any

from seedstory_jax.convert.resampler import resampler_rules
from seedstory_jax.convert.rules import CONV, LINEAR, Rule, prefixed
from seedstory_jax.models.qwen_vit import QwenViTConfig

PREFIX = "transformer.visual."  # where the encoder lies in Qwen-VL-Chat


def qwen_vit_rules(config: QwenViTConfig) -> tuple[Rule, ...]:
    """The encoder's table, names without `PREFIX`."""
    block = r"transformer\.resblocks\.(?P<layer>\d+)\."
    return (
        Rule(r"conv1\.weight", "conv1.kernel", CONV),
        Rule("positional_embedding", "positional_embedding"),
        Rule(r"(?P<norm>ln_pre|ln_post)\.weight", r"\g<norm>.scale"),
        Rule(r"(?P<norm>ln_pre|ln_post)\.bias", r"\g<norm>.bias"),
        Rule(block + r"(?P<norm>ln_1|ln_2)\.weight", r"resblocks.\g<norm>.scale"),
        Rule(block + r"(?P<norm>ln_1|ln_2)\.bias", r"resblocks.\g<norm>.bias"),
        Rule(block + r"attn\.(?P<linear>in_proj|out_proj)\.weight", r"resblocks.attn.\g<linear>.kernel", LINEAR),
        Rule(block + r"attn\.(?P<linear>in_proj|out_proj)\.bias", r"resblocks.attn.\g<linear>.bias"),
        Rule(block + r"mlp\.(?P<linear>c_fc|c_proj)\.weight", r"resblocks.mlp.\g<linear>.kernel", LINEAR),
        Rule(block + r"mlp\.(?P<linear>c_fc|c_proj)\.bias", r"resblocks.mlp.\g<linear>.bias"),
        *prefixed(resampler_rules(config.pool), "attn_pool.", "attn_pool."),
        Rule("proj", "proj"),
    )


def qwen_vit_config_from_published(config: Mapping[str, Any]) -> QwenViTConfig:
    """Reads the constructor arguments of the published class (the `visual` section of Qwen-VL-Chat's config.json)."""
    return QwenViTConfig(
        image_size=config["image_size"],
        patch_size=config["patch_size"],
        width=config["width"],
        layers=config["layers"],
        heads=config["heads"],
        mlp_ratio=config["mlp_ratio"],
        n_queries=config.get("n_queries", 256),
        output_dim=config["output_dim"],
    )
