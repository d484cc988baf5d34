"""TFDS datasets of StoryStream: its three subsets, and any folder of the format, as ArrayRecord files.

    builder = story_stream(source="downloads/George", name="george", data_dir="tfds")
    builder.download_and_prepare()
    stories = builder.as_data_source("train")     # random access, no TensorFlow needed

StoryStream is downloaded by hand (https://huggingface.co/datasets/TencentARC/StoryStream): the archives of a subset
unpacked into one folder, JSONL files and pictures. Import this module only where tensorflow-datasets is installed.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from etils import epath

from seedstory_jax.data.names import read_regular
from seedstory_jax.data.sources import JsonlSource
from seedstory_jax.errors import UserError

SUBSETS = {
    "george": "Curious George",
    "rabbids": "Rabbids Invasion",
    "the_land": "The Land Before Time",
    "folder": "a folder in StoryStream's format",
}


class StoryStream(tfds.core.GeneratorBasedBuilder):
    """Stories as {"id": text, "images": encoded pictures, "captions": texts}."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=name, description=words) for name, words in SUBSETS.items()
    ]
    pkg_dir_path = Path(__file__).parent

    code_path = epath.Path(__file__)  # TFDS's own search needs importlib_resources, which it does not ask pip for

    def __init__(self, *, source: Any = None, image_root: Any = None, max_bad: int = 100, **options):
        self.source, self.image_root, self.max_bad = source, image_root, max_bad
        options.setdefault("file_format", "array_record")
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "id": tfds.features.Text(),
            "images": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3))),
            "captions": tfds.features.Sequence(tfds.features.Text()),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"StoryStream (arXiv 2407.08683), {SUBSETS[self.builder_config.name]}: pictures and captions.",
            features=tfds.features.FeaturesDict(features),
            homepage="https://huggingface.co/datasets/TencentARC/StoryStream",
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        """train.jsonl, val.jsonl ... as splits of their names; any other set of files is all `train`."""
        source = Path(self.source) if self.source is not None else Path(dl_manager.manual_dir)
        if not source.exists():
            raise UserError(f"{source} does not exist: give source=, a folder of JSONL files and their pictures")
        root = self.image_root or (source if source.is_dir() else source.parent)
        named = {name: source / f"{name}.jsonl" for name in ("train", "val", "test")}
        named = {
            name: path for name, path in named.items() if source.is_dir() and path.is_file() and path.stat().st_size
        }
        return {name: self._generate_examples(path, root) for name, path in (named or {"train": source}).items()}

    def _generate_examples(self, path: Path, root: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        source = JsonlSource(path, root, max_bad=self.max_bad)
        for number, story in enumerate(source.stories):
            paths = [source.dataset.image_path(story, turn) for turn in range(len(story))]
            images = [io.BytesIO(read_regular(path)) for path in paths]
            yield number, {"id": str(story.id), "images": images, "captions": list(story.captions)}


def story_stream(*, source: Any, data_dir: Any, name: str = "folder", **options) -> StoryStream:
    """A builder for one of the subsets or for a folder; `download_and_prepare` writes it below data_dir."""
    if name not in SUBSETS:
        raise UserError(f"unknown subset {name!r}: choose from {', '.join(SUBSETS)}")
    return StoryStream(source=source, config=name, data_dir=str(data_dir), **options)
