"""Sampling at full size on one data-centre GPU, random weights in bfloat16: pictures, words, whole stories.

    python benchmarks/gpu.py [--parts=draw,decode,story] [--size=full|tiny] [--frames=8] [--steps=50]

One JSON line a part. `draw`: guided denoising of 1024-pixel frames and their VAE decoding, seconds an image and the
share of the card's peak. `decode`: words for 1 and 8 stories, tokens a second and the share of the memory bandwidth
that reading every weight and every slot once a token takes. `story`: 25 and 50 turns generated and rendered. `tiny`
runs the same code at a size for any machine. Training at full size is `train_step.py --gpu`.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.middle import TEXT_TOKENS, Tokens, endless_head, prompt
from seedstory_jax.config import ModelConfig
from seedstory_jax.generation import decode
from seedstory_jax.generation.engine import StoryEngine
from seedstory_jax.generation.flops import buffer_bytes
from seedstory_jax.generation.interface import GenerationConfig
from seedstory_jax.generation.policies import MultimodalSink
from seedstory_jax.generation.render import RenderConfig, Renderer
from seedstory_jax.models import flops
from seedstory_jax.models.parameters import abstract_parameters
from seedstory_jax.models.sdxl.detokenizer import Detokenizer
from seedstory_jax.models.sdxl.vae import VAE
from seedstory_jax.models.story_mllm import StoryMLLM

# Dense bfloat16 operations a second and bytes a second, from the vendors' data sheets.
CARDS = {"H200": (989e12, 4.8e12), "H100": (989e12, 3.35e12), "A100": (312e12, 2.0e12)}


@dataclass(frozen=True)
class Setting:
    """What the parts share; peak (operations a second) and bandwidth (bytes a second) are None where unknown."""

    model: ModelConfig
    frames: int  # drawn at a time
    steps: int  # of denoising
    peak: float | None
    bandwidth: float | None


def full_size() -> ModelConfig:
    """The published sizes in bfloat16, the VAE in float32."""
    model = ModelConfig()
    story = replace(
        model.story,
        llama=replace(model.story.llama, lora=None, dtype="bfloat16"),
        input_resampler=replace(model.story.input_resampler, dtype="bfloat16"),
        output_resampler=replace(model.story.output_resampler, dtype="bfloat16"),
    )
    detokenizer = replace(
        model.detokenizer,
        unet=replace(model.detokenizer.unet, dtype="bfloat16"),
        perceiver=replace(model.detokenizer.perceiver, dtype="bfloat16"),
    )
    return replace(model, story=story, detokenizer=detokenizer)


def tiny_size() -> ModelConfig:
    """The same shape of thing in seconds on a CPU."""
    model = full_size()
    story, detokenizer = model.story, model.detokenizer
    sizes = {"vocab_size": 2114, "hidden_size": 64, "intermediate_size": 128, "num_layers": 2}
    llama = replace(story.llama, **sizes, num_heads=4, num_kv_heads=4)
    read = replace(story.input_resampler, embed_dim=64, num_heads=4, kv_dim=64, grid_size=8)
    story = replace(
        story,
        llama=llama,
        input_resampler=read,
        output_resampler=replace(read, grid_size=16),
    )
    unet = replace(
        detokenizer.unet,
        block_out_channels=(32, 64),
        down_block_types=detokenizer.unet.down_block_types[:2],
        up_block_types=detokenizer.unet.up_block_types[-2:],
        transformer_layers_per_block=(1, 1),
        num_attention_heads=(1, 2),
        cross_attention_dim=64,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )
    perceiver = replace(detokenizer.perceiver, dim=64, depth=1, dim_head=16, heads=4, num_queries=16, embedding_dim=64)
    perceiver = replace(perceiver, output1_dim=32, output2_dim=32)
    vae = replace(model.vae, block_out_channels=(32, 32, 32, 32))
    detokenizer = replace(detokenizer, unet=unet, perceiver=perceiver)
    return replace(model, story=story, detokenizer=detokenizer, vae=vae, image_size=128)


def random_module(make: Callable, dtype: str):
    """A module whose weights are small normals (norms' scales are 1), drawn on the device in their final dtype."""
    module_def, shapes = abstract_parameters(make)
    keys = jax.random.split(jax.random.key(0, impl="rbg"), len(shapes))

    @jax.jit(static_argnums=1)
    def normal(key, shape):
        return (0.02 * jax.random.normal(key, shape, jnp.bfloat16)).astype(dtype)

    def draw(name, shape, key):
        return jnp.ones(shape, jnp.float32) if name.endswith(".scale") else normal(key, shape)

    return module_def.build({name: draw(name, s.shape, key) for (name, s), key in zip(shapes.items(), keys)})


def random_engine(model: ModelConfig, max_text_tokens: int, length: int) -> StoryEngine:
    """An engine of random words that never ends a caption before its limit."""
    config = model.story
    module = random_module(lambda rngs: StoryMLLM(config, rngs=rngs), config.llama.dtype)
    tokens = Tokens(config.llama.vocab_size, config.num_image_tokens)
    head = module.llama.lm_head.kernel
    head[...] = endless_head(head[...], tokens.boi)
    settings = GenerationConfig(length=length, max_text_tokens=max_text_tokens, allow_end=False)
    return StoryEngine(module, tokens, MultimodalSink(), settings)


def make_renderer(model: ModelConfig, frames: int, steps: int) -> Renderer:
    """Random weights; guidance steers away from random features."""
    size = model.image_size
    queries = model.story.output_resampler.grid_size**2
    away = np.zeros((1, queries, model.detokenizer.perceiver.embedding_dim), np.float32)
    return Renderer(
        random_module(lambda rngs: Detokenizer(model.detokenizer, rngs=rngs), model.detokenizer.unet.dtype),
        random_module(lambda rngs: VAE(model.vae, rngs=rngs), "float32"),
        away,
        RenderConfig(height=size, width=size, steps=steps, batch_size=frames, scheduler=model.scheduler),
    )


def seconds_of(run: Callable[[], object], rounds: int = 3) -> float:
    """The shortest of a few runs, after one that compiles."""
    jax.block_until_ready(run())
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times)


def draw(setting: Setting) -> dict:
    """Frames in one batch, guided; the VAE alone; the rest is the UNet's."""
    model, frames, steps = setting.model, setting.frames, setting.steps
    renderer = make_renderer(model, frames, steps)
    queries, width = model.story.output_resampler.grid_size**2, model.detokenizer.perceiver.embedding_dim
    features = np.random.default_rng(0).normal(size=(frames, queries, width)).astype(np.float32)
    whole = seconds_of(lambda: renderer.render(features, [0] * frames, range(frames))) / frames
    latents = jnp.zeros((frames, *renderer.latent_shape), jnp.float32)
    decoding = seconds_of(lambda: renderer._decode(renderer._vae_weights, latents)) / frames
    side = renderer.latent_shape[0]
    work = 2 * steps * flops.unet(
        model.detokenizer.unet, side, side, model.detokenizer.perceiver.num_queries
    ) + flops.vae_decode(model.vae, side, side)
    return {
        "pixels": model.image_size,
        "steps": steps,
        "frames": frames,
        "s_a_frame": round(whole, 4),
        "vae_decode_ms": round(1000 * decoding, 2),
        "tflop_a_frame": round(work / 1e12, 2),
        "share_of_peak": setting.peak and round(work / whole / setting.peak, 4),
    }


def decode_words(setting: Setting) -> dict:
    """One long caption for 1 and for 8 stories, after a picture and a caption."""
    model, bandwidth = setting.model, setting.bandwidth
    words = 128 if model.image_size > 128 else 16
    engine = random_engine(model, words, length=25)
    llama = model.story.llama
    weights = sum(value.nbytes for name, value in engine.parameters.items() if name.startswith("llama."))
    weights -= engine.parameters["llama.embed_tokens.embedding"].nbytes  # a token reads one row of it
    features, text = prompt(model.story)
    rows = {"max_text_tokens": words, "weight_bytes": weights}
    for stories in (1, 8):
        session = engine.start(np.stack([features] * stories), [" ".join(text.split()[:words])] * stories)
        writes = np.ones(stories, bool)

        def write(session=session, writes=writes):
            # Each round goes on where the last one stopped, so that the buffer may be donated.
            session._state, tokens, *_ = decode.decode_text(
                engine.spec, engine.parameters, session._state, writes, None
            )
            return tokens

        seconds = seconds_of(write, rounds=2)
        read = weights + buffer_bytes(llama, stories, session.slots, llama.dtype)
        rows[f"stories_{stories}"] = {
            "tokens_s": round(stories * words / seconds, 1),
            "slots": session.slots,
            "share_of_bandwidth": bandwidth and round(read * words / seconds / bandwidth, 4),
        }
    return rows


def story(setting: Setting) -> dict:
    """Stories generated to their end, then rendered in batches, all programs warm."""
    model = setting.model
    renderer = make_renderer(model, setting.frames, setting.steps)
    engine = random_engine(model, TEXT_TOKENS, length=50)
    features, text = prompt(model.story)
    rows = {}
    for sequences in (25, 50):
        for _ in range(2):  # the first one compiles
            start = time.perf_counter()
            turns = list(engine.start(features, text, length=sequences))
            text_s = time.perf_counter() - start
            features_of_turns = np.stack([turn.predicted_image_features for turn in turns])
            renderer.render(features_of_turns, [0] * len(turns), range(1, len(turns) + 1))
            whole = time.perf_counter() - start
        rows[f"sequences_{sequences}"] = {"text_s": round(text_s, 2), "text_and_pixels_s": round(whole, 2)}
    return rows


PARTS = {"draw": draw, "decode": decode_words, "story": story}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--size", default="full", choices=("full", "tiny"))
    parser.add_argument("--steps", type=int, default=50, help="of denoising")
    parser.add_argument("--frames", type=int, default=8, help="drawn at a time")
    flags = parser.parse_args()
    device = jax.local_devices()[0]
    known = [card for card in CARDS if card in device.device_kind]
    peak, bandwidth = CARDS[known[0]] if known else (None, None)
    model = full_size() if flags.size == "full" else tiny_size()
    setting = Setting(model, flags.frames, flags.steps, peak, bandwidth)
    for part in flags.parts.split(","):
        row = PARTS[part](setting)
        memory = (device.memory_stats() or {}).get("peak_bytes_in_use")  # since the process began
        print(json.dumps({"benchmark": f"gpu {part}", "device": device.device_kind, **row, "peak_bytes": memory}))


if __name__ == "__main__":
    main()
