"""The downloads: which folder below `--source` is what, told by its contents and not by its name.

| kind | what it is | told by |
|---|---|---|
| llama | Llama-2-7b-hf, or a LLaMA as GGUF | `config.json` of a LLaMA; `.gguf` |
| vit | Qwen-VL-Chat, or the extracted `qwen_vit_G.pt` | `visual` in `config.json`; names of a file |
| unet, vae, scheduler | stable-diffusion-xl-base-1.0 | `model_index.json`, or each part's own config |
| agent | SEED-X's or SEED-Story's story model | `llm.*` or `input_resampler.*` in a file |
| detokenizer | SEED-Story's de-tokenizer | `resampler.*` in a file |
| tokenizer | LLaMA's tokenizer with the image tokens | `<img_00000>` in its files; `.gguf` |
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seedstory_jax.convert.gguf import open_gguf
from seedstory_jax.convert.qwen_vit import PREFIX as QWEN_PREFIX
from seedstory_jax.convert.tensor_files import NO_WEIGHTS, SHARD, Tensors, open_file, unwrapped, weight_files
from seedstory_jax.errors import UserError
from seedstory_jax.files import read_json

KINDS = ("llama", "vit", "unet", "vae", "scheduler", "agent", "detokenizer", "tokenizer")
LAYERED = ("agent", "detokenizer")  # may be given several times: later ones are laid over earlier ones
DEPTH = 6  # folders below --source that are searched
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
IMAGE_TOKEN = b"<img_00000>"
ADAPTER_CONFIG = "adapter_config.json"
# Names that nothing but a story model's or a de-tokenizer's checkpoint has, under whatever prefix.
SEED_STORY = re.compile(r"(?:^|\.)(?:lora_[AB]\.|llm\.|(?:input_|output_)?resampler\.)")
TITLES = {
    "llama": "LLaMA",
    "vit": "Qwen-VL's image encoder",
    "unet": "SD-XL's UNet",
    "vae": "SD-XL's VAE",
    "scheduler": "SD-XL's noise schedule",
    "agent": "story model",
    "detokenizer": "de-tokenizer",
    "tokenizer": "tokenizer with image tokens",
}


@dataclass(frozen=True)
class Source:
    """One download: its files, its tensors (none for scheduler and tokenizer), its published config if it has one.

    An agent's config is the `adapter_config.json` beside it.
    """

    kind: str
    path: Path
    files: tuple[Path, ...]
    tensors: Tensors = field(default_factory=lambda: Tensors(()))
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Found:
    """What a search saw: paths by kind, what each was taken for, files that may be SEED-Story's but are not known."""

    paths: dict[str, list[Path]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    seen: dict[Path, str] = field(default_factory=dict)
    suspects: dict[Path, str] = field(default_factory=dict)  # and one of the names in it

    def add(self, kind: str, path: Path) -> None:
        """Notes a download."""
        self.paths[kind].append(path)
        self.seen[path] = TITLES[kind] if path not in self.seen else f"{self.seen[path]}; {TITLES[kind]}"

    def unknown(self, path: Path, names: Sequence[str]) -> None:
        """Notes a file of tensors that is nothing we know."""
        starts = ", ".join(sorted({name.split(".")[0] for name in names})[:4])
        self.seen[path] = f"not known, passed over: its tensors' names begin with {starts}"
        suspect = next((name for name in names if SEED_STORY.search(name)), None)
        if suspect is not None:
            self.suspects[path] = suspect


def find_sources(
    root: Path, chosen: Mapping[str, Sequence[Path]] | None = None, found: Found | None = None
) -> list[Source]:
    """Looks through `root` (not followed: hidden folders) and opens what it knows.

    Args:
      root: the folder of downloads, or one download.
      chosen: kind -> paths that are taken instead of searching for that kind; "sdxl" stands for unet, vae, scheduler.
      found: is filled with what was looked at.

    Raises:
      UserError: if nothing is found, several of a kind are (the message names the flag that chooses), or a file is
        broken.
    """
    chosen = {kind: list(paths) for kind, paths in (chosen or {}).items() if paths}
    for path in chosen.pop("sdxl", []):
        for kind, part in _pipeline(path).items():
            chosen.setdefault(kind, [part])
    if not root.is_dir():
        raise UserError(f"no folder {str(root)!r}; --source is the folder that holds the downloads")
    found = Found() if found is None else found
    _search(root, found, DEPTH)
    taken = dict(found.paths)
    extracted = [path for path in taken["vit"] if path.is_file()]
    taken["vit"] = extracted or taken["vit"]  # the same weights; the extracted file is the smaller one
    whole = [path for path in taken["agent"] if not path.name.startswith("adapter_model")]
    taken["agent"] = whole or taken["agent"]  # an adapter folder beside the whole model says nothing new
    taken |= chosen
    for kind, paths in found.paths.items():
        for path in paths:
            if not any(path.samefile(each) for each in taken[kind] if each.exists()):
                found.seen[path] += ", not taken"
    sources = []
    for kind, paths in taken.items():
        if len(paths) > 1 and kind not in chosen:
            listed = ", ".join(str(path.relative_to(root)) for path in paths)
            layered = f", or several, each laid over the one before: --{kind}=A --{kind}=B" if kind in LAYERED else ""
            raise UserError(f"{len(paths)} sources of kind {kind}: {listed}; choose one with --{kind}=PATH{layered}")
        sources += [_open(kind, path) for path in paths]
    if not sources:
        raise UserError(
            f"{str(root)!r} holds nothing to convert: neither Llama-2-7b-hf, Qwen-VL-Chat or qwen_vit_G.pt, "
            "stable-diffusion-xl-base-1.0, nor a SEED-Story checkpoint (docs/weights.md lists the downloads)"
        )
    return sources


def _search(folder: Path, found: Found, depth: int) -> None:
    names = sorted(os.listdir(folder))
    if "model_index.json" in names:
        for kind, part in _pipeline(folder).items():
            found.add(kind, part)
        return
    if _is_tokenizer(folder, names):
        found.add("tokenizer", folder)
    if "scheduler_config.json" in names:
        found.add("scheduler", folder)
        return
    if "config.json" in names:
        kind = _kind_of_config(read_json(folder / "config.json"))
        if kind:
            found.add(kind, folder)
            return
    shards = weight_files(folder) if any(SHARD.match(Path(name).stem) for name in names) else []
    if shards:
        _note(folder, [name for file in shards for name in open_file(file)], found)
    for name in names:
        path = folder / name
        if path.is_dir():
            if depth > 0 and not name.startswith("."):
                _search(path, found, depth - 1)
        elif path.suffix == ".gguf":  # it holds the tokenizer, too
            found.add("llama", path)
            found.add("tokenizer", path)
        elif not shards and path.suffix in (".safetensors", ".bin", ".pt", ".pth") and name not in NO_WEIGHTS:
            _note(path, list(open_file(path)), found)


def _note(path: Path, names: Sequence[str], found: Found) -> None:
    kind = kind_of_names(names)
    if kind:
        found.add(kind, path)
    else:
        found.unknown(path, names)


def _pipeline(folder: Path) -> dict[str, Path]:
    parts = {kind: folder / kind for kind in ("unet", "vae", "scheduler") if (folder / kind).is_dir()}
    if not parts:
        raise UserError(f"{folder} has none of the folders unet, vae and scheduler")
    return parts


def _is_tokenizer(folder: Path, names: Sequence[str]) -> bool:
    if not {"tokenizer.json", "tokenizer.model"} & set(names):
        return False
    files = [folder / name for name in TOKENIZER_FILES if name in names and name.endswith(".json")]
    return any(IMAGE_TOKEN in path.read_bytes() for path in files)


def _kind_of_config(config: Mapping[str, Any]) -> str | None:
    if "visual" in config:
        return "vit"
    if config.get("model_type") == "llama":
        return "llama"
    return {"UNet2DConditionModel": "unet", "AutoencoderKL": "vae"}.get(str(config.get("_class_name")))


def kind_of_names(names: Sequence[str]) -> str | None:
    """What a loose file holds, by its tensors' names; None if nothing that is known."""
    names = [unwrapped(name) for name in names]
    starts = {name.split(".")[0] for name in names}
    if starts & {"llm", "input_resampler", "output_resampler", "base_model"}:
        return "agent"
    if "resampler" in starts:
        return "detokenizer"
    if any(name.removeprefix(QWEN_PREFIX).startswith("transformer.resblocks.") for name in names):
        return "vit"
    return None


def _open(kind: str, path: Path) -> Source:
    if not path.exists():
        raise UserError(f"no file or folder {path} (given as the source of kind {kind})")
    if path.suffix == ".gguf":
        if kind == "tokenizer":
            return Source(kind, path, (path,))
        opened = open_gguf(path)
        return Source(kind, path, (path,), Tensors([opened]), opened.config)
    if kind == "tokenizer":
        files = tuple(path / name for name in TOKENIZER_FILES if (path / name).is_file())
        return Source(kind, path, files)
    if kind == "scheduler":
        file = path / "scheduler_config.json"
        return Source(kind, path, (file,), config=read_json(file))
    beside = (path if path.is_dir() else path.parent) / (ADAPTER_CONFIG if kind == "agent" else "config.json")
    config = read_json(beside) if beside.is_file() else {}
    if kind != "agent" and path.is_file() and _kind_of_config(config) != kind:
        config = {}  # of something else in that folder
    files = [path] if path.is_file() else weight_files(path)
    if not files:
        raise UserError(f"{path} holds no .safetensors or .bin file")
    tensors = Tensors([open_file(file) for file in files])
    if kind == "vit" and any(name.startswith(QWEN_PREFIX) for name in tensors):
        tensors = tensors.filtered(lambda name: name.startswith(QWEN_PREFIX))
    configs = (beside,) if config else ()
    return Source(kind, path, (*configs, *files), tensors, config)
