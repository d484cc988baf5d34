"""A trained system, loaded whole: encode a picture, tell a story, draw its frames.

system = load("runs/toy")
story = system.start("a.png", "The monkey waves in the park.", policy="multimodal_sink", length=30)
for sequence in story:
    print(sequence.text)                       # text first
pictures = system.draw(story.sequences)        # pixels when wanted, uint8 [n h w 3]
"""

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from seedstory_jax.config import Config, check, differing_keys, from_dict, to_dict
from seedstory_jax.data.images import ImageTransform, open_image
from seedstory_jax.data.tokenizer import StoryTokenizer
from seedstory_jax.errors import UserError
from seedstory_jax.generation.policies import Policy, policy_of
from seedstory_jax.generation.render import Renderer
from seedstory_jax.generation.story import Story, StoryTeller
from seedstory_jax.generation.telling import Sequence as StorySequence
from seedstory_jax.generation.telling import TellingConfig
from seedstory_jax.generation.weights import for_sampling, stored_as
from seedstory_jax.models.parameters import Parameters, take_apart, with_prefix
from seedstory_jax.models.story_mllm import StoryMLLM
from seedstory_jax.sharding import SAMPLING, parameter_shardings, sampling_mesh
from seedstory_jax.training.checkpoint import BEST, latest_step
from seedstory_jax.training.detokenizer import make_renderer
from seedstory_jax.training.parts import build, load_parameters
from seedstory_jax.training.run import CONFIG_FILE, SHARED_SECTIONS
from seedstory_jax.training.workspace import Workspace

ENCODE_BATCH = 8


class StorySystem:
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
    def workspace(self) -> Workspace:
        """The workdir's stories and tokenizer."""
        return Workspace(self.config, self.workdir)

    @property
    def tokenizer(self) -> StoryTokenizer:
        """The text tokenizer."""
        return self.workspace.tokenizer

    @property
    def vit_transform(self) -> ImageTransform:
        """What happens to a picture before the ViT sees it."""
        return self.workspace.vit_transform

    @cached_property
    def _encode(self):
        model = self.config.model
        return jax.jit(lambda parameters, images: build(model, "vit", parameters)(images))

    def encode(self, pictures: Iterable[Any]) -> np.ndarray:
        """Image features float32 [n q d] of pictures: paths, PIL images or uint8 arrays [h w 3].

        Raises UserError for a file that is no picture.
        """
        from PIL import Image

        images = []
        for picture in pictures:
            if isinstance(picture, np.ndarray):
                picture = Image.fromarray(picture)
            elif not isinstance(picture, Image.Image):
                picture = open_image(picture)
            images.append(self.vit_transform(picture))
        parameters, features = self._vit, []
        for first in range(0, len(images), ENCODE_BATCH):
            batch = images[first : first + ENCODE_BATCH]
            batch = batch + [np.zeros_like(batch[0])] * (ENCODE_BATCH - len(batch))
            features.append(np.asarray(self._encode(parameters, np.stack(batch)), np.float32))
        return np.concatenate(features)[: len(images)]

    @cached_property
    def story_model(self):
        """The story MLLM ready for telling: LoRA merged, weights stored as they are read (`sample.weights`)."""
        model = build(self.config.model, "story", self._load("story"))
        ready = for_sampling(model, dtype=model.config.llama.dtype, weights=self.config.sample.weights)
        return ready if self.mesh is None else on_mesh(ready, self.mesh)

    def teller(self, policy: str | Policy = "multimodal_sink", telling: TellingConfig | None = None, **settings):
        """A `StoryTeller` under a policy, by name with its settings or as an object."""
        if isinstance(policy, str):
            policy = policy_of(self.config.sample, policy, **settings)
        return StoryTeller(self.story_model, self.tokenizer, policy, telling or self.telling(), self.mesh)

    def telling(self, **changes: Any) -> TellingConfig:
        """How stories are told: the config's sampling section with changes."""
        sample = self.config.sample
        defaults = {name: getattr(sample, name) for name in ("max_text_tokens", "temperature", "top_p")}
        return TellingConfig(**(defaults | changes))

    def start(
        self, picture: Any, text: str, *, policy: str | Policy = "multimodal_sink", length: int = 25, **settings
    ) -> Story:
        """A story that begins with a picture and a sentence; iterate over it, or ask for `next(caption=...)`."""
        teller = self.teller(policy, self.telling(length=length), **settings)
        return teller.start(self.encode([picture])[0], text)

    @cached_property
    def renderer(self) -> Renderer:
        """Draws pictures from features; compiled when first used."""
        drawing = stored_as(self.config.model.detokenizer.unet.dtype, self._load("detokenizer"))
        return make_renderer(self.config, drawing | self._load("vae") | self._vit)

    def draw(self, sequences: Sequence[StorySequence], *, story: int = 0, seed: int = 0, **options) -> np.ndarray:
        """Pictures uint8 [n h w 3] of told sequences; `story` and `seed` choose the noise."""
        features = np.stack([one.predicted_image_features for one in sequences])
        frames = [one.index for one in sequences]
        return self.renderer.draw(features, [story] * len(frames), frames, seed=seed, **options)


def on_mesh(model: StoryMLLM, mesh: Mesh) -> StoryMLLM:
    """The story model with its weights where the partition rules put them for sampling."""
    blueprint, parameters = take_apart(model)
    at = parameter_shardings(mesh, with_prefix("story", parameters), SAMPLING)
    return blueprint.build({name: jax.device_put(value, at[f"story.{name}"]) for name, value in parameters.items()})


def load(workdir: str | Path, config: Config | None = None) -> StorySystem:
    """The system trained in `workdir`; a config that is given must agree with the workdir's own.

    Raises UserError if the folder holds no run, or another one than the config says.
    """
    workdir = Path(workdir)
    path = workdir / CONFIG_FILE
    if not path.is_file():
        if config is not None and config.model.base:
            return StorySystem(config, workdir)
        raise UserError(
            f"{workdir} holds no run (no {CONFIG_FILE}): train one with "
            f"python train.py --config=configs/toy.py --workdir={workdir}"
        )
    try:
        own = from_dict(Config, json.loads(path.read_text()))
    except (json.JSONDecodeError, UserError) as error:
        raise UserError(
            f"{path} cannot be used ({error}): it is from another version or damaged; train anew"
        ) from error
    if config is not None:
        mine, theirs = to_dict(own), to_dict(config)
        rows = differing_keys({k: mine[k] for k in SHARED_SECTIONS}, {k: theirs[k] for k in SHARED_SECTIONS})
        if rows:
            raise UserError(
                f"--config differs from the config {workdir} was trained with ({'; '.join(rows[:5])}); leave it out"
            )
        own = config
    check(own)
    evaluated = (latest_step(best) is not None for best in workdir.glob(f"*/{BEST}"))
    if own.sample.checkpoint == "best" and not any(evaluated):
        raise UserError(
            f"sample.checkpoint is 'best', but no stage in {workdir} was evaluated: use 'newest', or train with the "
            "stage's eval_every set"
        )
    return StorySystem(own, workdir)
