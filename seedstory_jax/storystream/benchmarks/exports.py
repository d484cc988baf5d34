"""Generated stories on their way into a benchmark's layout: which turn answers what, and what is missing.

Every export is a new folder, written whole or not at all, with a `manifest.json` that says which turn each file shows
and what a reader will not find. It never writes into a folder that is there already.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from seedstory_jax.data.images import open_image
from seedstory_jax.data.storystream import Story
from seedstory_jax.errors import UserError
from seedstory_jax.files import atomic_folder
from seedstory_jax.storystream.benchmarks import format_of
from seedstory_jax.storystream.benchmarks.story_set import STORIES, read_json, read_set, safe_name

MANIFEST = "manifest.json"
METHOD = "seedstory_jax"


@dataclass(frozen=True)
class Target:
    """Under which names a run is scored: method, mode (the policy), language, and the time it was exported."""

    method: str
    mode: str
    language: str
    time: str

    @property
    def model(self) -> str:
        """Method and mode in one word, for benchmarks that know one name."""
        return f"{self.method}-{self.mode}"


@dataclass(frozen=True)
class Export:
    """One generated story beside the line of the set that it was generated from.

    Attributes:
        name: the story's in the set.
        given: its turns that were given, and are never exported: they would be scored as copies.
        texts: by turn.
        pictures: by turn; None where a turn has none.
        shots: the data's own number of a shot -> the turn that shows it, in the data's order.
        missing: numbers of shots that no turn shows.
        source: of the line.
        given_images: files of the given turns' pictures.
    """

    name: str
    given: int
    texts: tuple[str, ...]
    pictures: tuple[Path | None, ...]
    shots: Mapping[int, int]
    missing: tuple[int, ...]
    source: Mapping[str, Any] = field(default_factory=dict)
    given_images: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Exported:
    """What was written: the folder, stories and shots in it, and those that are missing."""

    folder: Path
    stories: int
    shots: int
    missing_stories: int
    missing_shots: int


def export_benchmark(
    name: str,
    generated: Path,
    story_set: Path,
    out: Path,
    *,
    method: str = METHOD,
    mode: str | None = None,
    time: str | None = None,
) -> Exported:
    """Lays the stories that `sample.py --stories=SET --out=GENERATED` wrote out as a benchmark wants them.

    Args:
        name: of the format.
        generated: the folder of generated stories.
        story_set: the set they were generated from.
        out: the benchmark's folder of outputs; the run becomes a new folder in it.
        method: the system's name.
        mode: the run's name; by default the policy, and how the set was made if not as by default.
        time: YYYYMMDD_HHMMSS; now by default.

    Raises UserError if there is nothing to export, a name is none, or the run's folder exists.
    """
    module = format_of(name)
    if not hasattr(module, "write"):
        raise UserError(f"{name} cannot be exported to: it scores videos; import alone is supported")
    lines = read_set(story_set, name)
    if not generated.is_dir():
        raise UserError(f"{generated} is no folder: give the --out of sample.py --stories={story_set / STORIES}")
    root = story_set if story_set.is_dir() else story_set.parent
    facts = {story.id: read_json(path, dict) for story, _ in lines if (path := _story_json(generated, story)).is_file()}
    exports = [_export(story, record, facts[story.id], generated, root) for story, record in lines if story.id in facts]
    exports = [one for one in exports if one.shots]
    if not exports:
        raise UserError(f"{generated} holds no picture or text for any of the {len(lines)} stories of {story_set}")
    target = Target(
        method,
        mode or default_mode(list(facts.values()), [record for _, record in lines]),
        str(lines[0][1]["source"].get("language", "en")),
        time or datetime.now().strftime("%Y%m%d_%H%M%S"),
    )
    for what, value in (("method", target.method), ("mode", target.mode), ("time", target.time)):
        if safe_name(value) != value:
            raise UserError(f"--{what}={value} makes no folder: use letters, digits, '-', '_' and '.'")
    folder = out / module.place(target, exports)
    if folder.exists():
        raise UserError(f"{folder} exists and is left as it is: name another --mode, --time or --out")
    missing = [story.id for story, _ in lines if story.id not in {one.name for one in exports}]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as beside:
        module.write(exports, beside, target)
        manifest = {
            "format": name,
            **{key: getattr(target, key) for key in ("method", "mode", "language", "time")},
            "generated": str(generated),
            "stories": {
                one.name: {"shots": {str(index): turn for index, turn in one.shots.items()}, "missing": one.missing}
                for one in exports
            },
            "missing": missing,
        }
        (beside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return Exported(
        folder,
        len(exports),
        sum(len(one.shots) for one in exports),
        len(missing),
        sum(len(one.missing) for one in exports),
    )


def default_mode(facts: Sequence[Mapping], records: Sequence[Mapping]) -> str:
    """The run's name: its policy, then what sets it apart (several given turns, all fields, pictures of our own).

    Raises UserError if the stories were generated under several policies.
    """
    policies = sorted({str(story.get("policy", "unknown")) for story in facts})
    if len(policies) > 1:
        raise UserError(f"the stories were generated under {', '.join(policies)}: export one policy's, or give --mode")
    sources = [record["source"] for record in records]
    parts = [policies[0]]
    if sources[0]["benchmark"] == "vistorybench" and any(record.get("given", 1) > 1 for record in records):
        parts.append("references")
    if any(source.get("fields") == "all" for source in sources):
        parts.append("all_fields")
    if any(source.get("own_picture") for source in sources):
        parts.append("own_pictures")
    return "-".join(parts)


def save_picture(source: Path, target: Path) -> None:
    """Copies a picture, encoded anew where the target's kind is another."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix.lower() == target.suffix.lower():
        shutil.copyfile(source, target)
    else:
        open_image(source).save(target, quality=95)


def _story_json(generated: Path, story: Story) -> Path:
    return generated / str(story.id) / "story.json"


def _export(story: Story, record: Mapping, facts: Mapping, generated: Path, root: Path) -> Export:
    folder = generated / str(story.id)
    try:
        turns = facts["frames"]
        texts = tuple(str(turn["text"]) for turn in turns)
        files = [folder / turn["image"] if turn.get("image") else None for turn in turns]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / 'story.json'} is no story: {type(error).__name__} {error}") from None
    pictures = tuple(path if path is not None and path.is_file() else None for path in files)
    given = int(record.get("given", 1))
    prompts = sum(turn.get("source") == "prompt" for turn in turns)
    if prompts != given:
        raise UserError(f"{folder} was generated from {prompts} given turns, the set has {given}: name its own --set")
    source = record.get("source") or {}
    outputs = source.get("outputs") or len(record.get("continuation") or ()) or len(turns) - given
    numbers = source.get("shots") or range(outputs)
    needs_picture = source.get("benchmark") == "vistorybench"
    shots, missing = {}, []
    for number, turn in zip(numbers, range(given, given + len(numbers))):
        there = turn < len(turns) and (pictures[turn] is not None or not needs_picture)
        shots |= {number: turn} if there else {}
        missing += [] if there else [number]
    images = tuple(root / image for image in story.images)
    return Export(str(story.id), given, texts, pictures, shots, tuple(missing), source, images)
