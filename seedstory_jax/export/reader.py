"""A story folder as a book: `story.json` and its pictures, checked before anything is made of them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from PIL import Image

from seedstory_jax.data.images import open_image
from seedstory_jax.errors import UserError
from seedstory_jax.report.storybook import given_words

MAX_STORY_BYTES = 64_000_000
MAX_TURNS = 2_000
MAX_TEXT, MAX_NAME = 10_000, 250  # characters of a caption, and of a picture's file name
# What XML, and therefore EPUB and ComicInfo, cannot hold; lone surrogates cannot even be written as UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Page:
    """One turn of a story.

    Attributes:
        number: from 1.
        text: the caption, one line.
        image: the picture's file inside the story's folder; None where there is none.
        source: "prompt" (caption and picture were given), "caption" (the caption was given) or "generated".
    """

    number: int
    text: str
    image: Path | None
    source: str

    @property
    def alt(self) -> str:
        """What the picture shows, for those who cannot see it."""
        return f"Picture {self.number}: {self.text}"

    @property
    def given(self) -> str:
        """Which part of the turn was given rather than generated; "" if none was."""
        return given_words({"source": self.source})

    def picture(self) -> Image.Image:
        """The decoded picture, RGB; UserError if the file is damaged."""
        return _decoded(self.image)


@dataclass(frozen=True)
class Book:
    """A story that was written to a folder.

    Attributes:
        title: of the book.
        language: a BCP 47 tag of the captions, as "en" or "zh".
        pages: one a turn.
        folder: where the story lies.
        story: `story.json` as it was read.
        modified: when the story was written, to the second.
    """

    title: str
    language: str
    pages: tuple[Page, ...]
    folder: Path
    story: Mapping = field(repr=False)
    modified: datetime

    @property
    def has_pictures(self) -> bool:
        """Whether any turn has a picture."""
        return any(page.image for page in self.pages)

    @property
    def zip_date(self) -> tuple[int, ...]:
        """`modified` as ZIP writes it, which begins with 1980."""
        return max(tuple(self.modified.timetuple()[:6]), (1980, 1, 1, 0, 0, 0))

    @property
    def byline(self) -> str:
        """How the story came to be, in one line: what was given, and the policy."""
        captions = [page.source != "generated" for page in self.pages]
        if all(captions):
            words = "every caption was given, the pictures were generated" if self.has_pictures else "all was given"
        elif sum(captions) > 1:
            words = f"{sum(captions)} of {len(captions)} captions were given, the rest was generated"
        elif any(captions):
            words = "the first turn was given, the rest was generated"
        else:
            words = "generated"
        policy = self.story.get("policy")
        return f"Told by a model: {words}" + (f" (policy {clean(policy)})" if isinstance(policy, str) else "")


def read_book(folder: Path | str, *, title: str | None = None, language: str = "en") -> Book:
    """Read and check a story folder.

    Raises UserError, one line, for a folder without a readable story.json, a story without turns, a picture outside the
    folder (also through `..`, an absolute path or a link), one that is missing, or one that is no picture.
    """
    folder = Path(folder)
    path = folder / "story.json"
    story = _read_json(path)
    turns = story.get("frames") if isinstance(story, dict) else None
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise UserError(f"{path} is no story: it needs a list `frames` of at least one turn")
    if len(turns) > MAX_TURNS:
        raise UserError(f"{path} has {len(turns):,} turns, more than {MAX_TURNS:,}: split the story")
    pages = tuple(_page(path, number, turn) for number, turn in enumerate(turns, 1))
    given_title = title if title is not None else story.get("title")
    title = clean(given_title) if isinstance(given_title, str) else ""
    if not re.fullmatch(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*", language):
        raise UserError(f"language {language!r} is no language tag: give one as en, de or zh-Hans")
    modified = datetime.fromtimestamp(int(path.stat().st_mtime), UTC)
    return Book(title or shorten(pages[0].text, 60) or "A story", language, pages, folder, story, modified)


def clean(text: str) -> str:
    """Text on one line, without control characters."""
    return " ".join(_UNPRINTABLE.sub(" ", text).split())


def shorten(text: str, limit: int) -> str:
    """Text cut at a word to at most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1].rsplit(" ", 1)[0] + "…"


def _read_json(path: Path) -> object:
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is no folder: give the folder of a story (story.json and its pictures)")
    if not path.is_file():
        raise UserError(f"{path.parent} holds no story.json: give the folder of one story")
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_STORY_BYTES else None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    if data is None:
        raise UserError(f"{path} has more than {MAX_STORY_BYTES:,} bytes: it is no story")
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged, it is no JSON ({error}): write the story again") from None


def _page(path: Path, number: int, turn: Mapping) -> Page:
    text, name = turn.get("text"), turn.get("image")
    if not isinstance(text, str):
        raise UserError(f"{path}: turn {number} has no text ({text!r}): every turn needs a caption")
    if len(text) > MAX_TEXT:
        raise UserError(f"{path}: the text of turn {number} has {len(text):,} characters, more than {MAX_TEXT:,}")
    if name is not None and not isinstance(name, str):
        raise UserError(f"{path}: the image of turn {number} is {name!r}: it must be a file name or null")
    source = turn.get("source")
    image = _inside(path.parent, name, number) if name else None
    if image is not None:
        _decoded(image)
    return Page(number, clean(text), image, source if source in ("prompt", "caption") else "generated")


def _inside(folder: Path, name: str, number: int) -> Path:
    """The file `name` in `folder`; UserError for a name that leads out of it."""
    if len(name) > MAX_NAME:
        raise UserError(f"{folder}: the image of turn {number} has a name of {len(name):,} characters")
    try:
        file, home = (folder / name).resolve(), folder.resolve()
    except (OSError, ValueError, RuntimeError):
        raise UserError(f"{folder}: the image of turn {number} is no file name: {name[:80]!r}") from None
    if Path(name).is_absolute() or ".." in Path(name).parts or not file.is_relative_to(home):
        raise UserError(
            f"{folder}: the image of turn {number} lies outside the story's folder ({name[:80]!r}); "
            "pictures are read from that folder alone"
        )
    return file


@lru_cache(maxsize=4)
def _decoded(path: Path) -> Image.Image:
    return open_image(path)
