"""One step of each stage on random data: does it fit, and how long does it take? Nothing is read or written."""

import dataclasses
import statistics
import time
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_dtypes import bfloat16
from PIL import Image

from seedstory_jax.checkpoints.parts import (
    TRAINED_BY,
    frozen_and_trained,
    part_shapes,
    random_parameters,
    trainable_names,
)
from seedstory_jax.config import Config
from seedstory_jax.data.images import ImageTransform
from seedstory_jax.data.pipeline import HOST_FIELDS
from seedstory_jax.data.sources import JoinedSource
from seedstory_jax.data.storystream import Story
from seedstory_jax.data.text_tokenizer import StoryTokenizer
from seedstory_jax.features.cache import Encoder, OnlineEncodings, Rows
from seedstory_jax.features.run_data import RunData
from seedstory_jax.models.parameters import Parameters
from seedstory_jax.sharding import make_mesh, optimizer_shardings, parameter_shardings
from seedstory_jax.training.loop import Stage, Steps
from seedstory_jax.training.optimizer import make_optimizer
from seedstory_jax.training.stages.visual_tokenizer import vae_stage, vit_stage
from seedstory_jax.training.train import MAKE

OWN_PARTS = {"detokenizer": ("detokenizer",), "story": ("story",), "adapt": ("story", "detokenizer")}
STORIES = 16
TIMED_STEPS = 2


def dry_run(config: Config) -> list[dict[str, Any]]:
    """Compiles and runs each configured stage's step, prints a line a stage and returns what they say."""
    mesh = make_mesh(config.mesh)
    lines = []
    for name in config.stages:
        for stage in _stages(config, name, mesh):
            line = _one(stage, config, mesh)
            lines.append(line)
            print(
                f"{line['stage']}: {line['seconds']:.3f} s a step of {line['rows']} rows, {line['bytes'] / 1e9:.2f} GB "
                f"a device ({line['state_bytes'] / 1e9:.2f} of them parameters, optimizer and batch); "
                f"compiled in {line['compile_seconds']:.1f} s; trains {line['trained']:,} of {line['parameters']:,}",
                flush=True,
            )
    return lines


def _stages(config: Config, name: str, mesh: Mesh) -> list[Stage]:
    config = dataclasses.replace(config, **{name: dataclasses.replace(getattr(config, name), eval_every=0)})
    run_data = RandomRunData(config)
    if name == "tokenizer":
        vae = random_parameters(config.model, "vae", config.seed)
        return [vae_stage(config, run_data), vit_stage(config, run_data, vae)]
    trains = trainable_names(dict(TRAINED_BY)[name], getattr(config, name).trainable)
    layout = frozen_and_trained(mesh, trains, config.model.frozen_dtype)
    parts = OWN_PARTS[name] + (("vit", "vae") if config.data.features == "online" else ())
    parameters: Parameters = {}
    for part in parts:
        for path, shape in part_shapes(config.model, part).items():
            at = layout(path, shape)
            parameters[path] = jnp.full(at.shape, 0.01, at.dtype, device=at.sharding)
    return [MAKE[name](config, run_data, parameters)]


def _one(stage: Stage, config: Config, mesh: Mesh) -> dict[str, Any]:
    at = parameter_shardings(mesh, stage.parameters)
    # The step donates what it trains: copies.
    placed = {name: jnp.copy(jax.device_put(value, at[name])) for name, value in stage.parameters.items()}
    trained = {name: value for name, value in placed.items() if stage.trainable(name)}
    frozen = {name: value for name, value in placed.items() if not stage.trainable(name)}
    optimizer = make_optimizer(stage.optimizer, stage.steps)
    state_at = optimizer_shardings(mesh, jax.eval_shape(optimizer.init, trained), at)
    state = jax.jit(optimizer.init, out_shardings=state_at)(trained)
    steps = Steps(stage, optimizer, frozen, config.seed, mesh, ({name: at[name] for name in trained}, state_at), 0)
    batch = stage.batch(0)
    if type(batch) is dict:
        batch = {name: value for name, value in batch.items() if name not in HOST_FIELDS}
    batch = steps.on_devices(batch)
    started = time.perf_counter()
    compiled = steps.step.lower(trained, state, frozen, batch, steps.key).compile()
    compile_seconds = time.perf_counter() - started
    count, frozen_count = (sum(value.size for value in tree.values()) for tree in (trained, frozen))
    memory = compiled.memory_analysis()
    seconds = []
    for _ in range(TIMED_STEPS):
        started = time.perf_counter()
        trained, state, metrics = compiled(trained, state, frozen, batch, steps.key)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - started)
    return {
        "stage": stage.name,
        "rows": stage.batch_size,
        "seconds": statistics.median(seconds),
        "compile_seconds": compile_seconds,
        "bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes,  # results take the place of arguments
        "state_bytes": memory.argument_size_in_bytes,
        "parameters": count + frozen_count,
        "trained": count,
    }


class RandomRunData(RunData):
    """Stories, pictures and features of the right shapes out of nothing."""

    def __init__(self, config: Config):
        self.config = config

    @cached_property
    def tokenizer(self) -> Any:
        """Ids alone."""
        return _RandomTokenizer(self.config)

    @cached_property
    def train(self) -> JoinedSource:
        """A few stories."""
        return JoinedSource([_RandomStories(self.config)])

    def pictures(self, transform: ImageTransform) -> np.ndarray:
        """Noise."""
        rng = np.random.default_rng(0)
        return rng.integers(0, 256, (int(self.train.offsets[-1]), transform.size, transform.size, 3), np.uint8)

    def rows(self, kind: str, parameters: Parameters, source: JoinedSource | None = None) -> Rows:
        """Noise of the encoder's shape; with features online, noise for the encoder to read."""
        encoder = Encoder(self.config, kind)
        if self.config.data.features == "online":
            return OnlineEncodings(encoder, self.train, parameters)
        return _RandomRows(encoder, self.config.data.features_dtype)


class _RandomRows:
    weights: Parameters = {}  # noqa: RUF012

    def __init__(self, encoder: Encoder, dtype: str):
        self.encoder, self.dtype = encoder, bfloat16 if dtype == "bfloat16" else np.float32

    def read(self, places: np.ndarray) -> np.ndarray:
        shape = (*np.shape(places), *self.encoder.shape)
        return np.random.default_rng(0).standard_normal(shape, np.float32).astype(self.dtype)

    def values(self, parameters: Any, carried: jax.Array) -> jax.Array:
        return carried.astype(jnp.float32) if self.encoder.kind == "moments" else carried

    def host_values(self, carried: np.ndarray) -> np.ndarray:
        return carried.astype(np.float32)


class _RandomStories:
    """Stories whose rows are as long as they may be."""

    def __init__(self, config: Config):
        turns = max(config.story.max_turns, 2)
        self.stories = [Story(number, ("",) * turns, ("x",) * turns) for number in range(STORIES)]

    def picture(self, story: int, turn: int) -> Image.Image:
        pixels = np.random.default_rng([story, turn]).integers(0, 256, (64, 64, 3), np.uint8)
        return Image.fromarray(pixels)


class _RandomTokenizer(StoryTokenizer):
    """Every caption has as many tokens as fill a row."""

    def __init__(self, config: Config):
        self.folder = "no folder"
        self.pad, self.bos, self.eos = 0, 1, 2
        vocabulary, queries = config.model.story.llama.vocab_size, config.model.story.num_image_tokens
        self.boi, self.eoi = vocabulary - 2, vocabulary - 1
        self.image_ids = list(range(vocabulary - 2 - queries, vocabulary - 2))
        story = config.story
        images = 2 if story.supervise == "all" else 1
        self.words = max(1, (story.max_length - 2) // story.max_turns - images * queries - 2)
        self.most = vocabulary - 2 - queries

    def first_turn(self, caption: str) -> list[int]:
        return [3 + number % (self.most - 3) for number in range(self.words)]

    next_turn = response_turn = first_turn
