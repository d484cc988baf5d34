"""What a run has around it: the stories, their tokenizer, pictures and frozen features, kept in the workdir.

The toy world and its tokenizer are built where they are missing. Pictures are decoded once; features of the frozen ViT
and moments of the frozen VAE are computed once and read by memory map.
"""

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from seedstory_jax.config import Config
from seedstory_jax.data.array_cache import cached_array, digest_arrays
from seedstory_jax.data.images import ImageTransform, read_images
from seedstory_jax.data.storystream import StoryDataset
from seedstory_jax.data.tokenizer import StoryTokenizer, toy_tokenizer
from seedstory_jax.errors import UserError
from seedstory_jax.models.parameters import Parameters
from seedstory_jax.training.parts import build

WORLD, TOKENIZER, CACHE = "world", "text_tokenizer", "cache"
CHUNK = 128  # pictures encoded at a time


class Workspace:
    """The data side of one workdir."""

    def __init__(self, config: Config, workdir: Path):
        self.config, self.workdir = config, workdir

    @cached_property
    def folder(self) -> Path:
        """The StoryStream folder: the configured one, or the toy world, built if it is not there."""
        data = self.config.data
        if data.folder:
            return Path(data.folder)
        if not data.toy_world.stories:
            raise UserError(
                "data.folder is empty: give the folder of your StoryStream files with --config.data.folder="
            )
        from seedstory_jax.data.toy_world import CASTS, build_toy_world

        world = data.toy_world
        series = list(CASTS)[world.series]
        print(f"building the toy world ({world.stories} stories of the {series} series)", flush=True)
        return build_toy_world(
            self.workdir / WORLD,
            series=series,
            num_train=world.stories,
            num_val=world.validation_stories,
            seed=self.config.seed,
        )

    @cached_property
    def tokenizer(self) -> StoryTokenizer:
        """The configured tokenizer folder, or the toy's own."""
        if self.config.data.tokenizer:
            return StoryTokenizer(self.config.data.tokenizer)
        return toy_tokenizer(self.workdir / TOKENIZER)

    @cached_property
    def train(self) -> StoryDataset:
        """The stories to train on."""
        return self._stories("train.jsonl")

    @cached_property
    def validation(self) -> StoryDataset:
        """Stories that no stage sees."""
        return self._stories("val.jsonl")

    def _stories(self, name: str) -> StoryDataset:
        file = self.folder / name
        source = file if file.is_file() else self.folder
        return StoryDataset(source, self.folder, max_bad=self.config.data.max_bad)

    @property
    def vit_transform(self) -> ImageTransform:
        """How the ViT sees a picture in stage 2 and in sampling: squashed to a square."""
        return self._transform("clip", self.config.model.vit.image_size)

    @property
    def crop_transform(self) -> ImageTransform:
        """How the ViT sees it in stages 1 and 3: a centre crop that keeps the ratio."""
        return self._transform("clip", self.config.model.vit.image_size, keep_ratio=True)

    @property
    def pixel_transform(self) -> ImageTransform:
        """What the de-tokenizer shall draw."""
        return self._transform("sd", self.config.model.image_size)

    def _transform(self, kind: str, size: int, *, keep_ratio: bool | None = None) -> ImageTransform:
        return ImageTransform(kind, size, keep_ratio, self.config.data.resample or None)

    def pictures(self, transform: ImageTransform) -> np.ndarray:
        """Every training picture at its final size, uint8 [n s s 3], decoded once."""
        paths = self.train.image_paths()
        kind = f"pictures-{transform.kind}"
        key = {"transform": repr(transform), "count": len(paths), "source": str(self.train.source.resolve())}
        shape = (len(paths), transform.size, transform.size, 3)
        produce = lambda first, stop: read_images(paths[first:stop], transform)  # noqa: E731
        return cached_array(self.workdir / CACHE, kind, key, shape, np.uint8, produce, chunk=1024)

    def features(self, parameters: Parameters, transform: ImageTransform) -> np.ndarray:
        """The frozen ViT's features of every training picture, float32 [n q d]."""
        vit = self.config.model.vit
        encode = partial(_encode, self.config, "vit")
        shape = (vit.n_queries, vit.output_dim)
        return self._encoded("features", "vit", encode, parameters, transform, shape)

    def latents(self, parameters: Parameters) -> np.ndarray:
        """The frozen VAE's moments of every training picture, float32 [n h w 2 c]: mean, then log variance."""
        model = self.config.model
        side = model.image_size // model.vae.downscale
        encode = partial(_encode, self.config, "vae")
        return self._encoded(
            "latents", "vae", encode, parameters, self.pixel_transform, (side, side, 2 * model.vae.latent_channels)
        )

    def _encoded(
        self, name: str, part: str, encode: Callable, parameters: Parameters, transform: ImageTransform, shape: tuple
    ) -> np.ndarray:
        pictures = self.pictures(transform)
        weights = {key: value for key, value in parameters.items() if key.startswith(f"{part}.")}
        key = {
            "weights": digest_arrays(jax.device_get(weights)),
            "transform": repr(transform),
            "source": str(self.train.source.resolve()),
        }

        def produce(first: int, stop: int) -> np.ndarray:
            images = np.zeros((CHUNK, *pictures.shape[1:]), np.float32)
            images[: stop - first] = transform.normalise(pictures[first:stop])
            return np.asarray(encode(weights, images))[: stop - first]

        return cached_array(self.workdir / CACHE, name, key, (len(pictures), *shape), np.float32, produce, chunk=CHUNK)


@partial(jax.jit, static_argnums=(0, 1))
def _encode(config: Config, part: str, parameters: Parameters, images: jax.Array) -> jax.Array:
    module = build(config.model, part, parameters)
    if part == "vit":
        return module(images).astype(jnp.float32)
    mean, logvar = module.encode(images)
    return jnp.concatenate([mean, logvar], axis=-1)
