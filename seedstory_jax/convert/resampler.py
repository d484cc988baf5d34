"""Names of the Qwen resampler (`qwen_visual.Resampler`)."""

from collections.abc import Mapping
from typing import Any

from seedstory_jax.convert.rules import LINEAR, Rule
from seedstory_jax.models.resampler import ResamplerConfig


def resampler_rules(config: ResamplerConfig) -> tuple[Rule, ...]:
    """The table of one resampler; `kv_proj` is there only where the widths differ."""
    projection = (Rule(r"kv_proj\.weight", "kv_proj.kernel", LINEAR),) if config.kv_dim != config.embed_dim else ()
    return (
        Rule("query", "query"),
        Rule("pos_embed", "pos_embed"),
        *projection,
        Rule(r"(?P<norm>ln_q|ln_kv)\.weight", r"\g<norm>.scale"),
        Rule(r"(?P<norm>ln_q|ln_kv)\.bias", r"\g<norm>.bias"),
        Rule(r"attn\.in_proj_(?P<part>weight|bias)", r"attn.in_proj_\g<part>"),
        Rule(r"attn\.out_proj\.weight", "attn.out_proj.kernel", LINEAR),
        Rule(r"attn\.out_proj\.bias", "attn.out_proj.bias"),
    )


def resampler_config_from_published(config: Mapping[str, Any]) -> ResamplerConfig:
    """Reads the constructor arguments of the published class; `kv_dim` None means the same width."""
    return ResamplerConfig(
        grid_size=config["grid_size"],
        embed_dim=config["embed_dim"],
        num_heads=config["num_heads"],
        kv_dim=config.get("kv_dim") or config["embed_dim"],
        layer_norm_eps=config.get("layer_norm_eps", 1e-5),
    )
