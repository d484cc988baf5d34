"""What a run has around it: the stories, their tokenizer, pictures and frozen features, kept in the workdir.

The toy world and its tokenizer are built where they are missing. What the frozen ViT and VAE make of pictures is read
as `config.data.features` says (`feature_cache`).
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from seedstory_jax.checkpoints.bases import base_folder
from seedstory_jax.checkpoints.layout import CACHE, TOKENIZER, WORLD
from seedstory_jax.config import Config
from seedstory_jax.data.array_cache import array_path, cached_array, digest
from seedstory_jax.data.images import ImageTransform
from seedstory_jax.data.sources import JoinedSource, open_source
from seedstory_jax.data.storystream import StoryDataset
from seedstory_jax.data.text_tokenizer import StoryTokenizer
from seedstory_jax.errors import UserError
from seedstory_jax.features.cache import (
    CachedEncodings,
    Encoder,
    ImageEncodings,
    OnlineEncodings,
    check_cache,
    write_cache,
)
from seedstory_jax.models.parameters import Parameters
from seedstory_jax.toy.tokenizer import toy_tokenizer
from seedstory_jax.toy.world import CASTS, build_toy_world

VALIDATION = "val"


class RunData:
    """The data side of one workdir."""

    def __init__(self, config: Config, workdir: Path):
        self.config, self.workdir = config, workdir

    @cached_property
    def folders(self) -> tuple[Path, ...]:
        """The configured folders of stories, or the toy world, built if it is not there."""
        data = self.config.data
        if data.folder:
            return tuple(Path(folder) for folder in data.folder.split(",") if folder)
        if not data.toy_world.stories:
            raise UserError(
                "data.folder is empty: give the folder of your StoryStream files with --config.data.folder="
            )
        world = data.toy_world
        series = list(CASTS)[world.series]
        print(f"building the toy world ({world.stories} stories of the {series} series)", flush=True)
        built = build_toy_world(
            self.workdir / WORLD,
            series=series,
            num_train=world.stories,
            num_val=world.validation_stories,
            seed=self.config.seed,
        )
        return (built,)

    @cached_property
    def tokenizer(self) -> StoryTokenizer:
        """The configured tokenizer folder, or the base's, or the toy's own."""
        if self.config.data.tokenizer:
            return StoryTokenizer(self.config.data.tokenizer)
        if self.config.model.base:
            beside = base_folder(self.config.model.base) / "tokenizer"  # of a converted model
            if beside.is_dir():
                return StoryTokenizer(beside)
        return toy_tokenizer(self.workdir / TOKENIZER)

    @cached_property
    def train(self) -> JoinedSource:
        """The stories to train on, of all folders."""
        return JoinedSource([self._source(folder, "train") for folder in self.folders])

    @cached_property
    def held_out(self) -> JoinedSource:
        """Stories of the folders that no stage trains on. Raises UserError for a folder that has none."""
        for folder in self.folders:
            if not (folder / "dataset_info.json").is_file() and not (folder / f"{VALIDATION}.jsonl").is_file():
                raise UserError(
                    f"{folder} has no {VALIDATION}.jsonl to validate on: make one with `python -m "
                    "seedstory_jax.storystream split`, or set eval_every=0"
                )
        return JoinedSource([self._source(folder, VALIDATION) for folder in self.folders])

    @cached_property
    def validation(self) -> StoryDataset:
        """The first folder's stories that no stage sees, with the paths of their pictures."""
        folder = self.folders[0]
        file = folder / f"{VALIDATION}.jsonl"
        return StoryDataset(file if file.is_file() else folder, folder, max_bad=self.config.data.max_bad)

    def _source(self, folder: Path, split: str):
        file = folder / f"{split}.jsonl"
        path = file if file.is_file() else folder
        return open_source(path, folder, split=split, max_bad=self.config.data.max_bad)

    @property
    def vit_transform(self) -> ImageTransform:
        """How the ViT sees a picture in stage 2 and in sampling: squashed to a square."""
        return Encoder(self.config, "squash").transform

    @property
    def pixel_transform(self) -> ImageTransform:
        """What the de-tokenizer shall draw."""
        return Encoder(self.config, "moments").transform

    def pictures(self, transform: ImageTransform) -> np.ndarray:
        """Every training picture at its final size, uint8 [n s s 3], decoded once: for worlds as small as the toy's."""
        kind, key = self._pictures_key(transform)
        shape = (int(self.train.offsets[-1]), transform.size, transform.size, 3)
        produce = lambda first, stop: self.train.read(range(first, stop), transform)  # noqa: E731
        return cached_array(self.workdir / CACHE, kind, key, shape, np.uint8, produce, chunk=1024)

    def _pictures_key(self, transform: ImageTransform) -> tuple[str, dict[str, Any]]:
        names = digest({"images": [list(story.images) for story in self.train.stories]})
        _, keep_ratio, _ = transform.geometry
        key = {"geometry": transform.geometry, "images": names, "folders": [str(path) for path in self.folders]}
        return f"pictures-{'crop' if keep_ratio else 'squash'}", key

    def _decoded(self, transform: ImageTransform, source: JoinedSource) -> np.ndarray | None:
        """`pictures`, if they are these and have been asked for before."""
        there = source is self.train and array_path(self.workdir / CACHE, *self._pictures_key(transform)).exists()
        return self.pictures(transform) if there else None

    def encodings(self, kind: str, parameters: Parameters, source: JoinedSource | None = None) -> ImageEncodings:
        """Where a stage reads features or moments of `source`'s pictures (of the training ones), see `feature_cache`.

        Raises UserError if the configured cache is stale or lacks pictures.
        """
        source, data = source or self.train, self.config.data
        encoder = Encoder(self.config, kind)
        if data.features == "online":
            return OnlineEncodings(encoder, source, parameters)
        if data.features == "workdir":
            split = VALIDATION if source is not self.train else "train"
            folders = [self.workdir / CACHE / f"{split}{number or ''}" for number in range(len(source.sources))]
            decoded = self._decoded(encoder.transform, source)
            for number, (folder, part) in enumerate(zip(folders, source.sources)):
                begin, end = source.offsets[source.first_story[number : number + 2]]
                write_cache(
                    encoder,
                    parameters,
                    part,
                    folder,
                    dtype=data.features_dtype,
                    max_bad=data.max_bad,
                    pictures=None if decoded is None else decoded[begin:end],
                )
            return CachedEncodings(encoder, source, folders)
        folders = [Path(folder) for folder in data.features.split(",")]
        if len(folders) != len(source.sources):
            raise UserError(
                f"data.features names {len(folders)} folders, data.folder {len(source.sources)}: one for each"
            )
        for folder, stories in zip(folders, self.folders):
            command = f"seedstory data features {stories} --workdir={self.workdir} --out={folder} --kinds={kind}"
            check_cache(encoder, parameters, folder, command)
        return CachedEncodings(encoder, source, folders)
