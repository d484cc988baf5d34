"""Compiles every full-size program for TPU slices that are not here, and says what each device would hold.

    TPU_WORKER_HOSTNAMES=localhost python benchmarks/compile_tpu.py --topology=v5e:2x4,v5e:4x4 [--program=vit,decode]

libtpu (`pip install -e .[tpu]`) compiles ahead of time for a described slice on any machine. Programs are lowered from
shapes alone, sharded as configs/seedstory_7b.py says: training splits over fsdp, generation over tensor, and every
device renders images of its own. One JSON line a program and topology; bytes are per device, `fits` is against the
chip's memory, collectives are counted in the program's text (those in a loop over layers once); --text keeps it.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs on a TPU, should there be one

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from seedstory_jax.checkpoints.parts import PARTS, build, part_shapes
from seedstory_jax.config import Config, load_config
from seedstory_jax.generation import decode
from seedstory_jax.generation.aot import lower_programs
from seedstory_jax.generation.build import KEPT_IN_FLOAT32
from seedstory_jax.generation.policies import MultimodalSink, slot_count
from seedstory_jax.generation.render import Condition, decode_images, guided_step, sampling_time_ids
from seedstory_jax.generation.scheduler import euler_schedule
from seedstory_jax.models.layer_stack import activation_axes
from seedstory_jax.models.parameters import abstract_parameters, under_prefix, with_prefix
from seedstory_jax.models.sdxl.unet import UNet
from seedstory_jax.models.story_mllm import StoryMLLM
from seedstory_jax.sharding import ACTIVATIONS, SAMPLING, batch_sharding, make_mesh, parameter_shardings, sampling_mesh
from seedstory_jax.training.dry_run import lower_step

TOPOLOGIES = ("v5e:2x4", "v5e:4x4", "v5p:4x4x4", "v6e:2x4")
MEMORY = {"TPU v5 lite": 16 << 30, "TPU v5": 95 << 30, "TPU v5p": 95 << 30, "TPU v6 lite": 32 << 30}
STORIES, LENGTH = 8, 30  # generated at once, and of so many turns
ENCODED = 8  # pictures a device that the ViT encodes at once
ROWS_AT_ONCE = {"detokenizer": 1, "story": 4, "adapt": 1}  # of a micro-batch, on a device with 16 GB
COLLECTIVE = re.compile(r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def step(config: Config, stage: str, mesh: Mesh) -> jax.stages.Lowered:
    """A training step: the published batch (at least one row a device), in as many micro-batches as memory wants."""
    section = getattr(config, stage)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = -(-section.batch_size // shards)
    at_once = ROWS_AT_ONCE[stage] * memory(mesh.devices.flat[0]) // (16 << 30)
    micro = next(micro for micro in range(1, rows + 1) if rows % micro == 0 and rows // micro <= at_once)
    optimizer = dataclasses.replace(section.optimizer, accumulation=micro)
    section = dataclasses.replace(section, batch_size=rows * shards, optimizer=optimizer)
    return lower_step(dataclasses.replace(config, **{stage: section}), stage, mesh)


def vit(config: Config, mesh: Mesh) -> jax.stages.Lowered:
    """Pictures to features, as the feature cache does."""
    shapes = part_shapes(config.model, "vit")
    at = parameter_shardings(mesh, shapes)
    parameters = {name: stored(shape, name, config.model.vit.dtype, at[name]) for name, shape in shapes.items()}
    side, count = config.model.vit.image_size, ENCODED * mesh.shape["data"] * mesh.shape["fsdp"]
    images = jax.ShapeDtypeStruct((count, side, side, 3), jnp.float32, sharding=batch_sharding(mesh))

    def encode(parameters, images):
        with activation_axes(mesh, ACTIVATIONS):
            return build(config.model, "vit", parameters)(images)

    return jax.jit(encode, out_shardings=batch_sharding(mesh)).lower(parameters, images)


def engine_program(config: Config, call: str, mesh: Mesh) -> jax.stages.Lowered:
    """A program of the story engine, on all devices over tensor."""
    mesh = sampling_mesh(config, mesh.devices.flatten())
    llama = dataclasses.replace(config.model.story.llama, lora=None)
    story = dataclasses.replace(config.model.story, llama=llama)
    module_def, bare = abstract_parameters(lambda rngs: StoryMLLM(story, rngs=rngs).for_inference())
    shapes = with_prefix("story", bare)
    at = parameter_shardings(mesh, shapes, SAMPLING)
    shapes = {name: stored(shape, name, llama.dtype, at[name]) for name, shape in shapes.items()}
    image = tuple(range(llama.vocab_size - story.num_image_tokens, llama.vocab_size))
    tokens = decode.SpecialTokens(bos=1, eos=2, boi=image[0] - 2, eoi=image[0] - 1, image=image, barred=image)
    spec = decode.EngineSpec(module_def, story, tokens, "slot", config.sample.max_text_tokens, mesh=mesh)
    policy = MultimodalSink(window=config.sample.window)
    slots = slot_count(policy, LENGTH, config.sample.max_text_tokens + story.num_image_tokens + 2)
    calls = lower_programs(spec, under_prefix("story", shapes), policy, batch=STORIES, slots=slots, dtype=llama.dtype)
    return calls[call]()


def unet_step(config: Config, mesh: Mesh) -> jax.stages.Lowered:
    """One guided denoising step of every device's images."""
    model, count = config.model, config.sample.batch_size
    perceiver, side = model.detokenizer.perceiver, model.image_size // model.vae.downscale
    schedule = euler_schedule(model.scheduler, config.sample.steps)
    module_def, shapes = abstract_parameters(lambda rngs: UNet(model.detokenizer.unet, rngs=rngs))
    devices, parameters = every_device(mesh, shapes, model.detokenizer.unet.dtype)

    def one(parameters, latents, tokens, pooled, negative_tokens, negative_pooled, number, guidance):
        unet = module_def.build(parameters)
        positive, negative = Condition(tokens, pooled), Condition(negative_tokens, negative_pooled)
        time_ids = sampling_time_ids(count, model.image_size, model.image_size)
        return guided_step(unet, model.scheduler, schedule, number, latents, positive, negative, guidance, time_ids)[0]

    rows, whole = P("images"), P()
    specs = (whole, rows, rows, rows, whole, whole, whole, whole)
    mapped = jax.shard_map(one, mesh=devices, in_specs=specs, out_specs=rows, check_vma=False)
    total = count * devices.size
    shapes = [
        ((total, side, side, model.detokenizer.unet.in_channels), jnp.float32, rows),
        ((total, perceiver.num_queries, perceiver.token_dim), jnp.bfloat16, rows),
        ((total, perceiver.output2_dim), jnp.bfloat16, rows),
        ((1, perceiver.num_queries, perceiver.token_dim), jnp.bfloat16, whole),
        ((1, perceiver.output2_dim), jnp.bfloat16, whole),
        ((), jnp.int32, whole),
        ((), jnp.float32, whole),
    ]
    arguments = [jax.ShapeDtypeStruct(s, d, sharding=NamedSharding(devices, at)) for s, d, at in shapes]
    return jax.jit(mapped, donate_argnums=1).lower(parameters, *arguments)


def vae_decode(config: Config, mesh: Mesh) -> jax.stages.Lowered:
    """Latents to pixels, an image at a time on every device."""
    model, count = config.model, config.sample.batch_size
    module_def, shapes = abstract_parameters(PARTS["vae"](model))
    devices, parameters = every_device(mesh, shapes, model.vae.dtype)
    side = model.image_size // model.vae.downscale
    rows = P("images")

    def decode(parameters, latents):
        return decode_images(module_def.build(parameters), latents, decode_batch=1)

    mapped = jax.shard_map(decode, mesh=devices, in_specs=(P(), rows), out_specs=rows, check_vma=False)
    shape = (count * devices.size, side, side, model.vae.latent_channels)
    latents = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(devices, rows))
    return jax.jit(mapped).lower(parameters, latents)


def every_device(mesh: Mesh, shapes: dict, dtype: str) -> tuple[Mesh, dict]:
    """The renderer's mesh, and weights whole on every device."""
    devices = Mesh(mesh.devices.reshape(-1), ("images",), axis_types=(AxisType.Auto,))
    at = NamedSharding(devices, P())
    return devices, {name: stored(shape, name, dtype, at) for name, shape in shapes.items()}


def stored(shape, name: str, dtype: str, at: NamedSharding) -> jax.ShapeDtypeStruct:
    """A weight as sampling stores it."""
    kept = name.rpartition(".")[2] in KEPT_IN_FLOAT32
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype if kept else jnp.dtype(dtype), sharding=at)


PROGRAMS: dict[str, Callable[[Config, Mesh], jax.stages.Lowered]] = {
    "detokenizer_step": lambda config, mesh: step(config, "detokenizer", mesh),
    "story_step": lambda config, mesh: step(config, "story", mesh),
    "adapt_step": lambda config, mesh: step(config, "adapt", mesh),
    "vit": vit,
    "prefill": lambda config, mesh: engine_program(config, "prefill_text", mesh),
    "decode": lambda config, mesh: engine_program(config, "decode_text", mesh),
    "image_chunk": lambda config, mesh: engine_program(config, "predict_image", mesh),
    "compact": lambda config, mesh: engine_program(config, "evict", mesh),
    "unet_step": unet_step,
    "vae_decode": vae_decode,
}


def memory(device) -> int:
    """Bytes of a chip's memory."""
    return MEMORY[device.device_kind]


def measure(name: str, config: Config, topology: str, folder: Path | None) -> dict:
    """One program compiled for one topology; its text goes to `folder`."""
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = make_mesh(config.mesh, devices)
    with contextlib.redirect_stdout(sys.stderr):  # what a stage says of its rows; stdout is for JSON lines
        lowered = PROGRAMS[name](config, mesh)
    started = time.perf_counter()
    row = {"program": name, "topology": topology, "devices": len(devices)}
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(str(error)[:3000], file=sys.stderr)
        empty = dict.fromkeys(("argument_bytes", "temp_bytes", "output_bytes"))
        return row | empty | {"fits": False, "compile_s": round(time.perf_counter() - started, 1), "collectives": {}}
    seconds = time.perf_counter() - started
    text, held = compiled.as_text(), compiled.memory_analysis()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}-{topology.replace(':', '-')}.hlo").write_text(text)
    needed = (
        held.argument_size_in_bytes + held.temp_size_in_bytes + held.output_size_in_bytes - held.alias_size_in_bytes
    )
    return row | {
        "argument_bytes": held.argument_size_in_bytes,
        "temp_bytes": held.temp_size_in_bytes,
        "output_bytes": held.output_size_in_bytes,
        "fits": needed + held.generated_code_size_in_bytes <= memory(devices[0]),
        "compile_s": round(seconds, 1),
        "collectives": dict(sorted(collections.Counter(COLLECTIVE.findall(text)).items())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default=",".join(TOPOLOGIES), help="slices, e.g. v5e:2x4,v5p:4x4x4")
    parser.add_argument("--program", default=",".join(PROGRAMS), help="which programs")
    parser.add_argument("--config", default=str(Path(__file__).resolve().parents[1] / "configs" / "seedstory_7b.py"))
    parser.add_argument("--text", type=Path, help="folder for the compiled programs")
    flags = parser.parse_args()
    config = load_config(flags.config)
    for topology in flags.topology.split(","):
        for name in flags.program.split(","):
            print(json.dumps(measure(name, config, topology, flags.text)), flush=True)


if __name__ == "__main__":
    main()
