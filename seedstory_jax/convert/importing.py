"""`convert import`: published downloads into one folder that training and sampling load."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import seedstory_jax
from seedstory_jax.checkpoints.converted import ModuleWriter, write_manifest
from seedstory_jax.config import ModelConfig, to_dict
from seedstory_jax.convert.plan import ModulePlan, Slot, plan_modules
from seedstory_jax.convert.rules import contiguous
from seedstory_jax.convert.sources import Found, Source, find_sources
from seedstory_jax.convert.tensor_files import checksum
from seedstory_jax.convert.tokenizer import tokenizer_of
from seedstory_jax.errors import UserError
from seedstory_jax.files import atomic_folder, read_json


def import_model(
    source: Path,
    out: Path,
    config: ModelConfig,
    *,
    dtype: str = "source",
    chosen: Mapping[str, Sequence[Path]] | None = None,
    ignore: Sequence[str] = (),
    found: Found | None = None,
) -> dict[str, Any]:
    """Converts every download below `source` into the new folder `out`, tensor by tensor.

    Args:
      source: the folder of downloads; `chosen` picks where it holds several of a kind (`sources.find_sources`).
      out: the folder to make. It appears when everything is written, and not at all if anything fails.
      config: the model; must agree with the downloads' own configs.
      dtype: storage dtype, or "source".
      ignore: published names that may be surplus or missing (`plan_modules`).
      found: is filled with what was looked at.

    Returns:
      The manifest.

    Raises:
      UserError: if `out` exists, the disk is too small, or the downloads do not make the model (nothing is left then).
    """
    if out.exists():
        raise UserError(f"{out} exists; choose another --out or remove it first")
    found = Found() if found is None else found
    sources = find_sources(source, chosen, found)
    plans = plan_modules(config, sources, dtype, ignore=ignore)
    refuse_fresh_beside_suspects(plans, found, ignore)
    tokenizers = [tokenizer_of(each, config) for each in sources if each.kind == "tokenizer"]
    needed = sum(plan.bytes for plan in plans)
    parent = next(path for path in out.absolute().parents if path.exists())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise UserError(f"{needed / 1e9:.1f} GB are to be written to {parent}, {free / 1e9:.1f} GB are free there")
    with atomic_folder(out) as folder:
        for plan in plans:
            write_module(folder / plan.name, plan)
        for tokenizer in tokenizers:
            tokenizer.write(folder / "tokenizer")
        manifest = describe_import(source, config, dtype, sources, plans)
        manifest |= {"ignore": list(ignore)} if ignore else {}
        manifest |= {"tokenizer": tokenizers[0].variant} if tokenizers else {}
        write_manifest(folder, manifest)
    return manifest


def write_module(folder: Path, plan: ModulePlan) -> None:
    """Writes one module slot by slot: at no time is more than one source tensor, in our layout and dtype, in memory."""
    writer = ModuleWriter(folder, {path: plan.dtypes[path] for path in plan.slots})
    progress = byte_bar(plan.name, plan.bytes)
    for path, path_slots in plan.slots.items():
        dtype = plan.dtypes[path]
        stacked = path_slots[0].placement.layer is not None
        store = writer.create(path, plan.shapes[path], dtype, stacked=stacked)
        for slot in path_slots:
            values = stored(slot, dtype)
            layer = slot.placement.layer
            (store if layer is None else store[layer]).write(values).result()
            progress.update(values.nbytes)
    progress.close()


def byte_bar(title: str, total: int) -> tqdm:
    """A progress bar over `total` bytes."""
    return tqdm(desc=f"{title:>13}", total=total, unit="B", unit_scale=True, mininterval=0.5)


def stored(slot: Slot, dtype: np.dtype) -> np.ndarray:
    """The bytes that a slot holds once written: our layout, storage dtype, contiguous."""
    return contiguous(slot.read(), dtype)


def describe_import(
    root: Path, config: ModelConfig, dtype: str, sources: Sequence[Source], plans: Sequence[ModulePlan]
) -> dict[str, Any]:
    """The manifest: config, modules with what starts fresh, sources with sizes and checksums."""
    return {
        "package": seedstory_jax.__version__,
        "dtype": dtype,
        "config": to_dict(config),
        "modules": {
            plan.name: {
                "arrays": len(plan.slots),
                "parameters": sum(int(np.prod(plan.shapes[path])) for path in plan.slots),
                "bytes": plan.bytes,
                "dtypes": sorted({plan.dtypes[path].name for path in plan.slots}),
                "fresh": sorted(plan.fresh),
            }
            for plan in plans
        },
        "sources": [
            {
                "kind": source.kind,
                "path": _relative(source.path, root),
                **llama_variant(source),
                "files": [
                    {"name": _relative(file, root), "size": file.stat().st_size, "sha256": checksum(file)}
                    for file in source.files
                ],
            }
            for source in sources
        ],
        **_published_scheduler(sources),
    }


def refuse_fresh_beside_suspects(plans: Sequence[ModulePlan], found: Found, ignore: Sequence[str] = ()) -> None:
    """Raises UserError if a part would start from random values while a file that may hold it was not understood."""
    for plan in plans:
        fresh = [path for path in plan.fresh if plan.name in ("story", "detokenizer")]
        if fresh and found.suspects and not ignore:
            path, name = next(iter(found.suspects.items()))
            raise UserError(
                f"{path} looks like a checkpoint of SEED-Story, but its names are not understood ({name!r}), and "
                f"{len(fresh)} arrays of {plan.name} would start from random values ({fresh[0]}); rename its tensors, "
                "or take the file away from --source"
            )


def llama_variant(source: Source) -> dict[str, str]:
    """{"variant": "chat" or "base"} of a LLaMA, by its config's name, its folder's, or a chat template beside it."""
    if source.kind != "llama":
        return {}
    folder = source.path if source.path.is_dir() else source.path.parent
    name = f"{source.config.get('_name_or_path') or ''} {folder.absolute().name}"
    settings = folder / "tokenizer_config.json"
    template = settings.is_file() and "chat_template" in read_json(settings)
    return {"variant": "chat" if re.search(r"(?i)\bchat\b|instruct", name) or template else "base"}


def _relative(path: Path, root: Path) -> str:
    path, root = path.absolute(), root.absolute()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _published_scheduler(sources: Sequence[Source]) -> dict[str, Any]:
    found = [dict(source.config) for source in sources if source.kind == "scheduler"]
    return {"scheduler_config": found[0]} if found else {}


def sources_of(manifest: Mapping[str, Any], root: Path) -> dict[str, list[Path]]:
    """The same choice of downloads that an import made, below `root`."""
    chosen: dict[str, list[Path]] = {}
    for source in manifest["sources"]:
        chosen.setdefault(source["kind"], []).append(root / source["path"])
    return chosen


def summary(manifest: Mapping[str, Any]) -> str:
    """What was written, a line a module."""
    lines = []
    for name, module in manifest["modules"].items():
        fresh = f", {len(module['fresh'])} arrays start fresh" if module["fresh"] else ""
        lines.append(
            f"{name:<12} {module['parameters'] / 1e6:10.1f} M parameters  {module['bytes'] / 1e9:6.2f} GB "
            f"{'/'.join(module['dtypes'])}{fresh}"
        )
    for source in manifest["sources"]:
        if source.get("variant") == "chat":
            lines.append(
                f"{source['path']} is LLaMA's chat variant; SEED-Story stands on the base model, Llama-2-7b-hf"
            )
    if "tokenizer" in manifest:
        lines.append(f"tokenizer    {manifest['tokenizer']}")
    return "\n".join(lines)
