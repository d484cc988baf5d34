"""Our UNet and VAE decoder beside diffusers' in torch: same weights, same inputs, one JSON line.

    python benchmarks/unet.py [--rounds=5] [--side=32] [--compile]

One guided UNet call (two rows) and one VAE decode at a middle size, float32, on this machine's CPU with all its cores.
Both sides are warm, and take turns, so that a busy machine slows both. torch runs eagerly in both memory layouts and,
with --compile, under torch.compile (minutes of compiling). `ratio` is the best of torch over ours: above 1 we are
faster. `difference` is the largest one between the results, relative to the largest value.
"""

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seedstory_jax.convert.rules import load_tensors
from seedstory_jax.convert.sdxl import published_unet_config, published_vae_config, unet_rules, vae_rules
from seedstory_jax.models.sdxl.unet import UNet, UNetConfig
from seedstory_jax.models.sdxl.vae import VAE, VAEConfig

UNET = UNetConfig(
    block_out_channels=(64, 128, 256),
    cross_attention_dim=256,
    transformer_layers_per_block=(1, 1, 3),
    num_attention_heads=(1, 2, 4),
    addition_time_embed_dim=32,
    projection_class_embeddings_input_dim=6 * 32 + 160,
)
MIDDLE_VAE = VAEConfig(block_out_channels=(32, 64, 128, 128))
TOKENS = 64

Contestants = dict[str, Callable[[], np.ndarray]]


def jitted(module: nnx.Module, function: Callable, *arguments: np.ndarray) -> Callable[[], np.ndarray]:
    """Our module under jit; calling it waits for the result."""
    graph, state = nnx.split(module)
    run = jax.jit(lambda state, *arguments: function(nnx.merge(graph, state), *arguments))
    arguments = [jnp.asarray(x) for x in arguments]
    return lambda: np.asarray(run(state, *arguments))


def torch_runs(module, method: str, call: Callable, *, compiled: bool) -> Contestants:
    """A method of diffusers' module eagerly, in both layouts, and compiled; `call(method, layout)` runs it."""
    import copy

    import torch

    def run(function, layout):
        def once() -> np.ndarray:
            with torch.inference_mode():
                return call(function, layout).permute(0, 2, 3, 1).contiguous().numpy()

        return once

    plain, last = torch.contiguous_format, torch.channels_last
    turned = copy.deepcopy(module).to(memory_format=last)
    runs = {
        "torch_eager": run(getattr(module, method), plain),
        "torch_eager_channels_last": run(getattr(turned, method), last),
    }
    if compiled:
        runs["torch_compile"] = run(torch.compile(getattr(module, method)), plain)
    return runs


def unet_contestants(side: int, compiled: bool) -> Contestants:
    """One call of the UNet on a negative and a positive row."""
    import diffusers
    import torch

    theirs = diffusers.UNet2DConditionModel.from_config(published_unet_config(UNET)).eval()
    ours = nnx.eval_shape(lambda: UNet(UNET, rngs=nnx.Rngs(0)))
    load_tensors(ours, {name: value.numpy() for name, value in theirs.state_dict().items()}, unet_rules())
    numbers = np.random.default_rng(0)
    latents = numbers.normal(size=(2, side, side, 4)).astype(np.float32)
    tokens = numbers.normal(size=(2, TOKENS, UNET.cross_attention_dim)).astype(np.float32)
    pooled = numbers.normal(size=(2, UNET.pooled_dim)).astype(np.float32)
    time_ids = np.array([[8 * side, 8 * side, 0, 0, 8 * side, 8 * side]] * 2, np.float32)
    timesteps = np.array([501, 501], np.int32)

    def call(forward, layout):
        return forward(
            torch.from_numpy(latents).permute(0, 3, 1, 2).contiguous(memory_format=layout),
            torch.from_numpy(timesteps),
            encoder_hidden_states=torch.from_numpy(tokens),
            added_cond_kwargs={"text_embeds": torch.from_numpy(pooled), "time_ids": torch.from_numpy(time_ids)},
        ).sample

    arguments = (latents, timesteps, tokens, pooled, time_ids)
    ours = jitted(ours, lambda unet, *arguments: unet(*arguments), *arguments)
    return {"ours": ours, **torch_runs(theirs, "forward", call, compiled=compiled)}


def vae_contestants(side: int, compiled: bool) -> Contestants:
    """The decoding of one picture."""
    import diffusers
    import torch

    theirs = diffusers.AutoencoderKL.from_config(published_vae_config(MIDDLE_VAE)).eval()
    ours = nnx.eval_shape(lambda: VAE(MIDDLE_VAE, rngs=nnx.Rngs(0)))
    load_tensors(ours, {name: value.numpy() for name, value in theirs.state_dict().items()}, vae_rules())
    latents = np.random.default_rng(1).normal(size=(1, side, side, 4)).astype(np.float32)

    def call(decode, layout):
        return decode(torch.from_numpy(latents).permute(0, 3, 1, 2).contiguous(memory_format=layout)).sample

    return {"ours": jitted(ours, VAE.decode, latents), **torch_runs(theirs, "decode", call, compiled=compiled)}


def race(contestants: Contestants, rounds: int) -> dict[str, object]:
    """Median milliseconds of each, in turns, after a warm-up that also compares what they compute."""
    warm = {name: run() for name, run in contestants.items()}
    largest = max(np.abs(x).max() for x in warm.values())
    difference = max(np.abs(x - warm["ours"]).max() for x in warm.values()) / largest
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    best = min(time for name, time in medians.items() if name != "ours")
    return {
        "ms": {name: round(1000 * time, 1) for name, time in medians.items()},
        "ratio": round(best / medians["ours"], 3),
        "difference": float(f"{difference:.1e}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=32, help="of the latents; the picture is 8 times that")
    parser.add_argument("--compile", action="store_true", help="also race torch.compile")
    flags = parser.parse_args()
    warnings.filterwarnings("ignore")
    jax.config.update("jax_platforms", "cpu")

    import torch

    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    results = {
        "unet": race(unet_contestants(flags.side, flags.compile), flags.rounds),
        "vae_decode": race(vae_contestants(flags.side, flags.compile), flags.rounds),
    }
    record = {
        "benchmark": "unet",
        "device": "cpu",
        "cores": os.cpu_count(),
        "latents": flags.side,
        "jax": jax.__version__,
        "torch": torch.__version__,
        "ratio": min(result["ratio"] for result in results.values()),
        **results,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
