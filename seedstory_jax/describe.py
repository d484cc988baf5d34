"""What a config comes to before anything is allocated: parameters, bytes, operations, KV slots, bytes on a mesh.

    seedstory describe --config=configs/seedstory_7b.py [--mesh=data,fsdp,tensor] [--json]

Shapes come from `jax.eval_shape`. The vocabulary's padding is in the bytes and not in the counts. Bytes on a mesh are
those of weights, gradients, optimizer state and KV buffer; activations come on top.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from seedstory_jax.checkpoints.parts import PARTS, module_shapes
from seedstory_jax.config import Config, MeshConfig, load_config
from seedstory_jax.errors import UserError
from seedstory_jax.generation.flops import buffer_bytes
from seedstory_jax.generation.policies import POLICIES, TurnTokens, slot_count
from seedstory_jax.generation.policy_names import parse_policy
from seedstory_jax.models import flops
from seedstory_jax.sharding import AXES, SAMPLING, device_elements
from seedstory_jax.training.stages import STAGES
from seedstory_jax.training.trainable import trainable_names

Shapes = dict[str, tuple[int, ...]]
LENGTHS = (10, 25, 30, 50, 100)  # sequences of a story
# The published modules and where their parameters lie: part, prefix of the path.
MODULES = {
    "vit": ("vit", ""),
    "llama": ("story", "llama."),
    "lora": ("story", "llama."),
    "input_resampler": ("story", "input_resampler."),
    "output_resampler": ("story", "output_resampler."),
    "perceiver": ("detokenizer", "perceiver."),
    "unet": ("detokenizer", "unet."),
    "vae": ("vae", ""),
}
ADAM_BYTES = 16  # a trained parameter: float32 value, gradient and two moments


def describe(config: Config, mesh: tuple[int, int, int]) -> dict[str, Any]:
    """Everything as plain numbers; the published modules' parameter counts stand at the top, by name."""
    shapes = {part: module_shapes(config.model, part) for part in PARTS}
    counts = {name: parameter_count(config, shapes, name) for name in MODULES}
    operations = flops_a_call(config)
    dtypes = _compute_dtypes(config)
    return {
        **counts,
        "total": sum(counts.values()),
        "modules": {
            name: {
                "parameters": counts[name],
                "bytes": _size(_module_shapes(shapes, name), dtypes[MODULES[name][0]]),
                "dtype": dtypes[MODULES[name][0]],
                "flops": operations[name][0],
                "call": operations[name][1],
            }
            for name in MODULES
        },
        "policies": policy_table(config),
        "mesh": dict(zip(AXES, mesh, strict=True)),
        "per_device": per_device(config, shapes, mesh),
    }


def _module_shapes(shapes: Mapping[str, Shapes], name: str) -> Shapes:
    part, prefix = MODULES[name]
    inside = {path: shape for path, shape in shapes[part].items() if path.startswith(prefix)}
    if name in ("llama", "lora"):
        inside = {path: shape for path, shape in inside.items() if _is_lora(path) == (name == "lora")}
    return inside


def _is_lora(path: str) -> bool:
    return path.endswith((".lora_a", ".lora_b"))


def parameter_count(config: Config, shapes: Mapping[str, Shapes], name: str) -> int:
    """Parameters of a published module, without the vocabulary's padding."""
    count = sum(math.prod(shape) for shape in _module_shapes(shapes, name).values())
    if name == "llama":
        llama = config.model.story.llama
        tables = 1 if llama.tie_word_embeddings else 2
        count -= tables * (llama.padded_vocab_size - llama.vocab_size) * llama.hidden_size
    return count


def _compute_dtypes(config: Config) -> dict[str, str]:
    model = config.model
    return {
        "vit": model.vit.dtype,
        "story": model.story.llama.dtype,
        "detokenizer": model.detokenizer.unet.dtype,
        "vae": model.vae.dtype,
    }


def _size(shapes: Shapes, dtype: str) -> int:
    return sum(math.prod(shape) for shape in shapes.values()) * jnp.dtype(dtype).itemsize


def flops_a_call(config: Config) -> dict[str, tuple[int, str]]:
    """Operations (a multiply-add is two) of one forward call of each module, and what the call is."""
    model, length = config.model, config.story.max_length
    side = model.image_size // model.vae.downscale
    features = model.vit.n_queries
    queries = model.detokenizer.perceiver.num_queries
    story = model.story
    with_lora = flops.llama_forward(story.llama, length, scored=length)
    bare = flops.llama_forward(dataclasses.replace(story.llama, lora=None), length, scored=length)
    vae = flops.vae_encode(model.vae, model.image_size, model.image_size) + flops.vae_decode(model.vae, side, side)
    return {
        "vit": (flops.vit(model.vit), "one image"),
        "llama": (bare, f"one row of {length} tokens"),
        "lora": (with_lora - bare, f"one row of {length} tokens"),
        "input_resampler": (flops.resampler(story.input_resampler, features), "one image"),
        "output_resampler": (flops.resampler(story.output_resampler, story.num_image_tokens), "one image"),
        "perceiver": (flops.perceiver(model.detokenizer.perceiver, features), "one image"),
        "unet": (flops.unet(model.detokenizer.unet, side, side, queries), "one image, one step"),
        "vae": (vae, "one image, there and back"),
    }


def policy_table(config: Config) -> list[dict[str, Any]]:
    """Slots and bytes of one story's KV buffer for every policy and length."""
    llama = config.model.story.llama
    tokens = TurnTokens(config.sample.max_text_tokens, config.model.story.num_image_tokens)
    rows = []
    for name in POLICIES:
        for length in LENGTHS:
            slots = slot_count(parse_policy(name, config.sample), length, tokens)
            size = buffer_bytes(llama, 1, slots, llama.dtype)
            rows.append({"policy": name, "length": length, "slots": slots, "bytes": size})
    return rows


def per_device(config: Config, shapes: Mapping[str, Shapes], mesh: tuple[int, int, int]) -> dict[str, dict[str, int]]:
    """Bytes on the fullest device: of each stage's weights and optimizer, and of sampling's weights and KV buffer."""
    frozen = jnp.dtype(config.model.frozen_dtype).itemsize
    sizes = dict(zip(AXES, mesh, strict=True))
    result: dict[str, dict[str, int]] = {}
    for stage in config.stages:
        trained_part, parts = STAGES[stage].trains, STAGES[stage].needs
        trains = trainable_names(trained_part, getattr(config, stage).trainable)
        stage_bytes = {"weights": 0, "trained": 0}
        for part in parts:
            for path, shape in shapes[part].items():
                trained = part == trained_part and trains(f"{part}.{path}")
                share = device_elements(f"{part}.{path}", shape, sizes)
                stage_bytes["trained" if trained else "weights"] += share * (ADAM_BYTES if trained else frozen)
        result[stage] = {**stage_bytes, "total": sum(stage_bytes.values())}
    dtypes = _compute_dtypes(config)
    weights = sum(
        device_elements(f"{part}.{path}", shape, sizes, SAMPLING) * jnp.dtype(dtypes[part]).itemsize
        for part in PARTS
        for path, shape in shapes[part].items()
        if not _is_lora(path)
    )
    llama = config.model.story.llama
    longest = max(row["bytes"] for row in policy_table(config) if row["policy"] == "multimodal_sink")
    buffer = longest // (mesh[2] if llama.num_kv_heads % mesh[2] == 0 else 1)
    result["sampling"] = {"weights": weights, "kv_buffer": buffer, "total": weights + buffer}
    return result


def parse_mesh(text: str, config: MeshConfig) -> tuple[int, int, int]:
    """ "1,8,1" as (data, fsdp, tensor); without a text the config's mesh, in which "the rest" (-1) counts as one."""
    if not text:
        return (max(1, config.data), max(1, config.fsdp), max(1, config.tensor))
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--mesh={text!r}: three sizes are wanted, data,fsdp,tensor, e.g. --mesh=1,8,1")
    data, fsdp, tensor = map(int, parts)
    return data, fsdp, tensor


def as_text(facts: Mapping[str, Any]) -> str:
    """The tables that a person reads."""
    lines = [f"{'module':<18}{'parameters':>16}{'GB':>8} {'dtype':<9}{'GFLOP':>10}  a call is"]
    for name, module in facts["modules"].items():
        lines.append(
            f"{name:<18}{module['parameters']:>16,}{module['bytes'] / 1e9:>8.2f} {module['dtype']:<9}"
            f"{module['flops'] / 1e9:>10,.0f}  {module['call']}"
        )
    lines.append(f"{'total':<18}{facts['total']:>16,}")
    rows = facts["policies"]
    lengths = sorted({row["length"] for row in rows})
    lines += ["", "KV slots (GB) of one story, by number of sequences"]
    lines.append(f"{'policy':<18}" + "".join(f"{length:>16}" for length in lengths))
    for name in dict.fromkeys(row["policy"] for row in rows):
        cells = [f"{row['slots']:,} ({row['bytes'] / 1e9:.2f})" for row in rows if row["policy"] == name]
        lines.append(f"{name:<18}" + "".join(f"{cell:>16}" for cell in cells))
    mesh = ", ".join(f"{axis} {size}" for axis, size in facts["mesh"].items())
    lines += ["", f"GB a device on the mesh ({mesh}), without activations"]
    for what, sizes in facts["per_device"].items():
        parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in sizes.items() if name != "total")
        lines.append(f"{what:<18}{sizes['total'] / 1e9:>8.2f}  ({parts})")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    from seedstory_jax.cli import Parser

    parser = Parser(prog="seedstory describe", description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE", help="e.g. configs/seedstory_7b.py")
    parser.add_argument("--mesh", default="", metavar="DATA,FSDP,TENSOR", help="devices along each axis")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    flags, overrides = parser.parse_strictly(argv)
    config = load_config(flags.config, overrides)
    facts = describe(config, parse_mesh(flags.mesh, config.mesh))
    print(json.dumps(facts, indent=1) if flags.json else as_text(facts))
    return 0


if __name__ == "__main__":
    from seedstory_jax import cli

    cli.run(main)
