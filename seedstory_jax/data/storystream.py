"""StoryStream's JSONL: one story a line, pictures beside it.

{"id": 102, "images": ["dir/a.jpg", ...], "captions": ["...", ...]}
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from seedstory_jax.data.images import ImageTransform, read_images
from seedstory_jax.errors import UserError


@dataclass(frozen=True)
class Story:
    """One story: as many captions as images; image paths are relative to the image root.

    Attributes:
        given: first turns that a generated story is given; the model goes on from them.
        continuation: captions of turns to come that have no picture yet, for `sample.py --mode=visualize`.
    """

    id: int | str
    images: tuple[str, ...]
    captions: tuple[str, ...]
    given: int = 1
    continuation: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.captions)


class StoryFault(ValueError):
    """Why a line is no story: one sentence."""


def parse_story(line: str | bytes, *, min_images: int = 1) -> Story:
    """The story of one JSONL line. Raises StoryFault with the reason if it is none."""
    try:
        text = line.decode("utf-8") if isinstance(line, bytes) else line
    except UnicodeDecodeError as error:
        raise StoryFault(f"invalid UTF-8 at byte {error.start}") from None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoryFault(f"invalid JSON: {error}") from None
    if not isinstance(record, dict):
        raise StoryFault(f"a line must be a JSON object, this is {type(record).__name__}")
    missing = [key for key in ("id", "images", "captions") if key not in record]
    if missing:
        raise StoryFault(f"missing key {missing[0]!r}")
    images, captions = record["images"], record["captions"]
    if not isinstance(record["id"], int | str) or isinstance(record["id"], bool):
        raise StoryFault(f"the id must be a number or a text, this is {type(record['id']).__name__}")
    if not isinstance(images, list) or not isinstance(captions, list):
        raise StoryFault("images and captions must be lists")
    if len(images) != len(captions):
        raise StoryFault(f"{len(images)} images but {len(captions)} captions")
    if len(images) < min_images:
        raise StoryFault(f"{len(images)} images, fewer than {min_images}")
    for number, (image, caption) in enumerate(zip(images, captions)):
        if not isinstance(image, str) or not image:
            raise StoryFault(f"image {number} is no path")
        if not isinstance(caption, str) or not caption.strip():
            raise StoryFault(f"caption {number} is empty or no text")
        if any("\ud800" <= letter <= "\udfff" for letter in caption + image):
            raise StoryFault(f"caption or path {number} holds half a surrogate pair")
        fault = path_fault(image)
        if fault:
            raise StoryFault(f"image {number}: {fault}")
    given, continuation = record.get("given", 1), record.get("continuation", [])
    if not isinstance(given, int) or not 1 <= given <= len(images):
        raise StoryFault(f"given is {given!r}, of {len(images)} turns")
    if not isinstance(continuation, list) or not all(isinstance(text, str) and text.strip() for text in continuation):
        raise StoryFault("continuation must be a list of captions")
    return Story(record["id"], tuple(images), tuple(captions), given, tuple(continuation))


def path_fault(path: str) -> str | None:
    """Why an image path may not be followed (it must stay below the image root), or None."""
    if "\0" in path:
        return "the path holds a zero byte"
    if path.startswith(("/", "\\")) or (len(path) > 1 and path[1] == ":"):
        return f"absolute path {path!r}"
    if ".." in PurePosixPath(path.replace("\\", "/")).parts:
        return f"path with '..' {path!r}"
    return None


def iter_lines(path: Any) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, raw line) of every line of a JSONL file that is not blank."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def jsonl_files(source: Any) -> list[Any]:
    """The file itself, or every *.jsonl of a folder. Raises UserError if there is none."""
    if source.is_file():
        return [source]
    files = sorted(source.glob("*.jsonl")) if source.is_dir() else []
    if not files:
        raise UserError(f"{source} is no JSONL file and no folder that holds one: give the path of stories")
    return files


def as_path(path: Any) -> Any:
    """A local `Path`, or for an address like gs://bucket/folder an `etils.epath` path, which reads alike."""
    if isinstance(path, str) and "://" in path:
        from etils import epath

        return epath.Path(path)
    return path if hasattr(path, "read_bytes") else Path(path)


class StoryDataset(Sequence[Story]):
    """The stories of a JSONL file or a folder of them, with the pictures' root.

    Broken lines are left out with one warning that says how many; more than `max_bad` of them is an error, and so is a
    file without any story.
    """

    def __init__(self, source: Any, image_root: Any = None, *, max_bad: int = 100):
        self.source = as_path(source)
        files = jsonl_files(self.source)
        self.image_root = as_path(image_root) if image_root is not None else files[0].parent
        self.stories: list[Story] = []
        self.bad: list[str] = []
        for file in files:
            for number, line in iter_lines(file):
                try:
                    self.stories.append(parse_story(line))
                except StoryFault as fault:
                    self.bad.append(f"{file}, line {number}: {fault}")
        check_bad(self.bad, max_bad)
        if not self.stories:
            raise UserError(f"{self.source} holds no story: one JSON object a line with id, images and captions")

    def __len__(self) -> int:
        return len(self.stories)

    def __getitem__(self, number: int) -> Story:
        return self.stories[number]

    def image_path(self, story: Story, turn: int) -> Any:
        """Where a story's picture lies."""
        return self.image_root / story.images[turn]

    def image_paths(self) -> list[Any]:
        """Every picture of every story, story by story: picture i of story s is at `offsets[s] + i`."""
        return [self.image_root / image for story in self.stories for image in story.images]

    @property
    def offsets(self) -> np.ndarray:
        """Where each story begins in `image_paths()`, int64[stories + 1]."""
        return np.cumsum([0, *map(len, self.stories)])

    def captions(self) -> list[str]:
        """Every caption, in the order of `image_paths()`."""
        return [caption for story in self.stories for caption in story.captions]

    def read_pictures(self, transform: ImageTransform, *, threads: int = 2) -> np.ndarray:
        """All pictures in memory, uint8[n size size 3]: for small datasets such as the toy's."""
        return read_images(self.image_paths(), transform, threads=threads)


def check_bad(bad: Sequence[str], max_bad: int) -> None:
    """Warn about what was left out, or raise UserError if it is more than is allowed."""
    if len(bad) > max_bad:
        raise UserError(
            f"{len(bad)} stories cannot be used, more than the {max_bad} allowed; the first: {bad[0]}. "
            "`python -m seedstory_jax.storystream validate` names all and writes a clean file"
        )
    if bad:
        warnings.warn(f"left out {len(bad)} stories that cannot be used; the first: {bad[0]}", stacklevel=3)
