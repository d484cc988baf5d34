"""A benchmark's stories as a set: `stories.jsonl`, the given pictures, and `skipped.jsonl` of what cannot begin.

A line is StoryStream's, with what a benchmark adds:

    {"id": "01", "images": ["images/01/0.png", ...], "captions": ["Tom is a red fox.", ...],
     "given": 2, "continuation": ["Tom leaves the house.", ...], "source": {"benchmark": "vistorybench", ...}}

`images` and `captions` are the turns that are given (`given` of them), `continuation` the captions of the turns to
come, where the benchmark has them, and `source` is what the export needs to find its way back.
"""

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seedstory_jax.data.images import open_image
from seedstory_jax.data.storystream import Story
from seedstory_jax.errors import UserError
from seedstory_jax.files import atomic_folder
from seedstory_jax.storystream.lines import stories, write_jsonl

STORIES, SKIPPED, IMAGES = "stories.jsonl", "skipped.jsonl", "images"
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
MAX_WORDS = 80  # of a caption: about 110 tokens of LLaMA's, under the default max_text_tokens=128 with its [INST]

# One word is a run of letters between blanks, or one Chinese or Japanese character.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")
SENTENCE_END = re.compile(r"[.!?;\u3002\uff01\uff1f\uff1b][\"'\u201d\u2019)]*$")
MARKS = re.compile(r"</?(?:s|img|image|begin|img_\d+|image_?\d+)>|\[/?INST\]", re.IGNORECASE)


@dataclass(frozen=True)
class Item:
    """One story of a benchmark.

    Attributes:
        name: its folder's name when it is generated; letters, digits, "-", "_" and "." only.
        pictures: files of the given turns; their `captions` are as many.
        captions: texts of the given turns.
        continuation: captions of the turns to come, where they are known.
        source: JSON values that the export needs.
    """

    name: str
    pictures: tuple[Path, ...]
    captions: tuple[str, ...]
    continuation: tuple[str, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """A story that cannot be begun, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Options:
    """What an import takes; a format uses what concerns it.

    Attributes:
        language: of texts, "en" or "ch" (ViStoryBench).
        fields: "plot" takes a shot's plot as caption, "all" what the benchmark's conversion joins (ViStoryBench).
        references: "all" characters' pictures as given turns, or "one", as the benchmark's conversion (ViStoryBench).
        split: "full" or "lite" (ViStoryBench).
        tasks: names of tasks to take; empty takes those that tell stories, "all" every one.
        pictures: a folder of first pictures, by story name, for stories that have none.
    """

    language: str = "en"
    fields: str = "plot"
    references: str = "all"
    split: str = "full"
    tasks: tuple[str, ...] = ()
    pictures: Path | None = None


@dataclass(frozen=True)
class Counts:
    """What an import wrote: stories, stories skipped, captions cut, and turns of the longest story."""

    written: int
    skipped: int
    cut: int
    longest: int


def write_set(items: Iterable[Item | Skipped], out: Path, *, max_words: int = MAX_WORDS, given: int = 0) -> Counts:
    """Writes a story set as a new folder, whole or not at all.

    Args:
        items: stories in order; names that repeat get a number.
        out: the folder; it must not exist.
        max_words: a caption is cut at the last end of a sentence within so many words; 0 leaves it whole.
        given: most given turns that are kept, the first ones; 0 keeps all.

    Raises UserError if the folder exists or no story is left.
    """
    if out.exists():
        raise UserError(f"--out={out} exists: name a new folder")
    if max_words < 0 or given < 0:
        raise UserError(f"--max_words={max_words}, --given={given}: both are 0 (no limit) or more")
    skipped: list[Skipped] = []
    cut = longest = written = 0
    names: set[str] = set()
    with atomic_folder(out) as folder:

        def lines() -> Iterator[dict]:
            nonlocal cut, longest, written
            for item in items:
                if isinstance(item, Skipped):
                    skipped.append(item)
                    continue
                name = _free_name(item.name, names)
                kept = given or len(item.pictures)
                captions = [plain(text) for text in (*item.captions[:kept], *item.continuation)]
                shorter = [shorten(text, max_words) for text in captions]
                cut += sum(a != b for a, b in zip(captions, shorter, strict=True))
                try:
                    images = [_copy(path, folder, name, k) for k, path in enumerate(item.pictures[:kept])]
                    if not images:
                        raise UserError("no picture: the model cannot begin without one (--pictures may give one)")
                    if not all(shorter):
                        raise UserError("a caption is empty")
                except UserError as fault:
                    shutil.rmtree(folder / IMAGES / name, ignore_errors=True)
                    skipped.append(Skipped(item.name, str(fault)))
                    continue
                names.add(name)
                written += 1
                longest = max(longest, len(images) + max(len(item.continuation), item.source.get("outputs", 0)))
                yield {
                    "id": name,
                    "images": images,
                    "captions": shorter[: len(images)],
                    "given": len(images),
                    "continuation": shorter[len(images) :],
                    "source": {**item.source, "dropped_given": len(item.pictures) - len(images)},
                }

        write_jsonl(folder / STORIES, lines())
        if not written:
            why = f"; the first: {skipped[0].name}: {skipped[0].reason}" if skipped else ""
            raise UserError(f"no story of {len(skipped)} can be begun{why}")
        write_jsonl(folder / SKIPPED, ({"id": one.name, "reason": one.reason} for one in skipped))
    return Counts(written, len(skipped), cut, longest)


def read_set(path: Path, benchmark: str | None = None) -> list[tuple[Story, dict[str, Any]]]:
    """The stories of a set (its folder or its JSONL file) with their whole lines.

    Raises UserError if there are none or they are of another benchmark.
    """
    file = path / STORIES if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"--set={path} holds no {STORIES}: give the folder that `storystream import` wrote")
    found = list(stories(file))
    for story, record in found:
        of = (record.get("source") or {}).get("benchmark")
        if benchmark and of != benchmark:
            raise UserError(f"{file}: story {story.id} is of {of or 'no benchmark'}, not of {benchmark}")
    return found


def plain(text: str) -> str:
    """A text without a benchmark's marks (`<image>`, `<BEGIN>`) and those that our tokenizer refuses, on one line."""
    return " ".join(MARKS.sub(" ", text).split())


def shorten(text: str, max_words: int) -> str:
    """The text, or its beginning of at most `max_words` words, up to the last end of a sentence where there is one."""
    words = list(WORD.finditer(text))
    if not max_words or len(words) <= max_words:
        return text
    kept = words[:max_words]
    ends = [word.end() for word in kept if SENTENCE_END.search(word.group())]
    return text[: max(ends, default=kept[-1].end())].rstrip()


def safe_name(text: str) -> str:
    """A folder's name of an id: letters, digits, "-", "_" and "."; never empty, hidden or a path."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip("-.") or "story"


@dataclass(frozen=True)
class GivenTurns:
    """Pictures with their texts; `own` says whether the picture is the user's and not the benchmark's."""

    pictures: tuple[Path, ...]
    captions: tuple[str, ...]
    own: bool


def given_turns(parts: Iterable[tuple[str, Path | None]], name: str, options: Options) -> GivenTurns:
    """The given turns of a benchmark's question: each ends with a picture.

    A text without a picture goes before the text of the next one; what follows the last picture joins its text. Where
    there is no picture at all, --pictures may have one of that name.

    Raises UserError if there is none.
    """
    pictures: list[Path] = []
    captions: list[str] = []
    pending = ""
    for text, picture in parts:
        pending = f"{pending} {plain(text)}".strip()
        if picture is not None:
            pictures.append(picture)
            captions.append(pending)
            pending = ""
    own = None if pictures else own_picture(options.pictures, name)
    if own is not None:
        pictures, captions, pending = [own], [pending], ""
    if not pictures:
        raise UserError("text only: the model cannot begin without a picture (--pictures may give one)")
    if pending:
        captions[-1] = f"{captions[-1]} {pending}".strip()
    captions = [text or "..." for text in captions]  # a picture may come before any word
    return GivenTurns(tuple(pictures), tuple(captions), own is not None)


def picture_files(folder: Path) -> list[Path]:
    """Every picture below a folder, in the order of their paths."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())


def own_picture(folder: Path | None, name: str) -> Path | None:
    """The picture `name`.png (jpg, jpeg, webp) of --pictures, or the first one in its folder `name`."""
    if folder is None:
        return None
    files = [folder / f"{name}{suffix}" for suffix in PICTURES]
    files += picture_files(folder / name) if (folder / name).is_dir() else []
    return next((path for path in files if path.is_file()), None)


def read_json(path: Path, kind: type = object) -> Any:
    """A JSON file's value, with or without a byte-order mark. Raises UserError if it is none or no `kind`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, kind):
        raise UserError(f"{path} holds {type(value).__name__} where {kind.__name__} is expected")
    return value


def wanted(task: str, options: Options, default: tuple[str, ...]) -> bool:
    """Whether a task is taken: its name holds one of the asked (or default) ones, whatever the case."""
    asked = options.tasks or default
    return "all" in asked or any(name.lower() in task.lower() for name in asked)


def below(root: Path, path: str) -> Path:
    """A data set's own relative path below its root. Raises UserError for one that leaves it."""
    found = root / path.replace("\\", "/")
    if Path(path).is_absolute() or ".." in Path(path.replace("\\", "/")).parts:
        raise UserError(f"picture {path!r} lies outside {root}")
    return found


def _copy(path: Path, folder: Path, name: str, number: int) -> str:
    open_image(path)
    target = Path(IMAGES) / name / f"{number}{path.suffix.lower()}"
    (folder / target).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, folder / target)
    return target.as_posix()


def _free_name(name: str, taken: set[str]) -> str:
    name, number = safe_name(name), 2
    free = name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free
