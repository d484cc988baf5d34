"""Pipeline of a trained run: encode an image, generate a story, render its images.

pipeline = load("runs/toy")
story = pipeline.start("a.png", "The monkey waves in the park.", policy="multimodal_sink", length=30)
for turn in story:
    print(turn.text)                           # text first
images = pipeline.render(story.turns)          # pixels when wanted, uint8 [n h w 3]
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from seedstory_jax.checkpoints.layout import BEST, CONFIG_FILE, SHARED_SECTIONS, is_run, latest_step, read_config
from seedstory_jax.checkpoints.load import load_parameters
from seedstory_jax.checkpoints.parts import build
from seedstory_jax.config import Config, check, differing_keys, to_dict
from seedstory_jax.convert.smollm2 import prepare
from seedstory_jax.data.images import ImageTransform, open_image
from seedstory_jax.data.text_tokenizer import StoryTokenizer
from seedstory_jax.errors import UserError
from seedstory_jax.features.run_data import RunData
from seedstory_jax.generation.build import for_sampling, make_renderer, stored_as
from seedstory_jax.generation.engine import Story, StoryEngine
from seedstory_jax.generation.interface import GenerationConfig, Turn
from seedstory_jax.generation.policies import Policy
from seedstory_jax.generation.policy_names import parse_policy
from seedstory_jax.generation.render import Renderer
from seedstory_jax.models.parameters import Parameters, split_module, with_prefix
from seedstory_jax.models.story_mllm import StoryMLLM
from seedstory_jax.sharding import SAMPLING, parameter_shardings, sampling_mesh

ENCODE_BATCH = 8


class StoryPipeline:
    """All parts of a trained model around one config; parts are loaded when first asked for."""

    def __init__(self, config: Config, workdir: Path):
        self.config, self.workdir = config, workdir

    @cached_property
    def mesh(self) -> Mesh | None:
        """All devices, stories over data and heads over tensor; None if there is one."""
        return sampling_mesh(self.config) if jax.device_count() > 1 else None

    def _load(self, part: str) -> Parameters:
        def layout(name: str, shape: Any) -> jax.ShapeDtypeStruct:
            at = parameter_shardings(self.mesh, {name: shape}, SAMPLING)[name]
            return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=at)

        on_the_mesh = layout if self.mesh is not None else None
        return load_parameters(
            self.config.model,
            (part,),
            self.workdir,
            seed=self.config.seed,
            layout=on_the_mesh,
            checkpoint=self.config.sample.checkpoint,
        )

    @cached_property
    def _vit(self) -> Parameters:
        return self._load("vit")

    @cached_property
    def run_data(self) -> RunData:
        """The workdir's stories and tokenizer."""
        return RunData(self.config, self.workdir)

    @property
    def tokenizer(self) -> StoryTokenizer:
        """The text tokenizer."""
        return self.run_data.tokenizer

    @property
    def vit_transform(self) -> ImageTransform:
        """Transform of an image before the ViT."""
        return self.run_data.vit_transform

    @cached_property
    def _encode(self):
        model = self.config.model
        return jax.jit(lambda parameters, images: build(model, "vit", parameters)(images))

    def encode(self, images: Iterable[Any]) -> np.ndarray:
        """Image features float32 [n q d] of images: paths, PIL images or uint8 arrays [h w 3].

        Raises UserError for a file that is no image.
        """
        from PIL import Image

        inputs = []
        for image in images:
            if isinstance(image, np.ndarray):
                image = Image.fromarray(image)
            elif not isinstance(image, Image.Image):
                image = open_image(image)
            inputs.append(self.vit_transform(image))
        parameters, features = self._vit, []
        for first in range(0, len(inputs), ENCODE_BATCH):
            batch = inputs[first : first + ENCODE_BATCH]
            batch = batch + [np.zeros_like(batch[0])] * (ENCODE_BATCH - len(batch))
            features.append(np.asarray(self._encode(parameters, np.stack(batch)), np.float32))
        return np.concatenate(features)[: len(inputs)]

    @cached_property
    def story_model(self):
        """The story MLLM prepared for inference: LoRA merged, weights stored as `sample.weights` says."""
        model = build(self.config.model, "story", self._load("story"))
        ready = for_sampling(model, dtype=model.config.llama.dtype, weights=self.config.sample.weights)
        return ready if self.mesh is None else on_mesh(ready, self.mesh)

    def engine(self, policy: str | Policy = "multimodal_sink", config: GenerationConfig | None = None, **settings):
        """A `StoryEngine` under a policy: an object, or a text for `parse_policy` with the `settings` it leaves out."""
        if isinstance(policy, str):
            policy = parse_policy(policy, self.config.sample, **settings)
        return StoryEngine(self.story_model, self.tokenizer, policy, config or self.generation_config(), self.mesh)

    def generation_config(self, **changes: Any) -> GenerationConfig:
        """Settings of generation: the config's sampling section with changes."""
        sample = self.config.sample
        defaults = {name: getattr(sample, name) for name in ("max_text_tokens", "temperature", "top_p")}
        return GenerationConfig(**(defaults | changes))

    def start(
        self, image: Any, text: str, *, policy: str | Policy = "multimodal_sink", length: int = 25, **settings
    ) -> Story:
        """A story prompted by an image and a caption; iterate over it, or ask for `next(caption=...)`."""
        engine = self.engine(policy, self.generation_config(length=length), **settings)
        return engine.start(self.encode([image])[0], text)

    @cached_property
    def renderer(self) -> Renderer:
        """Renders images from features; compiled when first used."""
        detokenizer = stored_as(self.config.model.detokenizer.unet.dtype, self._load("detokenizer"))
        return make_renderer(self.config, detokenizer | self._load("vae") | self._vit)

    def render(self, turns: Sequence[Turn], *, story: int = 0, seed: int = 0, **options) -> np.ndarray:
        """Images uint8 [n h w 3] of turns; `story` and `seed` choose the noise."""
        features = np.stack([turn.predicted_image_features for turn in turns])
        indices = [turn.index for turn in turns]
        return self.renderer.render(features, [story] * len(turns), indices, seed=seed, **options)


def on_mesh(model: StoryMLLM, mesh: Mesh) -> StoryMLLM:
    """The story model with its weights where the partition rules put them for sampling."""
    module_def, parameters = split_module(model)
    at = parameter_shardings(mesh, with_prefix("story", parameters), SAMPLING)
    return module_def.build({name: jax.device_put(value, at[f"story.{name}"]) for name, value in parameters.items()})


def load(workdir: str | Path, config: Config | None = None) -> StoryPipeline:
    """The pipeline of the run in `workdir`; a config that is given must agree with the workdir's own.

    Raises UserError if the folder holds no run, or another one than the config says.
    """
    workdir = Path(workdir)
    if not is_run(workdir):
        if config is not None and config.model.base:
            return StoryPipeline(config, workdir)
        raise UserError(
            f"{workdir} holds no run (no {CONFIG_FILE}): train one with "
            f"python train.py --config=configs/toy.py --workdir={workdir}"
        )
    own = read_config(workdir)
    if config is not None:
        mine, theirs = to_dict(own), to_dict(config)
        rows = differing_keys({k: mine[k] for k in SHARED_SECTIONS}, {k: theirs[k] for k in SHARED_SECTIONS})
        if rows:
            raise UserError(
                f"--config differs from the config {workdir} was trained with ({'; '.join(rows[:5])}); leave it out"
            )
        own = config
    check(own)
    prepare(own.model.base)
    evaluated = (latest_step(best) is not None for best in workdir.glob(f"*/{BEST}"))
    if own.sample.checkpoint == "best" and not any(evaluated):
        raise UserError(
            f"sample.checkpoint is 'best', but no stage in {workdir} was evaluated: use 'newest', or train with the "
            "stage's eval_every set"
        )
    return StoryPipeline(own, workdir)
