"""One step of each stage on random data, run or only lowered: does it fit, how long does it take? Writes nothing."""

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

from seedstory_jax.checkpoints.parts import part_shapes
from seedstory_jax.config import Config
from seedstory_jax.data.images import ImageTransform
from seedstory_jax.data.sources import JoinedSource
from seedstory_jax.data.storystream import Story
from seedstory_jax.data.text_tokenizer import StoryTokenizer
from seedstory_jax.features.cache import Encoder, ImageEncodings, OnlineEncodings
from seedstory_jax.features.run_data import RunData
from seedstory_jax.models.parameters import Parameters
from seedstory_jax.sharding import make_mesh
from seedstory_jax.training.stage import Stage, StageSpec
from seedstory_jax.training.stages import STAGES
from seedstory_jax.training.step import TrainStep, split_host_fields
from seedstory_jax.training.trainable import trainable_names, training_layout

STORIES = 16
TIMED_STEPS = 2


def dry_run(config: Config) -> list[dict[str, Any]]:
    """Compiles and runs each configured stage's step, prints a line a stage and returns what they say."""
    mesh = make_mesh(config.mesh)
    lines = []
    for name in config.stages:
        line = _timed(stage_of_shapes(config, STAGES[name], mesh), mesh, config.seed)
        lines.append(line)
        print(
            f"{line['stage']}: {line['seconds']:.3f} s a step of {line['rows']} rows, {line['bytes'] / 1e9:.2f} GB "
            f"a device ({line['state_bytes'] / 1e9:.2f} of them parameters, optimizer and batch); "
            f"compiled in {line['compile_seconds']:.1f} s; trains {line['trained']:,} of {line['parameters']:,}",
            flush=True,
        )
    return lines


def stage_of_shapes(config: Config, spec: StageSpec, mesh: Mesh) -> Stage:
    """A stage made by its own `make`, over random data and the shapes of its parameters: to be lowered, or filled."""
    section = dataclasses.replace(getattr(config, spec.name), eval_every=0)
    config = dataclasses.replace(config, **{spec.name: section})
    layout = training_layout(mesh, trainable_names(spec.trains, section.trainable), config.model.frozen_dtype)
    parts = spec.needs if config.data.features == "online" else (*spec.reads, spec.trains)
    shapes = {name: layout(name, shape) for part in parts for name, shape in part_shapes(config.model, part).items()}
    return spec.make(config, RandomRunData(config), shapes)


def lower_step(config: Config, name: str, mesh: Mesh) -> jax.stages.Lowered:
    """The step of the stage `name` on `mesh`, as training runs it, from shapes; nothing is allocated on its devices.

    Raises UserError if the stage's batch cannot be split over the mesh.
    """
    return TrainStep(stage_of_shapes(config, STAGES[name], mesh), mesh).lower()


def _timed(stage: Stage, mesh: Mesh, seed: int) -> dict[str, Any]:
    filled = {name: _filled(value) for name, value in stage.parameters.items()}
    step = TrainStep(dataclasses.replace(stage, parameters=filled), mesh)
    trained, state, frozen = step.arrays()
    batch = step.on_devices(split_host_fields(stage.batch(0))[0])
    key = jax.random.key(seed)
    started = time.perf_counter()
    compiled = step.run.lower(trained, state, frozen, batch, key).compile()
    compile_seconds = time.perf_counter() - started
    count, frozen_count = (sum(value.size for value in tree.values()) for tree in (trained, frozen))
    memory = compiled.memory_analysis()
    seconds = []
    for _ in range(TIMED_STEPS):
        started = time.perf_counter()
        trained, state, metrics = compiled(trained, state, frozen, batch, key)
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


def _filled(value: Any) -> jax.Array:
    """An array for a shape; what a stage has made itself stays."""
    if isinstance(value, jax.ShapeDtypeStruct):
        return jnp.full(value.shape, 0.01, value.dtype, device=value.sharding)
    return value


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

    def encodings(self, kind: str, parameters: Parameters, source: JoinedSource | None = None) -> ImageEncodings:
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
