"""Stories as other systems' public code leaves them, so that they can be compared, judged and shown as they come.

Two of these systems write texts and pictures into one JSON, the rest pictures alone, some with a file of texts. A story
set (`storystream import`) gives texts to those that have none, and the given turns, so that turns of all systems match.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seedstory_jax.data.storystream import Story
from seedstory_jax.errors import UserError
from seedstory_jax.evaluation.stories import PICTURES, StoryFolder, natural
from seedstory_jax.storystream.benchmarks.story_set import read_set


@dataclass(frozen=True)
class Layout:
    """Where a system's stories lie below a folder.

    Attributes:
        system: whose public code writes it so.
        story: glob of a story's folder.
        pictures: globs in it; each must find something, and their files follow each other.
        texts: a file with a text a line, "" where there is none.
        by_number: pictures are numbered as the data's shots are, with gaps where one is missing; else by place.
    """

    system: str
    story: str
    pictures: tuple[str, ...]
    texts: str = ""
    by_number: bool = False


LAYOUTS = (
    # gen_george.py, vis_george_sink.py: NN.jpg has its text burnt in, and so has 000start_image.jpg
    Layout("SEED-Story", "val_*", ("ori_*.jpg",), "text.txt"),
    # ViStoryBench's outputs, in which it gathers StoryDiffusion, StoryGen, StoryAdapter, UNO and others
    Layout("ViStoryBench", "[0-9]*", ("shots/*[0-9].*",), by_number=True),
    # predict.py: comic.png beside them shows all at once
    Layout("StoryDiffusion", "*", ("out-*.*",)),
    # inference.py: one picture that is referred to, one that refers
    Layout("StoryGen", "*", ("reference_image.png", "output.png")),
)
FLAT = re.compile(r"\d{4}\.png$")  # AR-LDM's main.py (one story a batch): all stories' pictures in a row


def read_published(path: Path, story_set: Path | None = None) -> list[StoryFolder] | None:
    """The stories of a folder in one of these layouts, None if it has none of them.

    Args:
        path: the folder that holds the stories' folders or files, or one story's folder.
        story_set: a set that the stories were generated from. Stories find their line by name, by number (`1` and
            `01` are the same), or, as `val_3` does, by place.

    Raises UserError for stories without texts where there is no set, and where texts and pictures do not fit.
    """
    if not path.is_dir():
        return None
    lines = [(story, record, _root(story_set)) for story, record in read_set(story_set)] if story_set else []
    for reader in (_opening, _mm_interleaved):
        if (found := reader(path)) is not None:
            return found
    for layout in LAYOUTS:
        folders = [path] if _pictures(path, layout) and path.match(layout.story) else _folders(path, layout)
        if folders:
            return [_story(folder, layout, lines) for folder in folders]
    flat = sorted(file for file in path.iterdir() if FLAT.match(file.name))
    return _flat(path, flat, lines) if flat and lines else None


def _folders(path: Path, layout: Layout) -> list[Path]:
    found = (folder for folder in path.glob(layout.story) if folder.is_dir() and not folder.name.startswith("."))
    return sorted((folder for folder in found if _pictures(folder, layout)), key=natural)


def _pictures(folder: Path, layout: Layout) -> list[Path]:
    """A story's pictures in order; none unless every glob finds one, or if it is a story of ours."""
    groups = [[file for file in folder.glob(glob) if file.suffix.lower() in PICTURES] for glob in layout.pictures]
    if not all(groups) or (folder / "story.json").is_file():
        return []
    return [file for group in groups for file in sorted(group, key=natural)]


def _story(folder: Path, layout: Layout, lines: Sequence[tuple[Story, dict, Path]]) -> StoryFolder:
    pictures = _pictures(folder, layout)
    line = _line_of(folder.name, lines)
    if line is not None:
        return _with_set(pictures, *line, by_number=layout.by_number)
    texts_file = folder / layout.texts if layout.texts else None
    if texts_file is None or not texts_file.is_file():
        raise UserError(f"{folder} ({layout.system}) has no texts: name its story set with --captions=SET")
    texts = [text.strip() for text in texts_file.read_text(encoding="utf-8").splitlines() if text.strip()]
    if len(texts) < len(pictures):
        raise UserError(f"{texts_file} has {len(texts)} texts for {len(pictures)} pictures")
    return StoryFolder(folder.name, tuple(texts[: len(pictures)]), tuple(pictures))


def _line_of(name: str, lines: Sequence[tuple[Story, dict, Path]]) -> tuple[Story, dict, Path] | None:
    by_name = {str(story.id): (story, record, root) for story, record, root in lines}
    if name in by_name:
        return by_name[name]
    if name.isdigit():
        return next((line for key, line in by_name.items() if key.isdigit() and int(key) == int(name)), None)
    place = re.fullmatch(r"val_(\d+)", name)
    return lines[int(place.group(1))] if place and int(place.group(1)) < len(lines) else None


def _with_set(
    pictures: Sequence[Path], story: Story, record: dict, root: Path, *, by_number: bool = False
) -> StoryFolder:
    """The set's given turns, then the pictures, by the data's numbers of shots or in order."""
    texts, shots = (*story.captions, *story.continuation), (record.get("source") or {}).get("shots")
    if by_number and shots:
        numbered = {int(re.search(r"\d+$", file.stem).group()): file for file in pictures}
        shown = [numbered.get(shot) for shot in shots]
    else:
        shown = list(pictures[: len(story.continuation) or None])
    texts = texts if story.continuation else (*texts, *("" for _ in shown))
    given = [root / image for image in story.images]
    images = [*given, *shown, *[None] * (len(texts) - len(given) - len(shown))]
    return StoryFolder(str(story.id), tuple(texts), tuple(images[: len(texts)]), {"given": len(given)})


def _flat(path: Path, pictures: Sequence[Path], lines: Sequence[tuple[Story, dict, Path]]) -> list[StoryFolder]:
    lengths = [len(story.continuation) for story, _, _ in lines]
    if sum(lengths) != len(pictures):
        raise UserError(f"{path} holds {len(pictures)} pictures, the stories of --captions ask for {sum(lengths)}")
    found, start = [], 0
    for (story, record, root), length in zip(lines, lengths, strict=True):
        found.append(_with_set(pictures[start : start + length], story, record, root))
        start += length
    return found


def _opening(path: Path) -> list[StoryFolder] | None:
    """OpenING's `<model>_output`: `<uid>.json` (some models: .jsonl) with its pictures beside it."""
    files = sorted(file for file in path.glob("*.json*") if re.fullmatch(r"\d{7}\.jsonl?", file.name))
    found = []
    for file in files:
        try:
            given, answer = (json.loads(file.read_text(encoding="utf-8"))["conversations"][k] for k in (0, 1))
            turns = [(str(part["text"] or ""), part["image"]) for part in answer["output"]]
            prompt = " ".join(str(part["text"] or "") for part in given["input"])
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(f"{file} is no answer of OpenING: {type(error).__name__} {error}") from None
        images = [path / image.split("/")[-1] if image else None for _, image in turns]
        images = [image if image and image.is_file() else None for image in images]
        found.append(StoryFolder(file.stem, (prompt, *(text for text, _ in turns)), (None, *images)))
    return found or None


def _mm_interleaved(path: Path) -> list[StoryFolder] | None:
    """MM-Interleaved's inference.py: the newest `eval_results_<time>.json`, pictures in `gen_img_<time>/`."""
    files = sorted(path.glob("eval_results_*.json"))
    if not files:
        return None
    folder, found = path / files[-1].stem.replace("eval_results", "gen_img"), []
    try:
        for number, item in enumerate(json.loads(files[-1].read_text(encoding="utf-8"))):
            texts, images = [" ".join(item["sentences"])], [None]
            said = ""
            for result in item["generate_results"]:
                if re.fullmatch(rf"{number}_\d+_\d+\.png", result):
                    texts.append(said)
                    images.append(folder / result)
                    said = ""
                else:
                    said = f"{said} {result}".strip()
            found.append(StoryFolder(str(number), (*texts, *[said] * bool(said)), (*images, *[None] * bool(said))))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{files[-1]} is no result of MM-Interleaved: {type(error).__name__} {error}") from None
    return found


def _root(story_set: Path) -> Path:
    return story_set if story_set.is_dir() else story_set.parent
