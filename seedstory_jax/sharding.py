"""Meshes and partition rules: parameter names -> logical axes -> mesh axes, each written once.

The models know nothing of this. Every parameter's full name ("story.llama.norm.scale") matches exactly one rule. A rule
names the last axes of the array; those before them (layers, a convolution's window) stay whole.
"""

import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from seedstory_jax.config import Config, MeshConfig
from seedstory_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
WHOLE = ()

# What a parameter's axes are, by its full name.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    # The transformers that are computed in parts: heads and hidden units are split, then summed.
    (r"story\.llama\.embed_tokens\.embedding", ("vocab", "model")),
    (r"story\.llama\.lm_head\.kernel", ("model", "vocab")),
    (r"story\.llama\.layers\.self_attn\.[qkv]_proj\.kernel", ("model", "heads")),
    (r"story\.llama\.layers\.self_attn\.o_proj\.kernel", ("heads", "model")),
    (r"story\.llama\.layers\.mlp\.(gate|up)_proj\.kernel", ("model", "mlp")),
    (r"story\.llama\.layers\.mlp\.down_proj\.kernel", ("mlp", "model")),
    # The same for inference: an array a layer, q, k, v by kv head, gate beside up.
    (r"story\.llama\.layers\.\d+\.qkv_proj\.kernel", ("model", "heads", None)),
    (r"story\.llama\.layers\.\d+\.o_proj\.kernel", ("heads", "model")),
    (r"story\.llama\.layers\.\d+\.gate_up_proj\.kernel", ("model", None, "mlp")),
    (r"story\.llama\.layers\.\d+\.down_proj\.kernel", ("mlp", "model")),
    (r"story\.llama\.layers\..*\.lora_a", ("stored", None)),
    (r"story\.llama\.layers\..*\.lora_b", (None, "stored")),
    (r"vit\.resblocks\.attn\.in_proj\.kernel", ("model", "heads")),
    (r"vit\.resblocks\.attn\.out_proj\.kernel", ("heads", "model")),
    (r"vit\.resblocks\.mlp\.c_fc\.kernel", ("model", "mlp")),
    (r"vit\.resblocks\.mlp\.c_proj\.kernel", ("mlp", "model")),
    # What works picture by picture: stored in parts, gathered where it is used.
    (r"vit\.(conv1\.kernel|proj|positional_embedding)", ("stored",)),
    (r"(vit\.attn_pool|story\.\w+_resampler)\.(query|pos_embed|kv_proj\.kernel)", ("stored",)),
    (r"(vit\.attn_pool|story\.\w+_resampler)\.attn\.(in_proj_weight|out_proj\.kernel)", ("stored",)),
    (r"detokenizer\.perceiver\.(latents|unet_attnpool\.positional_embedding)", ("drawing",)),
    (r"(detokenizer|vae)\..*\.kernel", ("drawing",)),
    # Vectors, and the tokenizer stage's heads, which are thrown away.
    (r"(vit|story|detokenizer|vae)\..*(bias|scale)", WHOLE),
    (r"head\..*", WHOLE),
)

LogicalAxes = Mapping[str, tuple[str, ...]]
# Training splits the weights over fsdp and tensor; what is merely stored in parts takes both.
TRAINING: LogicalAxes = {
    "model": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "stored": ("tensor", "fsdp"),
    "drawing": ("tensor", "fsdp"),
}
# Sampling splits over tensor alone: over fsdp the weights would have to be gathered again for every token. Pictures are
# drawn by every device for itself, from weights of its own.
SAMPLING: LogicalAxes = {**TRAINING, "model": (), "stored": ("tensor",), "drawing": ()}

# Activations, by axis letter: rows over data and fsdp, heads and hidden over tensor; pictures (i) over all devices.
ACTIVATIONS: Mapping[str, str | tuple[str, ...]] = {
    "b": ("data", "fsdp"),
    "i": ("data", "fsdp", "tensor"),
    "n": "tensor",
    "k": "tensor",
    "f": "tensor",
    "v": "tensor",
}


def mesh_sizes(config: MeshConfig, count: int) -> tuple[int, int, int]:
    """(data, fsdp, tensor) for `count` devices; raises UserError if the sizes do not multiply to their number."""
    sizes = [config.data, config.fsdp, config.tensor]
    if sizes.count(-1) > 1:
        raise UserError(f"mesh {tuple(sizes)}: only one axis may be -1")
    if -1 in sizes:
        rest = -int(np.prod(sizes))
        sizes[sizes.index(-1)] = count // rest if rest and count % rest == 0 else 0
    if int(np.prod(sizes)) != count:
        given = (config.data, config.fsdp, config.tensor)
        raise UserError(f"mesh (data, fsdp, tensor) = {given} does not make {count} devices; set mesh.data=-1")
    return sizes[0], sizes[1], sizes[2]


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices (by default all, of every process) as (data, fsdp, tensor); UserError as `mesh_sizes`."""
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(config, len(devices))
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def sampling_mesh(config: Config, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices for telling stories, whatever trained: what config.mesh gives fsdp and tensor is one tensor axis.

    As far as it divides the key heads; the rest is data.
    """
    devices = list(jax.devices() if devices is None else devices)
    count, mesh = len(devices), config.mesh
    data = mesh.data if mesh.data > 0 else max(1, count // (max(1, mesh.fsdp) * max(1, mesh.tensor)))
    split = math.gcd(count // data if count % data == 0 else count, config.model.story.llama.num_kv_heads)
    return make_mesh(MeshConfig(count // split, 1, split), devices)


def matching_rules(name: str) -> list[int]:
    """Numbers of the rules whose pattern is the whole name."""
    return [number for number, (pattern, _) in enumerate(RULES) if re.fullmatch(pattern, name)]


@cache
def logical_axes(name: str) -> tuple[str | None, ...]:
    """The last axes of a parameter; raises ValueError unless exactly one rule matches its name."""
    found = matching_rules(name)
    if len(found) != 1:
        rules = "; ".join(RULES[number][0] for number in found) or "none"
        raise ValueError(f"parameter {name!r} matches {len(found)} partition rules ({rules}): exactly one must")
    return RULES[found[0]][1]


def partition_spec(
    name: str, shape: Sequence[int], mesh: Mapping[str, int], axes: LogicalAxes = TRAINING
) -> tuple[tuple[str, ...], ...]:
    """Mesh axes of each of the parameter's axes on a mesh of the given sizes.

    A mesh axis of size 1 is left out, and so is one that does not divide what is left of the array's axis.
    """
    named = logical_axes(name)
    if len(named) > len(shape):
        raise ValueError(f"parameter {name!r} of shape {tuple(shape)} has fewer axes than its rule {named}")
    spec = []
    for size, logical in zip(shape, (None,) * (len(shape) - len(named)) + named, strict=True):
        taken: list[str] = []
        for axis in axes[logical] if logical else ():
            parts = math.prod(mesh[each] for each in (*taken, axis))
            if mesh[axis] > 1 and size % parts == 0:
                taken.append(axis)
        spec.append(tuple(taken))
    return tuple(spec)


def device_elements(name: str, shape: Sequence[int], mesh: Mapping[str, int], axes: LogicalAxes = TRAINING) -> int:
    """Elements of one parameter that each device of the mesh holds."""
    spec = partition_spec(name, shape, mesh, axes)
    return math.prod(shape) // math.prod(mesh[axis] for taken in spec for axis in taken)


def parameter_shardings(
    mesh: Mesh, parameters: Mapping[str, Any], axes: LogicalAxes = TRAINING
) -> dict[str, NamedSharding]:
    """Where each parameter (an array or a shape, by full name) lies on the mesh."""
    return {
        name: NamedSharding(mesh, P(*(taken or None for taken in partition_spec(name, value.shape, mesh.shape, axes))))
        for name, value in parameters.items()
    }


def optimizer_shardings(mesh: Mesh, state: Any, trained: Mapping[str, NamedSharding]) -> Any:
    """The optimizer's state laid out like the parameters it belongs to; counters on every device."""
    everywhere = NamedSharding(mesh, P())

    def at(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = getattr(path[-1], "key", None) if path else None
        return trained[name] if name in trained and leaf.ndim else everywhere

    return jax.tree_util.tree_map_with_path(at, state)


def check_batch_divides(mesh: Mesh, rows: int, key: str) -> None:
    """Raises UserError unless a batch of `rows` rows can be split over data and fsdp; `key` names it in the config."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % shards:
        raise UserError(
            f"{key}: {rows} rows at a time cannot be split over data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}; "
            f"take a multiple of {shards}, fewer micro-batches (optimizer.accumulation), or more of mesh.tensor"
        )


def batch_sharding(mesh: Mesh, skip_axes: int = 0) -> NamedSharding:
    """The batch axis, after `skip_axes` others, split over data and fsdp."""
    return NamedSharding(mesh, P(*(None,) * skip_axes, ACTIVATIONS["b"]))
