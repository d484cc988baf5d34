"""StoryStream's JSONL: one story a line, pictures beside it.

{"id": 102, "images": ["dir/a.jpg", ...], "captions": ["...", ...]}
"""

import gzip
import json
import math
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seedstory_jax.data.images import decode_image
from seedstory_jax.data.names import path_below, path_fault, read_regular
from seedstory_jax.errors import UserError

MAX_LINE = 16 * 1024 * 1024


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
    record = strict_json(text)
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
        if _half_pair(caption + image):
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


def strict_json(text: str) -> Any:
    """The value of a JSON text. Raises StoryFault also for what other readers take otherwise or not at all.

    That is: NaN, infinities, numbers that no float holds, keys that stand twice in an object, half surrogate pairs.
    """
    try:
        value = json.loads(
            text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_object_of_different_keys
        )
        if "\\ud" in text.lower() and _half_pair(json.dumps(value, ensure_ascii=False)):
            raise StoryFault("a text holds half a surrogate pair")
        return value
    except StoryFault:
        raise
    except (ValueError, RecursionError) as error:
        raise StoryFault(f"invalid JSON: {error}") from None


def _no_number(text: str) -> Any:
    raise StoryFault(f"invalid JSON: {text} is no number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _object_of_different_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise StoryFault(f"invalid JSON: the key {twice[:60]!r} stands more than once")
    return found


def _half_pair(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def iter_lines(path: Any) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, line) of every line of a JSONL file that is not blank; None for one longer than 16 MiB.

    A file that begins as gzip's do is unpacked, whatever its name; a byte order mark is left out.
    Raises UserError if the packed data is damaged.
    """
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file = gzip.GzipFile(fileobj=raw) if packed else raw
        try:
            yield from _bounded_lines(file)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path} is damaged, its gzip data cannot be unpacked: {error}") from None


def _bounded_lines(file: Any) -> Iterator[tuple[int, bytes | None]]:
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if len(line) > MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE)
            yield number, None
        elif line.strip():
            yield number, line


def caption_lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file that are not blank; LF and CRLF end a line, no other character does.

    Raises UserError if it cannot be read as UTF-8 text or holds no line.
    """
    try:
        text = read_regular(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read as text: no UTF-8 at byte {error.start}") from None
    lines = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not lines:
        raise UserError(f"{path} holds no caption: write one a line")
    return lines


def jsonl_files(source: Any) -> list[Any]:
    """The file itself, or every *.jsonl and *.jsonl.gz of a folder. Raises UserError if there is none."""
    if source.is_file():
        return [source]
    files = sorted([*source.glob("*.jsonl"), *source.glob("*.jsonl.gz")]) if source.is_dir() else []
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is no regular file: take it out of {source}, or name the file of stories itself")
    if not files:
        raise UserError(f"{source} is no JSONL file and no folder that holds one: give the path of stories")
    return files


def whole_line(line: bytes | None) -> bytes:
    """A line of `iter_lines`. Raises StoryFault for one that was too long to be read."""
    if line is None:
        raise StoryFault("longer than 16 MiB")
    return line


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
                    self.stories.append(parse_story(whole_line(line)))
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
        """Where a story's picture lies. Raises UserError for a name that leads out of the image root."""
        return path_below(self.image_root, story.images[turn])

    def picture(self, story: Story, turn: int) -> Image.Image:
        """A story's picture, RGB. Raises UserError if it cannot be read."""
        path = self.image_path(story, turn)
        return decode_image(read_regular(path), path)

    @property
    def offsets(self) -> np.ndarray:
        """Where each story's pictures begin among all, int64[stories + 1]: picture i of story s is `offsets[s] + i`."""
        return np.cumsum([0, *map(len, self.stories)])

    def captions(self) -> list[str]:
        """Every caption, story by story."""
        return [caption for story in self.stories for caption in story.captions]


def check_bad(bad: Sequence[str], max_bad: int) -> None:
    """Warn about what was left out, or raise UserError if it is more than is allowed."""
    if len(bad) > max_bad:
        raise UserError(
            f"{len(bad)} stories cannot be used, more than the {max_bad} allowed; the first: {bad[0]}. "
            "`seedstory data validate` names all and writes a clean file"
        )
    if bad:
        warnings.warn(f"left out {len(bad)} stories that cannot be used; the first: {bad[0]}", stacklevel=3)
