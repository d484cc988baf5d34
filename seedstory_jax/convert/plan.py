"""From sources to parameters: every slot of every module gets the one tensor that fills it, before a byte is moved.

Sources of one module are laid over each other (LLaMA, then the agent checkpoint; SD-XL's UNet, then the de-tokenizer
checkpoint), and what is missing, unexpected or wrongly shaped after that is one error.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from seedstory_jax.checkpoints.parts import module_shapes
from seedstory_jax.config import ModelConfig
from seedstory_jax.convert.llama import (
    LLAMA_IGNORE,
    LORA_PATHS,
    llama_config_from_published,
    llama_rules,
    lora_config_from_published,
)
from seedstory_jax.convert.qwen_vit import PREFIX as QWEN_PREFIX
from seedstory_jax.convert.qwen_vit import qwen_vit_config_from_published, qwen_vit_rules
from seedstory_jax.convert.rules import Placement, Rule, WeightsError, prefixed, published_name, slots, survey
from seedstory_jax.convert.sdxl import (
    DETOKENIZER_IGNORED,
    detokenizer_rules,
    scheduler_config_from_published,
    unet_config_from_published,
    unet_rules,
    vae_config_from_published,
    vae_rules,
)
from seedstory_jax.convert.sources import ADAPTER_CONFIG, Source
from seedstory_jax.convert.story_mllm import STORY_IGNORE, story_rules
from seedstory_jax.convert.tensor_files import ArrayFile, Tensors
from seedstory_jax.errors import UserError
from seedstory_jax.models.resampler import sincos_2d

# Each module's name, its sources' kinds in the order in which they are laid over each other, and the kind whose
# presence says that the module must be whole.
MODULES = {
    "vit": (("vit",), "vit"),
    "story": (("llama", "agent"), "agent"),
    "detokenizer": (("unet", "detokenizer"), "detokenizer"),
    "vae": (("vae",), "vae"),
}
TRAINED_AGAIN = (r"adapter\.\d+(\.weight)?",)
DTYPES = ("source", "float32", "bfloat16", "float16")
# Config fields that say how to compute and not what is stored, or that no published config has.
NOT_PUBLISHED = ("dtype", "remat", "unroll", "lora", "pool_heads", "position_grid", "layer_norm_eps")


@dataclass(frozen=True)
class Slot:
    """One slot of a module and the tensor that fills it."""

    placement: Placement
    source: Source

    def read(self) -> np.ndarray:
        """The tensor in our layout, as a view where the transform allows one."""
        return self.placement.rule.transform.forward(self.source.tensors[self.placement.name])


@dataclass(frozen=True)
class ModulePlan:
    """What is written for one module: for each path its shape, dtype and slots; `fresh` paths no source fills."""

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, np.dtype]
    slots: Mapping[str, Sequence[Slot]]
    fresh: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Size of the module when written."""
        return sum(int(np.prod(self.shapes[path])) * self.dtypes[path].itemsize for path in self.slots)


def plan_modules(
    config: ModelConfig, sources: Sequence[Source], dtype: str = "source", *, ignore: Sequence[str] = ()
) -> list[ModulePlan]:
    """The plan of every module that a source speaks of; reads names and shapes only.

    Args:
      config: the model to fill.
      sources: the downloads.
      dtype: storage dtype; "source" keeps each tensor's own (float32 where a stack's layers differ).
      ignore: regular expressions of published names that may be surplus (they are passed over) or missing (what they
        would fill starts fresh).

    Raises:
      UserError: if a source's config.json disagrees with `config`.
      WeightsError: with everything that is missing, unexpected or wrongly shaped, of all sources.
    """
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    check_configs(config, sources)
    permitted = _patterns(ignore)
    plans, missing, unexpected, misshapen = [], [], [], []
    for name, (kinds, whole_if) in MODULES.items():
        given = [source for kind in kinds for source in sources if source.kind == kind]
        if not given:
            continue
        shapes = module_shapes(config, name)
        filled: dict[tuple[str, int | None], Slot] = {}
        for source in given:
            rules, constants = table_of(config, source)
            found = survey(shapes, source.tensors, rules, ignore=(*constants, *ignore), partial=True)
            where = source.path.name
            unexpected += [f"{where}: {complaint}" for complaint in found.unexpected]
            misshapen += [f"{where}: {complaint}{_hint(complaint)}" for complaint in found.misshapen]
            filled |= {(at.path, at.layer): Slot(at, source) for at in found.placements}
        for path, values in position_tables(config, name).items():
            if (path, None) not in filled and any(source.kind == whole_if for source in given):
                computed = Source("computed", Path("(computed)"), (), Tensors([ArrayFile({path: values})]))
                at = Placement(path, path, None, Rule(re.escape(path), path, template=path))
                filled[path, None] = Slot(at, computed)
        whole = any(source.kind == whole_if for source in given)
        for path, layer in slots(shapes, rules):
            published = published_name(rules, path, layer)
            passed = any(pattern.fullmatch(published) for pattern in permitted)
            if (path, layer) not in filled and not passed and (whole or required(path, given)):
                missing.append(f"{name}: {published}")
        by_path: dict[str, list[Slot]] = {}
        for (path, _), slot in filled.items():
            by_path.setdefault(path, []).append(slot)
        plans.append(
            ModulePlan(
                name,
                shapes,
                {path: storage_dtype(path_slots, dtype) for path, path_slots in by_path.items()},
                by_path,
                tuple(path for path in shapes if path not in by_path),
            )
        )
    if missing or unexpected or misshapen:
        what = " + ".join(source.path.name for source in sources if source.tensors)
        raise WeightsError(what, missing=missing, unexpected=unexpected, misshapen=misshapen)
    return plans


def table_of(config: ModelConfig, source: Source) -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    """The table of one source, with our side's paths as in its module, and the names that may be passed over."""
    if source.kind == "vit":
        prefix = QWEN_PREFIX if any(name.startswith(QWEN_PREFIX) for name in source.tensors) else ""
        return prefixed(qwen_vit_rules(config.vit), prefix), ()
    if source.kind == "llama":
        rows = source.config.get("vocab_size")
        return prefixed(llama_rules(config.story.llama, naming="plain", base_rows=rows), "", "llama."), LLAMA_IGNORE
    if source.kind == "agent":
        return story_rules(config.story), STORY_IGNORE
    if source.kind == "unet":
        return prefixed(unet_rules(config.detokenizer.unet), "", "unet."), ()
    if source.kind == "detokenizer":
        # Older checkpoints hold what trained in the UNet a second time, as a list.
        twice = any(re.fullmatch(r"unet\..*\.to_[kv]\.weight", name) for name in source.tensors)
        return detokenizer_rules(config.detokenizer), (*DETOKENIZER_IGNORED, *(TRAINED_AGAIN if twice else ()))
    return vae_rules(config.vae), ()


def _patterns(expressions: Sequence[str]) -> list[re.Pattern]:
    try:
        return [re.compile(expression) for expression in expressions]
    except re.error as error:
        raise UserError(f"--ignore={error.pattern!r} is no regular expression: {error}") from error


def _hint(complaint: str) -> str:
    """What a table of the vocabulary of another size tells."""
    hit = re.match(r"\S*(?:embed_tokens|lm_head)\S* is \[(\d+)", complaint)
    if hit is None:
        return ""
    if hit[1] == "0":
        return " (a ZeRO-3 placeholder: gather the checkpoint with DeepSpeed's zero_to_fp32.py)"
    return f" (--config.model.story.llama.vocab_size={hit[1]} if the model was trained so)"


def position_tables(config: ModelConfig, name: str) -> dict[str, np.ndarray]:
    """Our paths of tables that are constants and not weights, which a checkpoint may lack; and their values."""
    if name != "story":
        return {}
    resamplers = {"input_resampler": config.story.input_resampler, "output_resampler": config.story.output_resampler}
    return {
        f"{part}.pos_embed": np.asarray(sincos_2d(each.embed_dim, each.grid_size)) for part, each in resamplers.items()
    }


def required(path: str, given: Sequence[Source]) -> bool:
    """Whether a base model alone must fill this path (its adapters and the other parts may start fresh)."""
    kinds = {source.kind for source in given}
    if "llama" in kinds and path.startswith("llama."):
        return re.fullmatch(LORA_PATHS, path) is None
    return "unet" in kinds and path.startswith("unet.")


def storage_dtype(path_slots: Sequence[Slot], dtype: str) -> np.dtype:
    """The dtype in which a parameter is written."""
    if dtype != "source":
        return np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    found = {slot.source.tensors.dtype(slot.placement.name) for slot in path_slots}
    return found.pop() if len(found) == 1 else np.dtype(np.float32)


def check_configs(config: ModelConfig, sources: Sequence[Source]) -> None:
    """Raises UserError, with every difference, if a published config is not the model that `config` describes."""
    readers: dict[str, tuple[Callable[[Mapping[str, Any]], Any], Any, str]] = {
        "llama": (llama_config_from_published, config.story.llama, "model.story.llama"),
        "unet": (unet_config_from_published, config.detokenizer.unet, "model.detokenizer.unet"),
        "vae": (vae_config_from_published, config.vae, "model.vae"),
        "scheduler": (scheduler_config_from_published, config.scheduler, "model.scheduler"),
        "agent": (lora_config_from_published, config.story.llama.lora, "model.story.llama.lora"),
        "vit": (lambda published: qwen_vit_config_from_published(published["visual"]), config.vit, "model.vit"),
    }
    differences = []
    for source in sources:
        if source.kind not in readers or not source.config:
            continue
        read, ours, where = readers[source.kind]
        try:
            theirs = read(source.config)
        except UserError as error:
            raise UserError(f"{_config_name(source)}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{_config_name(source)}: cannot be read: {type(error).__name__}: {error}") from error
        if ours is None:
            differences.append(f"{where} is None, {_config_name(source)} describes an adapter")
            continue
        for field in dataclasses.fields(ours):
            mine, published = getattr(ours, field.name), getattr(theirs, field.name)
            if field.name in NOT_PUBLISHED or mine == published or (source.kind, field.name) == ("agent", "dropout"):
                continue
            if source.kind == "llama" and field.name == "vocab_size" and published < mine:
                continue  # the base model lacks the image tokens
            differences.append(f"{where}.{field.name} is {mine!r}, {_config_name(source)} says {published!r}")
    if differences:
        raise UserError(
            "the config describes another model than the sources: " + "; ".join(differences) + " (change the config, "
            "e.g. --config." + differences[0].split(" is ")[0] + "=...)"
        )


def _config_name(source: Source) -> Path:
    name = {"scheduler": "scheduler_config.json", "agent": ADAPTER_CONFIG}.get(source.kind, "config.json")
    folder = source.path.parent if source.path.is_file() else source.path
    return Path(folder.name) / name
