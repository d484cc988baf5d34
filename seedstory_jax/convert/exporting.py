"""`convert export`: what was trained (or converted) back under its published names, so that nobody is locked in.

| part | what it is | who loads it |
|---|---|---|
| vit | `qwen_vit_G.safetensors` | the published image encoder |
| agent | the whole story model, `llm.*` and both resamplers | the published `ContinuousLVLM` |
| adapter | LoRA, norms, embedding and head | `peft.PeftModel.from_pretrained` over `llama` |
| llama | the base model with the image tokens | `transformers.LlamaForCausalLM.from_pretrained` |
| detokenizer | `unet.*` and `resampler.*` | the published `SDXLAdapter` |
| unet, vae, scheduler | one folder each | `diffusers` `from_pretrained` |
| tokenizer | its files | `transformers.AutoTokenizer.from_pretrained` |
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from seedstory_jax.checkpoints.parts import module_shapes
from seedstory_jax.checkpoints.readers import NEWEST, Reader, StoredModel, open_model
from seedstory_jax.config import ModelConfig, nearest
from seedstory_jax.convert.importing import byte_bar
from seedstory_jax.convert.llama import (
    LORA_PATHS,
    adapter_config,
    llama_config_to_published,
    llama_rules,
)
from seedstory_jax.convert.plan import DTYPES
from seedstory_jax.convert.qwen_vit import qwen_vit_rules
from seedstory_jax.convert.rules import Placement, Rule, WeightsError, export_names, prefixed
from seedstory_jax.convert.sdxl import (
    detokenizer_rules,
    published_scheduler_config,
    published_unet_config,
    published_vae_config,
    unet_rules,
    vae_rules,
)
from seedstory_jax.convert.story_mllm import story_rules
from seedstory_jax.convert.tensor_files import Outgoing, write_safetensors
from seedstory_jax.errors import UserError
from seedstory_jax.files import atomic_folder


@dataclass(frozen=True)
class Part:
    """One exported folder: a module's parameters that `holds` accepts, under the names of `rules`."""

    module: str
    file: str
    rules: Callable[[ModelConfig], Sequence[Rule]]
    config_file: str = ""
    config: Callable[[ModelConfig], Mapping[str, Any]] | None = None
    holds: Callable[[str], bool] = lambda path: True


def _is_lora(path: str) -> bool:
    return re.fullmatch(LORA_PATHS, path) is not None


def _is_base_matrix(path: str) -> bool:
    return ".layers." in path and path.endswith("_proj.kernel")


def _llama(naming: str) -> Callable[[ModelConfig], Sequence[Rule]]:
    return lambda config: prefixed(llama_rules(config.story.llama, naming=naming), "", "llama.")


TENSOR_PARTS = {
    "vit": Part("vit", "qwen_vit_G.safetensors", lambda config: qwen_vit_rules(config.vit)),
    "agent": Part("story", "model.safetensors", lambda config: story_rules(config.story)),
    "adapter": Part(
        "story",
        "adapter_model.safetensors",
        _llama("adapter"),
        "adapter_config.json",
        lambda config: adapter_config(config.story.llama),
        lambda path: path.startswith("llama.") and not _is_base_matrix(path),
    ),
    "llama": Part(
        "story",
        "model.safetensors",
        _llama("plain"),
        "config.json",
        lambda config: llama_config_to_published(config.story.llama),
        lambda path: path.startswith("llama.") and not _is_lora(path),
    ),
    "detokenizer": Part("detokenizer", "model.safetensors", lambda config: detokenizer_rules(config.detokenizer)),
    "unet": Part(
        "detokenizer",
        "diffusion_pytorch_model.safetensors",
        lambda config: prefixed(unet_rules(config.detokenizer.unet), "", "unet."),
        "config.json",
        lambda config: published_unet_config(config.detokenizer.unet, config.image_size // config.vae.downscale),
        lambda path: path.startswith("unet."),
    ),
    "vae": Part(
        "vae",
        "diffusion_pytorch_model.safetensors",
        lambda config: vae_rules(config.vae),
        "config.json",
        lambda config: published_vae_config(config.vae, config.image_size),
    ),
}
PARTS = (*TENSOR_PARTS, "scheduler", "tokenizer")


def export_model(
    workdir: Path, out: Path, *, parts: Sequence[str] = (), dtype: str = "source", checkpoint: str = NEWEST
) -> dict[str, str]:
    """Writes the model in `workdir` (a training workdir or a converted folder) into the new folder `out`.

    Args:
      workdir: where the model is.
      out: the folder to make, one subfolder a part; it appears when everything is written.
      parts: some of `PARTS`; empty takes all for which the model has everything.
      dtype: dtype of the written tensors; "source" keeps what is stored.
      checkpoint: "newest", or "best" of a workdir's stages that were evaluated.

    Returns:
      part -> "" if it was written, else why not.

    Raises:
      UserError: for an unknown part, one the model does not hold wholly, an existing `out` or too small a disk.
    """
    for part in parts:
        if part not in PARTS:
            raise UserError(f"unknown part {part!r}: {nearest(part, PARTS)}")
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    if out.exists():
        raise UserError(f"{out} exists; choose another --out or remove it first")
    model = open_model(workdir, checkpoint)
    outgoing: dict[str, dict[str, Outgoing]] = {}
    verdicts: dict[str, str] = {}
    for name, part in TENSOR_PARTS.items():
        if parts and name not in parts:
            continue
        verdicts[name] = what_is_lacking(model, name, part)
        if not verdicts[name]:
            outgoing[name] = tensors_of_part(model, part, dtype)
        elif parts:
            raise UserError(f"{workdir}: {name} cannot be exported: {verdicts[name]}")
    needed = sum(tensor.bytes for tensors in outgoing.values() for tensor in tensors.values())
    free = shutil.disk_usage(next(path for path in out.absolute().parents if path.exists())).free
    if needed > free:
        raise UserError(f"{needed / 1e9:.1f} GB are to be written, {free / 1e9:.1f} GB are free; choose some --parts")
    with atomic_folder(out) as folder:
        for name, tensors in outgoing.items():
            _write_part(folder / name, TENSOR_PARTS[name], model.config, tensors, name)
        if not parts or "scheduler" in parts:
            _write_json(
                folder / "scheduler", "scheduler_config.json", published_scheduler_config(model.config.scheduler)
            )
            verdicts["scheduler"] = ""
        if not parts or "tokenizer" in parts:
            verdicts["tokenizer"] = "" if model.tokenizer is not None else "there is no tokenizer folder"
            if model.tokenizer is not None:
                shutil.copytree(model.tokenizer, folder / "tokenizer")
            elif parts:
                raise UserError(f"{workdir}: tokenizer cannot be exported: {verdicts['tokenizer']}")
    return verdicts


def what_is_lacking(model: StoredModel, name: str, part: Part) -> str:
    """Why a part cannot be exported; "" if it can."""
    if name == "adapter" and model.config.story.llama.lora is None:
        return "the model has no LoRA adapter"
    reader = model.modules.get(part.module)
    held = set(reader.names) if reader is not None else set()
    wanted = {path: shape for path, shape in module_shapes(model.config, part.module).items() if part.holds(path)}
    absent = [path for path in wanted if path not in held]
    if absent:
        return f"{len(absent)} of its {len(wanted)} parameters are in no checkpoint, {absent[0]} for example"
    try:
        export_names(wanted, part.rules(model.config))
    except WeightsError as error:
        return f"the published model has nothing like {', '.join(error.missing)}"
    return ""


def tensors_of_part(model: StoredModel, part: Part, dtype: str) -> dict[str, Outgoing]:
    """Every published tensor of a part, to be read when it is written."""
    reader = model.modules[part.module]
    shapes = {path: reader.shape(path) for path in module_shapes(model.config, part.module) if part.holds(path)}
    outgoing = {}
    for name, at in export_names(shapes, part.rules(model.config)).items():
        ours = shapes[at.path] if at.layer is None else shapes[at.path][1:]
        stand_in = np.broadcast_to(np.zeros((), np.int8), ours)
        stored = reader.dtype(at.path)
        outgoing[name] = Outgoing(
            at.rule.transform.inverse(stand_in).shape,
            stored if dtype == "source" else np.dtype(getattr(ml_dtypes, dtype, None) or dtype),
            _reading(reader, at),
        )
    return outgoing


def _reading(reader: Reader, at: Placement) -> Callable[[], np.ndarray]:
    return lambda: at.rule.transform.inverse(reader.read(at.path, at.layer))


def _write_part(folder: Path, part: Part, config: ModelConfig, tensors: Mapping[str, Outgoing], title: str) -> None:
    folder.mkdir()
    if part.config is not None:
        _write_json(folder, part.config_file, part.config(config))
    with byte_bar(title, sum(tensor.bytes for tensor in tensors.values())) as progress:
        write_safetensors(folder / part.file, tensors, progress.update)


def _write_json(folder: Path, name: str, value: Mapping[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(value, indent=2) + "\n")
