"""The SD-XL parts' published names and configs: UNet, VAE, perceiver, de-tokenizer, scheduler; both ways.

UNet, VAE and scheduler are published in diffusers' layout (`config.json` beside the weights), perceiver and
de-tokenizer in SEED-Story's own.
"""

from collections.abc import Mapping
from typing import Any

from seedstory_jax.convert.rules import CONV, IDENTITY, LINEAR, Rule, prefixed
from seedstory_jax.errors import UserError
from seedstory_jax.models.sdxl.detokenizer import DetokenizerConfig
from seedstory_jax.models.sdxl.noise_schedule import SchedulerConfig
from seedstory_jax.models.sdxl.perceiver import PerceiverConfig
from seedstory_jax.models.sdxl.unet import UNetConfig
from seedstory_jax.models.sdxl.vae import VAEConfig

# A de-tokenizer checkpoint may hold the frozen ViT that the released pipeline attaches to it.
DETOKENIZER_IGNORED = (r"visual_encoder\..*", r"discrete_model\..*")

_BLOCK = r"(?P<block>down_blocks\.\d+|mid_block|up_blocks\.\d+)"
_PART = r"(?P<part>encoder|decoder)"


def _norm(source: str, target: str) -> tuple[Rule, ...]:
    return (
        Rule(source + r"\.weight", target + ".scale"),
        Rule(source + r"\.bias", target + ".bias"),
    )


def _conv(source: str, target: str) -> tuple[Rule, ...]:
    return (
        Rule(source + r"\.weight", target + ".kernel", CONV),
        Rule(source + r"\.bias", target + ".bias"),
    )


def _linear(source: str, target: str, *, bias: bool = True) -> tuple[Rule, ...]:
    kernel = Rule(source + r"\.weight", target + ".kernel", LINEAR)
    return (kernel, Rule(source + r"\.bias", target + ".bias")) if bias else (kernel,)


def _resnets(source: str, target: str) -> tuple[Rule, ...]:
    source, target = source + r"\.resnets\.(?P<i>\d+)", target + r".resnets.\g<i>"
    return (
        *_norm(source + r"\.(?P<leaf>norm1|norm2)", target + r".\g<leaf>"),
        *_conv(source + r"\.(?P<leaf>conv1|conv2|conv_shortcut)", target + r".\g<leaf>"),
        *_linear(source + r"\.time_emb_proj", target + ".time_emb_proj"),
    )


def _resizing(source: str, target: str) -> tuple[Rule, ...]:
    return (
        *_conv(source + r"\.downsamplers\.0\.conv", target + ".downsampler.conv"),
        *_conv(source + r"\.upsamplers\.0\.conv", target + ".upsampler.conv"),
    )


def unet_rules(config: UNetConfig | None = None) -> tuple[Rule, ...]:
    """diffusers' `UNet2DConditionModel`; one table fits every size."""
    attention = _BLOCK + r"\.attentions\.(?P<i>\d+)"
    ours = r"\g<block>.attentions.\g<i>"
    block, our_block = attention + r"\.transformer_blocks\.(?P<layer>\d+)", ours + ".transformer_blocks"
    return (
        *_conv(r"(?P<leaf>conv_in|conv_out)", r"\g<leaf>"),
        *_norm(r"conv_norm_out", "conv_norm_out"),
        *_linear(r"(?P<leaf>time_embedding|add_embedding)\.(?P<i>linear_1|linear_2)", r"\g<leaf>.\g<i>"),
        *_resnets(_BLOCK, r"\g<block>"),
        *_resizing(_BLOCK, r"\g<block>"),
        *_norm(attention + r"\.norm", ours + ".norm"),
        *_linear(attention + r"\.(?P<leaf>proj_in|proj_out)", ours + r".\g<leaf>"),
        *_norm(block + r"\.(?P<leaf>norm1|norm2|norm3)", our_block + r".\g<leaf>"),
        *_linear(
            block + r"\.(?P<leaf>attn1|attn2)\.(?P<to>to_q|to_k|to_v)", our_block + r".\g<leaf>.\g<to>", bias=False
        ),
        *_linear(block + r"\.(?P<leaf>attn1|attn2)\.to_out\.0", our_block + r".\g<leaf>.to_out"),
        *_linear(block + r"\.ff\.net\.0\.proj", our_block + ".ff.proj_in"),
        *_linear(block + r"\.ff\.net\.2", our_block + ".ff.proj_out"),
    )


def vae_rules(config: VAEConfig | None = None) -> tuple[Rule, ...]:
    """diffusers' `AutoencoderKL`, with the newer names of its attention (written) and the older ones (read)."""
    attention, ours = _PART + r"\.mid_block\.attentions\.0", r"\g<part>.mid_block.attentions.0"
    blocks = _PART + r"\.(?P<block>down_blocks\.\d+|mid_block|up_blocks\.\d+)"
    older = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out"}
    return (
        *_conv(r"(?P<leaf>quant_conv|post_quant_conv)", r"\g<leaf>"),
        *_conv(_PART + r"\.(?P<leaf>conv_in|conv_out)", r"\g<part>.\g<leaf>"),
        *_norm(_PART + r"\.conv_norm_out", r"\g<part>.conv_norm_out"),
        *_resnets(blocks, r"\g<part>.\g<block>"),
        *_resizing(blocks, r"\g<part>.\g<block>"),
        *_norm(attention + r"\.group_norm", ours + ".group_norm"),
        *_linear(attention + r"\.(?P<leaf>to_q|to_k|to_v)", ours + r".\g<leaf>"),
        *_linear(attention + r"\.to_out\.0", ours + ".to_out"),
        *(rule for old, new in older.items() for rule in _linear(attention + rf"\.{old}", f"{ours}.{new}")),
    )


def perceiver_rules(config: PerceiverConfig | None = None) -> tuple[Rule, ...]:
    """SEED-Story's `ResamplerXLV2`."""
    layer = r"layers\.(?P<layer>\d+)"
    return (
        Rule("latents", "latents", IDENTITY),
        *_linear(r"(?P<leaf>proj_in|unet_proj_1|unet_proj_2)", r"\g<leaf>"),
        *_norm(r"norm_out", "norm_out"),
        *_norm(layer + r"\.0\.(?P<leaf>norm1|norm2)", r"layers.attn.\g<leaf>"),
        *_linear(layer + r"\.0\.(?P<leaf>to_q|to_kv|to_out)", r"layers.attn.\g<leaf>", bias=False),
        *_norm(layer + r"\.1\.0", "layers.ff.norm"),
        *_linear(layer + r"\.1\.1", "layers.ff.proj_in", bias=False),
        *_linear(layer + r"\.1\.3", "layers.ff.proj_out", bias=False),
        Rule(r"unet_attnpool\.positional_embedding", "unet_attnpool.positional_embedding"),
        *_linear(r"unet_attnpool\.(?P<leaf>q_proj|k_proj|v_proj|c_proj)", r"unet_attnpool.\g<leaf>"),
    )


def detokenizer_rules(config: DetokenizerConfig | None = None) -> tuple[Rule, ...]:
    """SEED-Story's `SDXLAdapter`: `unet.*` and `resampler.*`."""
    return prefixed(unet_rules(), "unet.", "unet.") + prefixed(perceiver_rules(), "resampler.", "perceiver.")


# What the published UNet's and VAE's settings must be for our modules to compute the same; absent means yes.
_UNET_FIXED = {
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_type": "positional",
    "use_linear_projection": True,
}
_VAE_FIXED = {
    "act_fn": "silu",
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "shift_factor": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
_SCHEDULER_FIXED = {
    "_class_name": "EulerDiscreteScheduler",
    "final_sigmas_type": "zero",
    "timestep_type": "discrete",
    "sigma_min": None,
    "sigma_max": None,
    "thresholding": False,
    "interpolation_type": "linear",
    "rescale_betas_zero_snr": False,
    "trained_betas": None,
    "use_beta_sigmas": False,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}


def _check_fixed(what: str, published: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    for key, wanted in fixed.items():
        value = published.get(key, wanted)
        if value != wanted and not (wanted is False and value is None):
            raise UserError(f"{what} config: {key} is {value!r}; only {wanted!r} is supported")


def _picked(published: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    values = {name: published[name] for name in names if published.get(name) is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _per_level(value: Any, levels: int) -> tuple[int, ...]:
    return (value,) * levels if isinstance(value, int) else tuple(value)


_UNET_SAME = (
    "in_channels",
    "out_channels",
    "down_block_types",
    "up_block_types",
    "block_out_channels",
    "layers_per_block",
    "norm_num_groups",
    "norm_eps",
    "cross_attention_dim",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
)
_VAE_SAME = (
    "in_channels",
    "out_channels",
    "latent_channels",
    "block_out_channels",
    "layers_per_block",
    "norm_num_groups",
    "scaling_factor",
)
_PERCEIVER_SAME = (
    "dim",
    "depth",
    "dim_head",
    "heads",
    "num_queries",
    "embedding_dim",
    "output1_dim",
    "output2_dim",
    "ff_mult",
)
_SCHEDULER_SAME = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "prediction_type",
    "timestep_spacing",
    "steps_offset",
)


def unet_config_from_published(published: Mapping[str, Any]) -> UNetConfig:
    """Reads a UNet's `config.json`; raises UserError for settings that our UNet does not have."""
    _check_fixed("UNet", published, _UNET_FIXED)
    levels = len(published["block_out_channels"])
    # `attention_head_dim` counts heads, an old mistake that diffusers keeps; `num_attention_heads` is null there.
    heads = published.get("num_attention_heads") or published.get("attention_head_dim", 8)
    return UNetConfig(
        **_picked(published, _UNET_SAME),
        num_attention_heads=_per_level(heads, levels),
        transformer_layers_per_block=_per_level(published.get("transformer_layers_per_block", 1), levels),
    )


def vae_config_from_published(published: Mapping[str, Any]) -> VAEConfig:
    """Reads a VAE's `config.json`; raises UserError for settings that our VAE does not have."""
    _check_fixed("VAE", published, _VAE_FIXED)
    return VAEConfig(**_picked(published, _VAE_SAME))


def perceiver_config_from_published(published: Mapping[str, Any]) -> PerceiverConfig:
    """Reads the constructor arguments of `ResamplerXLV2`."""
    return PerceiverConfig(**_picked(published, _PERCEIVER_SAME))


def detokenizer_config_from_published(published: Mapping[str, Any]) -> DetokenizerConfig:
    """Reads {"unet": UNet's config, "resampler": perceiver's arguments}."""
    return DetokenizerConfig(
        unet=unet_config_from_published(published["unet"]),
        perceiver=perceiver_config_from_published(published["resampler"]),
    )


def scheduler_config_from_published(published: Mapping[str, Any]) -> SchedulerConfig:
    """Reads a `scheduler_config.json`; raises UserError for settings that our Euler method does not have."""
    _check_fixed("scheduler", published, _SCHEDULER_FIXED)
    return SchedulerConfig(**_picked(published, _SCHEDULER_SAME))


def published_unet_config(config: UNetConfig, sample_size: int = 128) -> dict[str, Any]:
    """The UNet's `config.json`, as diffusers reads it; `sample_size`: side of the latents that pipelines begin with."""
    own = {name: getattr(config, name) for name in _UNET_SAME}
    return _as_json(
        {
            "_class_name": "UNet2DConditionModel",
            **own,
            "sample_size": sample_size,
            "attention_head_dim": config.num_attention_heads,
            "transformer_layers_per_block": config.transformer_layers_per_block,
            **_UNET_FIXED,
        }
    )


def published_vae_config(config: VAEConfig, sample_size: int = 1024) -> dict[str, Any]:
    """The VAE's `config.json`, as diffusers reads it; `sample_size`: side of its pictures."""
    levels = len(config.block_out_channels)
    return _as_json(
        {
            "_class_name": "AutoencoderKL",
            **{name: getattr(config, name) for name in _VAE_SAME},
            "sample_size": sample_size,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "force_upcast": True,
            **_VAE_FIXED,
        }
    )


def published_scheduler_config(config: SchedulerConfig) -> dict[str, Any]:
    """The scheduler's `scheduler_config.json`, as diffusers reads it."""
    own = {name: getattr(config, name) for name in _SCHEDULER_SAME}
    return {**own, **{name: value for name, value in _SCHEDULER_FIXED.items() if name != "thresholding"}}


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
