"""`convert verify`: a converted model against its downloads, name by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seedstory_jax.checkpoints.converted import read_manifest
from seedstory_jax.checkpoints.readers import StoreReader
from seedstory_jax.config import ModelConfig, from_dict
from seedstory_jax.convert.importing import byte_bar, sources_of, stored
from seedstory_jax.convert.plan import ModulePlan, plan_modules
from seedstory_jax.convert.sources import find_sources
from seedstory_jax.convert.tensor_files import checksum
from seedstory_jax.convert.tokenizer import tokenizer_of
from seedstory_jax.errors import UserError


@dataclass(frozen=True)
class Verdict:
    """How many tensors of a module are as the sources say, and what is not."""

    module: str
    compared: int
    complaints: tuple[str, ...]


def verify_model(
    folder: Path, source: Path, *, chosen: Mapping[str, Sequence[Path]] | None = None, checksums: bool = True
) -> list[Verdict]:
    """Reads every source tensor again and compares it, in the stored dtype and to the bit, with what `folder` holds.

    Args:
      folder: a converted model.
      source: the downloads; the same files are taken as at the import, unless `chosen` says otherwise.
      checksums: also compare the files' SHA-256 with the manifest's.

    Raises:
      UserError: if either folder cannot be read; what merely differs is in the verdicts.
    """
    manifest = read_manifest(folder)
    config = from_dict(ModelConfig, manifest["config"], "manifest.config.")
    sources = find_sources(source, {**sources_of(manifest, source), **(chosen or {})})
    verdicts = []
    if checksums:
        listed = {file["name"]: file for each in manifest["sources"] for file in each["files"]}
        changed = [
            f"{name}: {reason}"
            for name, file in listed.items()
            if (reason := _changed(source / name, file["size"], file["sha256"]))
        ]
        verdicts.append(Verdict("files", len(listed), tuple(changed)))
    plans = plan_modules(config, sources, manifest["dtype"], ignore=manifest.get("ignore", ()))
    for source_of_tokens in (each for each in sources if each.kind == "tokenizer"):
        complaints = tokenizer_of(source_of_tokens, config).complaints(folder / "tokenizer")
        verdicts.append(Verdict("tokenizer", 1, tuple(complaints)))
    planned = {plan.name for plan in plans}
    for name in manifest["modules"]:
        if name not in planned:
            verdicts.append(Verdict(name, 0, ("no source fills this module",)))
    for plan in plans:
        if not (folder / plan.name).is_dir():
            verdicts.append(Verdict(plan.name, 0, ("the module is not in the converted model",)))
            continue
        verdicts.append(_verify_module(folder / plan.name, plan))
    return verdicts


def _verify_module(folder: Path, plan: ModulePlan) -> Verdict:
    reader = StoreReader(folder)
    complaints = [
        f"{name}: in the checkpoint, but not in the sources" for name in reader.names if name not in plan.slots
    ]
    progress = byte_bar(plan.name, plan.bytes)
    compared = 0
    for path, path_slots in plan.slots.items():
        if path not in reader.names:
            complaints.append(f"{path}: missing")
            continue
        try:
            if reader.shape(path) != plan.shapes[path] or reader.dtype(path) != plan.dtypes[path]:
                complaints.append(
                    f"{path}: {list(reader.shape(path))} {reader.dtype(path)} instead of "
                    f"{list(plan.shapes[path])} {plan.dtypes[path]}"
                )
                continue
            for slot in path_slots:
                wanted = stored(slot, plan.dtypes[path])
                found = np.ascontiguousarray(reader.read(path, slot.placement.layer))
                compared += 1
                progress.update(wanted.nbytes)
                different = differing_bytes(found, wanted)
                if different:
                    complaints.append(f"{slot.placement.name}: {different} of {wanted.nbytes} bytes differ")
        except UserError as error:
            complaints.append(str(error))
    progress.close()
    return Verdict(plan.name, compared, tuple(complaints))


def differing_bytes(found: np.ndarray, wanted: np.ndarray) -> int:
    """How many bytes of two arrays of one shape and dtype differ (so NaN equals NaN, and 0 is not -0)."""
    found, wanted = found.reshape(-1).view(np.uint8), wanted.reshape(-1).view(np.uint8)
    whole = found.size // 8 * 8
    if np.array_equal(found[:whole].view(np.uint64), wanted[:whole].view(np.uint64)) and np.array_equal(
        found[whole:], wanted[whole:]
    ):
        return 0
    return int((found != wanted).sum())


def _changed(path: Path, size: int, sha256: str) -> str:
    if not path.is_file():
        return "missing"
    if path.stat().st_size != size:
        return f"{path.stat().st_size} bytes, was {size} at the import"
    return "" if checksum(path) == sha256 else "its contents changed since the import"
