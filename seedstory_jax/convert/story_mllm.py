"""Names of the published story model (`ContinuousLVLM`): `llm.` (a peft-wrapped LLaMA) and the two resamplers."""

from collections.abc import Mapping
from typing import Any

from seedstory_jax.convert.llama import LLAMA_IGNORE, Naming, llama_config_from_published, llama_rules
from seedstory_jax.convert.resampler import resampler_config_from_published, resampler_rules
from seedstory_jax.convert.rules import Rule, prefixed
from seedstory_jax.models.story_mllm import StoryMLLMConfig

# SEED-X's positions of a picture's patches, which SEED-Story's model does not have and its loader passes over.
STORY_IGNORE = (*LLAMA_IGNORE, r"(.*\.)?patch_pos_embed")


def story_rules(
    config: StoryMLLMConfig, *, naming: Naming = "published", base_rows: int | None = None
) -> tuple[Rule, ...]:
    """The agent checkpoint's table; arguments as `llama_rules`.

    The same table reads a bare LLaMA (`model.layers...`, no `llm.`) into its place, so that a base model and an agent
    checkpoint over it need one table.
    """
    llama = llama_rules(config.llama, naming=naming, base_rows=base_rows)
    return (
        *prefixed(llama, "llm.", "llama."),
        *prefixed(llama, "", "llama."),
        *prefixed(resampler_rules(config.input_resampler), "input_resampler.", "input_resampler."),
        *prefixed(resampler_rules(config.output_resampler), "output_resampler.", "output_resampler."),
    )


def story_config_from_published(config: Mapping[str, Any]) -> StoryMLLMConfig:
    """Reads the constructor arguments: `llm.model`, `llm.peft_config`, both resamplers, the two loss scales."""
    return StoryMLLMConfig(
        llama=llama_config_from_published(config["llm"]["model"], config["llm"].get("peft_config")),
        input_resampler=resampler_config_from_published(config["input_resampler"]),
        output_resampler=resampler_config_from_published(config["output_resampler"]),
        lm_loss_scale=config.get("lm_loss_scale", 1.0),
        feature_loss_scale=config.get("rec_loss_scale", 1.0),
    )
