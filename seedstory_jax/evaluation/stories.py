"""Stories to be judged, ours or any system's: a folder a story, or StoryStream's JSONL.

A story's folder holds a `story.json` of ours, or pictures in the order of their names with their texts: one `.txt` of
the same name beside each picture, or `captions.json` (a list), or `captions.txt` (one line a frame).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seedstory_jax.data.images import open_image
from seedstory_jax.data.names import folder_name, path_below, read_regular, story_id
from seedstory_jax.data.storystream import StoryFault, caption_lines, iter_lines, parse_story, strict_json, whole_line
from seedstory_jax.errors import UserError

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class StoryFolder:
    """One story: as many texts as frames; a picture may be missing (text only)."""

    name: str
    texts: tuple[str, ...]
    images: tuple[Path | None, ...]
    facts: Mapping = field(default_factory=dict)  # our story.json, where there is one

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def given(self) -> int:
        """Turns that were given, the first ones; one where nothing says otherwise."""
        frames = self.facts.get("frames", ())
        return int(self.facts.get("given", 0)) or max(1, sum(frame.get("source") == "prompt" for frame in frames))

    def pictures(self) -> list[np.ndarray] | None:
        """All pictures uint8[H W 3], or None if one is missing. Raises UserError for a file that is no picture."""
        if not self.images or any(path is None for path in self.images):
            return None
        return [read_picture(path) for path in self.images]


def read_stories(path: Path) -> list[StoryFolder]:
    """All stories of a folder (of stories, or a story itself) or of a StoryStream JSONL file, by name.

    Raises UserError if there is none or one is broken.
    """
    path = Path(path)
    if path.is_file():
        return _read_jsonl(path)
    if not path.is_dir():
        raise UserError(
            f"{path} does not exist: give a folder of stories (one folder each) or a StoryStream .jsonl file"
        )
    if _is_story(path):
        return [read_story(path)]
    stories = [read_story(folder) for folder in sorted(path.iterdir(), key=natural) if _is_story(folder)]
    if not stories:
        raise UserError(
            f"{path} holds no stories: a story is a folder with story.json, or with pictures and captions.txt, "
            "captions.json or a .txt beside each picture"
        )
    return stories


def read_story(folder: Path) -> StoryFolder:
    """One story's folder. Raises UserError if texts and pictures do not fit each other."""
    if (folder / "story.json").is_file():
        return _read_own(folder)
    images = sorted((path for path in folder.iterdir() if path.suffix.lower() in PICTURES), key=natural)
    beside = [path.with_suffix(".txt") for path in images]
    if (folder / "captions.json").is_file():
        texts = _read_json(folder / "captions.json")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{folder / 'captions.json'} must be a JSON list of texts")
    elif (folder / "captions.txt").is_file():
        texts = caption_lines(folder / "captions.txt")
    elif images and all(path.is_file() for path in beside):
        texts = [_read_text(path).strip() for path in beside]
    else:
        raise UserError(
            f"{folder} has no captions: add captions.txt (a line a frame), captions.json or a .txt a picture"
        )
    if images and len(images) != len(texts):
        raise UserError(f"{folder} has {len(images)} pictures but {len(texts)} captions: every frame needs both")
    for path in images:
        path_below(folder, path.name)  # no symlink out of it
    return StoryFolder(story_id(folder.name), tuple(texts), tuple(images) or (None,) * len(texts))


def common_stories(systems: Mapping[str, Sequence[StoryFolder]]) -> dict[str, dict[str, StoryFolder]]:
    """Stories that every system has, by name and system. Raises UserError if there is none."""
    names = [story.name for story in next(iter(systems.values()), ())]
    tables = {system: {story.name: story for story in stories} for system, stories in systems.items()}
    shared = {
        n: {system: table[n] for system, table in tables.items()} for n in names if all(n in t for t in tables.values())
    }
    if not shared:
        raise UserError(f"{', '.join(systems)} have no story in common: a story is matched by its folder's name")
    return shared


def read_picture(path: Path) -> np.ndarray:
    """A picture uint8[H W 3]; UserError for a file that is none."""
    return np.asarray(open_image(path))


def _is_story(folder: Path) -> bool:
    if not folder.is_dir() or folder.name.startswith("."):
        return False
    if any((folder / name).is_file() for name in ("story.json", "captions.json", "captions.txt")):
        return True
    return any(path.suffix.lower() in PICTURES for path in folder.iterdir())


def _read_own(folder: Path) -> StoryFolder:
    story = _read_json(folder / "story.json")
    try:
        texts = tuple(str(frame["text"]) for frame in story["frames"])
        names = [frame.get("image") for frame in story["frames"]]
        if not texts or not all(name is None or isinstance(name, str) for name in names):
            raise TypeError("frames are needed, each with a text and the name of an image or null")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / 'story.json'} is no story: {type(error).__name__} {error}") from None
    images = tuple(path_below(folder, name) if name else None for name in names)
    name = story.get("id") if folder_name(str(story.get("id"))) == folder.name else story_id(folder.name)
    return StoryFolder(name, texts, images, story)


def _read_jsonl(path: Path) -> list[StoryFolder]:
    stories: dict[str, StoryFolder] = {}
    for number, line in iter_lines(path):
        try:
            story = parse_story(whole_line(line))
        except StoryFault as error:
            raise UserError(f"{path} line {number} is no story: {error}") from None
        if str(story.id) in stories:
            raise UserError(
                f"{path} line {number}: the id {story.id!r} stands more than once, stories are matched by it"
            )
        images = tuple(path_below(path.parent, image) for image in story.images)
        stories[str(story.id)] = StoryFolder(str(story.id), story.captions, images)
    if not stories:
        raise UserError(f"{path} holds no stories")
    return list(stories.values())


def _read_json(path: Path):
    try:
        return strict_json(_read_text(path))
    except StoryFault as error:
        raise UserError(f"{path} is no JSON: {error}") from None


def _read_text(path: Path) -> str:
    try:
        return read_regular(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read as text: no UTF-8 at byte {error.start}") from None


def natural(path: Path) -> list:
    """Names in the order a person expects: 2.png before 10.png."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path.name) if part]
