"""Where stories and their pictures come from: JSONL and files, ArrayRecord, object stores, TFDS; one loader over all.

A source has `stories` and `picture(story, turn)`. JSONL may name a picture as a file below the image root (local, or
gs://, s3://, az:// through epath) or as `shard.array_record#17`, record 17 of an ArrayRecord file below it, as
`pack_images` writes: then a dataset of a quarter million pictures is a few dozen files.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from seedstory_jax.data.images import ImageTransform, decode_image, open_header
from seedstory_jax.data.names import path_below, read_regular
from seedstory_jax.data.storystream import Story, StoryDataset, check_bad
from seedstory_jax.errors import UserError
from seedstory_jax.files import write_text


@runtime_checkable
class StorySource(Protocol):
    """Stories by number, and their pictures."""

    stories: Sequence[Story]

    def picture(self, story: int, turn: int) -> Image.Image:
        """The RGB picture of a turn. Raises UserError if it cannot be read."""
        ...


class _Shards:
    """Open ArrayRecord readers by name; a process that gets a copy opens its own."""

    def __init__(self, root: Any):
        self.root, self._readers = root, {}

    def read(self, name: str) -> bytes:
        shard, _, number = name.rpartition("#")
        if shard not in self._readers:
            from array_record.python.array_record_module import ArrayRecordReader

            path = path_below(self.root, shard)
            if not path.is_file():
                raise UserError(f"{path} does not exist as a file: the stories name a shard that is not there")
            try:
                self._readers[shard] = ArrayRecordReader(str(path))
            except Exception as error:  # the library raises what its C++ says
                raise UserError(f"{path} is no ArrayRecord file: {' '.join(str(error).split())[:120]}") from None
        reader = self._readers[shard]
        if not (number.isascii() and number.isdigit() and len(number) < 19 and int(number) < reader.num_records()):
            raise UserError(f"{shard} has {reader.num_records()} records, the story names {number!r}")
        return reader.read([int(number)])[0]

    def __getstate__(self):
        return self.root

    def __setstate__(self, root):
        self.root, self._readers = root, {}


class JsonlSource:
    """StoryStream JSONL and pictures, wherever they lie."""

    def __init__(self, source: Any, image_root: Any = None, *, max_bad: int = 100):
        self.dataset = StoryDataset(source, image_root, max_bad=max_bad)
        self.stories = self.dataset.stories
        self._shards = _Shards(self.dataset.image_root)

    def picture(self, story: int, turn: int) -> Image.Image:
        """The RGB picture of a turn."""
        name = self.stories[story].images[turn]
        if ".array_record#" in name:
            return decode_image(self._shards.read(name), self.dataset.image_root / name)
        return self.dataset.picture(self.stories[story], turn)


class TfdsSource:
    """A prepared TFDS dataset of `seedstory_jax.data.tfds_builder`, read from its ArrayRecord files without TensorFlow.

    Ids and captions are gathered once and kept beside the records, as a record can only be read with its pictures.
    """

    def __init__(self, folder: Any, split: str = "train"):
        import tensorflow_datasets as tfds

        self.folder, self.split = Path(folder), split
        builder = tfds.builder_from_directory(str(self.folder))
        if split not in builder.info.splits:
            raise UserError(f"{folder} has no split {split!r}: choose from {', '.join(builder.info.splits)}")

        class Encoded(tfds.decode.SkipDecoding):
            """Leaves pictures encoded: a row needs a few of a story's thirty."""

            def decode_example_np(self, example):
                return example

            decode_batch_example_np = decode_example_np

        self._records = builder.as_data_source(split=split, decoders={"images": Encoded()})
        self.stories = self._index()

    def _index(self) -> list[Story]:
        path = self.folder / f"stories-{self.split}-{len(self._records)}.index.json"
        if path.exists():
            return [
                Story(number, ("",) * len(captions), tuple(captions))
                for number, captions in json.loads(path.read_text())
            ]
        listed = []
        for record in self._records:
            listed.append((record["id"].decode(), [caption.decode() for caption in record["captions"]]))
        write_text(path, json.dumps(listed))
        return self._index()

    def picture(self, story: int, turn: int) -> Image.Image:
        """The RGB picture of a turn."""
        return decode_image(self._records[story]["images"][turn], f"{self.folder}, story {story}, image {turn}")

    def __getstate__(self):
        return self.folder, self.split

    def __setstate__(self, state):
        self.__init__(*state)


def open_source(path: Any, image_root: Any = None, *, split: str = "train", max_bad: int = 100) -> StorySource:
    """The source at a path: a prepared TFDS folder (it holds dataset_info.json), else JSONL or a folder of it."""
    if "://" not in str(path) and (Path(path) / "dataset_info.json").is_file():
        return TfdsSource(path, split)
    return JsonlSource(path, image_root, max_bad=max_bad)


def image_name(stories: Sequence[Story], story: int, turn: int) -> str:
    """What a picture is called in caches: its path below the image root, or its place where it has none (TFDS)."""
    return stories[story].images[turn] or f"{story}/{turn}"


class JoinedSource:
    """Several sources as one. A *place* numbers a picture over all of them: `offsets[story] + turn`."""

    def __init__(self, sources: Sequence[StorySource]):
        self.sources = tuple(sources)
        self.stories: list[Story] = [story for source in self.sources for story in source.stories]
        self.first_story = np.cumsum([0, *(len(source.stories) for source in self.sources)])
        self.offsets = np.cumsum([0, *map(len, self.stories)])

    def __len__(self) -> int:
        return len(self.stories)

    def picture(self, story: int, turn: int) -> Image.Image:
        """The RGB picture of a turn. Raises UserError if it cannot be read."""
        number = int(np.searchsorted(self.first_story, story, side="right")) - 1
        return self.sources[number].picture(story - int(self.first_story[number]), turn)

    def at(self, place: int) -> tuple[int, int]:
        """(story, turn) of a place."""
        story = int(np.searchsorted(self.offsets, place, side="right")) - 1
        return story, int(place - self.offsets[story])

    def captions(self) -> list[str]:
        """Every caption, in the order of places."""
        return [caption for story in self.stories for caption in story.captions]

    def read(self, places: Any, transform: ImageTransform, *, threads: int = 2) -> np.ndarray:
        """Pictures uint8[n size size 3] of a list or array of places. UserError for the first that cannot be read."""
        pictures = np.empty((len(places), transform.size, transform.size, 3), np.uint8)

        def one(number: int) -> None:
            pictures[number] = transform.pixels(self.picture(*self.at(int(places[number]))))

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, range(len(places))))
        return pictures


class PictureReader:
    """Reads a row's pictures for `ExampleSource`: float32[turns size size 3], or uint8 without `normalise`."""

    def __init__(self, source: StorySource, transform: ImageTransform, *, normalise: bool = True):
        self.source, self.transform, self.normalise = source, transform, normalise

    def __call__(self, story: int, turns: Sequence[int]) -> np.ndarray:
        """The pictures of some turns of a story."""
        pixels = np.stack([self.transform.pixels(self.source.picture(story, turn)) for turn in turns])
        return self.transform.normalise(pixels) if self.normalise else pixels


def pack_images(
    dataset: StoryDataset, folder: Path | str, *, images_per_shard: int = 8192, max_bad: int = 100
) -> Iterator[dict[str, Any] | None]:
    """Copy a dataset's picture files into ArrayRecord shards of a folder; its stories' records with the new names.

    Bytes are kept as they are; a picture that several stories share is stored once. A story with a picture that cannot
    be read, as training would pass over, gives None; with a warning, and UserError if there are more than `max_bad`.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    folder, written, writer, bad = Path(folder), {}, None, []
    for story in dataset.stories:
        try:
            read = {}
            for turn, name in enumerate(story.images):
                if name not in written and name not in read:
                    path = dataset.image_path(story, turn)
                    read[name] = read_regular(path)
                    open_header(read[name], path).close()  # at least the header must be that of a picture
        except UserError as error:
            bad.append(f"story {story.id}: {error}")
            if len(bad) > max_bad:
                check_bad(bad, max_bad)
            yield None
            continue
        names = []
        for name in story.images:
            if name not in written:
                shard, number = divmod(len(written), images_per_shard)
                if number == 0:
                    if writer:
                        writer.close()
                    writer = ArrayRecordWriter(str(folder / f"images-{shard:05d}.array_record"), "group_size:1")
                writer.write(read[name])
                written[name] = f"images-{shard:05d}.array_record#{number}"
            names.append(written[name])
        yield {"id": story.id, "images": names, "captions": list(story.captions)}
    if writer:
        writer.close()
    check_bad(bad, max_bad)
