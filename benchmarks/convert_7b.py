"""Converts a synthetic LLaMA-2-7B folder (float16 safetensors in shards) and watches the memory; prints one JSON line.

    python benchmarks/convert_7b.py [--layers=32] [--folder=/tmp/convert_7b] [--verify]

`peak_anonymous_gb` is the most that the converting process held of memory that no file backs (RssAnon), read 50 times a
second; the mapped shards' pages are the kernel's to drop. At 32 layers the folder takes 13.5 GB, the result as much.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from seedstory_jax.checkpoints.parts import module_shapes
from seedstory_jax.config import load_config
from seedstory_jax.convert.llama import llama_config_to_published, llama_rules
from seedstory_jax.convert.rules import export_names, prefixed
from seedstory_jax.convert.tensor_files import Outgoing, write_safetensors

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "seedstory_7b.py"
ROWS = 32000  # vocabulary of LLaMA-2 itself
SHARDS = 3


def make_llama(folder: Path, layers: int) -> int:
    """Writes the published folder with random numbers; returns its size in bytes."""
    config = load_config(CONFIG, {"model.story.llama.num_layers": str(layers)}).model
    shapes = module_shapes(config, "story")
    rules = prefixed(llama_rules(config.story.llama, naming="plain"), "", "llama.")
    noise = (np.random.default_rng(0).standard_normal(1 << 20) * 0.02).astype(np.float16)
    tensors = {}
    for name, at in export_names(shapes, rules, partial=True).items():
        ours = shapes[at.path] if at.layer is None else shapes[at.path][1:]
        shape = at.rule.transform.inverse(np.broadcast_to(np.int8(0), ours)).shape
        shape = (ROWS, *shape[1:]) if shape[0] == config.story.llama.vocab_size else shape
        shift = len(tensors) * 977

        def values(shape=shape, shift=shift):
            return np.resize(np.roll(noise, shift), shape)

        tensors[name] = Outgoing(shape, np.dtype(np.float16), values)
    folder.mkdir(parents=True)
    published = llama_config_to_published(config.story.llama) | {"vocab_size": ROWS}
    (folder / "config.json").write_text(json.dumps(published))
    index, names = {}, list(tensors)
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        part = names[shard::SHARDS]
        write_safetensors(folder / file, {name: tensors[name] for name in part})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return sum(tensor.bytes for tensor in tensors.values())


def watched(command: list[str]) -> tuple[float, int, int]:
    """Runs a command; seconds, peak anonymous bytes, peak resident bytes."""
    started, anonymous, resident = time.monotonic(), 0, 0
    process = subprocess.Popen(command, cwd=ROOT)
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                anonymous = max(anonymous, int(line.split()[1]) * 1024)
            elif line.startswith("VmHWM:"):
                resident = max(resident, int(line.split()[1]) * 1024)
        time.sleep(0.02)
    if process.wait():
        raise SystemExit(f"failed: {' '.join(command)}")
    return time.monotonic() - started, anonymous, resident


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/convert_7b"))
    parser.add_argument("--verify", action="store_true", help="compare the result with the source as well")
    flags = parser.parse_args()
    source, out = flags.folder / "Llama-2-7b-hf", flags.folder / "weights"
    shutil.rmtree(flags.folder, ignore_errors=True)
    try:
        size = make_llama(source, flags.layers)
        override = f"--config.model.story.llama.num_layers={flags.layers}"
        convert = [sys.executable, "-m", "seedstory_jax.convert"]
        arguments = [f"--source={source}", f"--out={out}", f"--config={CONFIG}", override]
        seconds, anonymous, resident = watched([*convert, "import", *arguments])
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        stacked = flags.layers * 4096 * 11008 * 2
        record = {
            "benchmark": "convert_7b",
            "source_gb": round(size / 1e9, 3),
            "seconds": round(seconds, 1),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
            "mb_per_second": round(size / 1e6 / seconds),
            "peak_anonymous_gb": round(anonymous / 1e9, 3),
            "peak_resident_gb": round(resident / 1e9, 3),
            "allowed_gb": round((2 * stacked + 2**30) / 1e9, 3),
        }
        if flags.verify:
            record["verify_seconds"] = round(watched([*convert, "verify", str(out), f"--source={source}"])[0], 1)
        print(json.dumps(record))
    finally:
        shutil.rmtree(flags.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
