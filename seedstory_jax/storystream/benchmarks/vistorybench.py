"""ViStoryBench (Zhuang et al., CVPR 2026): 80 stories with pictures of their characters, in English and Chinese.

Read: `<NN>/story.json` and `<NN>/image/<character>/**`. Written:
`<method>/<mode>/<language>/<time>/<NN>/shots/shot_<index>.png`, the index being the data's own.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from seedstory_jax.errors import UserError
from seedstory_jax.storystream.benchmarks.exports import Export, Target, save_picture
from seedstory_jax.storystream.benchmarks.story_set import (
    Item,
    Options,
    Skipped,
    own_picture,
    picture_files,
    read_json,
)

LITE = {1, 8, 9, 15, 17, 19, 24, 27, 28, 29, 32, 41, 52, 53, 55, 57, 60, 64, 68, 79}
FIELDS = {  # the benchmark's names, and theirs after loading; a shot that lacks one is no shot for its evaluators
    "Setting Description": "scene",
    "Plot Correspondence": "plot",
    "Characters Appearing": "characters",
    "Static Shot Description": "script",
    "Shot Perspective Design": "camera",
}
REFERENCE_SUFFIXES = (".png", ".jpg", ".jpeg")


def read(folder: Path, options: Options) -> Iterator[Item | Skipped]:
    """Stories as turns: first the characters' pictures with their descriptions, then a caption a shot.

    Raises UserError for options that are none and a folder without stories.
    """
    for name, value, known in (
        ("language", options.language, ("en", "ch")),
        ("fields", options.fields, ("plot", "all")),
        ("references", options.references, ("all", "one")),
        ("split", options.split, ("full", "lite")),
    ):
        if value not in known:
            raise UserError(f"--{name}={value}: choose {' or '.join(known)}")
    root = next((path for path in (folder, folder / "ViStory") if _numbered(path)), None)
    if root is None:
        raise UserError(f"{folder} holds no ViStoryBench: its stories are folders 01, 02, ... with story.json")
    for path in _numbered(root):
        if options.split == "full" or int(path.name) in LITE:
            try:
                yield _story(path, options)
            except UserError as fault:
                yield Skipped(path.name, str(fault))


def write(exports: Sequence[Export], folder: Path, target: Target) -> None:
    """One folder a story, `<NN>/shots/shot_<index>.png`, and nothing else beside the folders but the manifest."""
    for one in exports:
        for index, turn in one.shots.items():
            save_picture(one.pictures[turn], folder / one.name / "shots" / f"shot_{index:02d}.png")


def place(target: Target, exports: Sequence[Export]) -> Path:
    """Where a run lies below the outputs' root. Raises UserError for a story whose name is no number."""
    wrong = [one.name for one in exports if not one.name.isdigit()]
    if wrong:
        raise UserError(f"story {wrong[0]!r}: the benchmark's reader wants numbers as names of stories")
    return Path(target.method, target.mode, target.language, target.time)


def _numbered(root: Path) -> list[Path]:
    """Story folders of a data set, in the order of their numbers."""
    folders = root.iterdir() if root.is_dir() else ()
    found = [path for path in folders if path.name.isdigit() and (path / "story.json").is_file()]
    return sorted(found, key=lambda path: int(path.name))


def _story(folder: Path, options: Options) -> Item | Skipped:
    data = read_json(folder / "story.json", dict)
    characters = {
        key.strip(): value for key, value in (data.get("Characters") or {}).items() if isinstance(value, Mapping)
    }
    shots, notes = _shots(data, options.language)
    if not shots:
        return Skipped(folder.name, "no shot has all of its fields and an index")
    pictures = {key: _reference(folder, key) for key in characters}
    appearing = list(dict.fromkeys(key for shot in shots for key in shot["characters"]))
    notes += [f"{key} appears and is not described" for key in appearing if key not in characters]
    notes += [f"{key} has no picture" for key in appearing if key in characters and not pictures[key]]
    given = [key for key in appearing if pictures.get(key)]
    given = given or [key for key in characters if pictures[key]]  # nobody of the shots has one: then anybody's
    given = given if options.references == "all" else given[:1]
    files = [pictures[key] for key in given]
    captions = [_described(key, characters[key], options.language) for key in given]
    own = None if files else own_picture(options.pictures, folder.name)
    if own is not None:
        files, captions = [own], [_caption(shots[0], characters, options)]
    source = {
        "benchmark": "vistorybench",
        "story": folder.name,
        "language": options.language,
        "fields": options.fields,
        "references": options.references,
        "characters": given,
        "shots": [shot["index"] for shot in shots],
        "own_picture": own is not None,
        "notes": notes,
    }
    continuation = tuple(_caption(shot, characters, options) for shot in shots)
    return Item(folder.name, tuple(files), tuple(captions), continuation, source)


def _shots(data: Mapping, language: str) -> tuple[list[dict], list[str]]:
    """Shots as {index, scene, plot, characters, script, camera}, and what was left out."""
    shots: list[dict] = []
    notes, seen = [], set()
    for number, shot in enumerate(data.get("Shots") or (), 1):
        missing = [name for name in FIELDS if not isinstance(shot, Mapping) or name not in shot]
        index = shot.get("index") if isinstance(shot, Mapping) else None
        if missing or not str(index).strip().isdigit():
            notes.append(f"shot {number} left out: no {missing[0] if missing else 'index'}")
        elif int(index) in seen:
            notes.append(f"shot {number} left out: index {index} is there already")
        else:
            seen.add(int(index))
            texts = {short: _text(shot[name], language) for name, short in FIELDS.items() if short != "characters"}
            names = shot["Characters Appearing"]
            names = names.get("en") if isinstance(names, Mapping) else names
            names = [names] if isinstance(names, str) else names or []
            shots.append({**texts, "index": int(index), "characters": [str(name).strip() for name in names]})
    return shots, notes


def _text(value: object, language: str) -> str:
    """A field's text in a language, or in the other one where it has only that."""
    if isinstance(value, Mapping):
        value = value.get(language) or next((text for text in value.values() if text), "")
    return value.strip() if isinstance(value, str) else ""


def _caption(shot: Mapping, characters: Mapping, options: Options) -> str:
    if options.fields == "plot":
        return shot["plot"] or shot["script"] or shot["scene"]
    described = ";".join(
        _described(key, characters[key], options.language) for key in shot["characters"] if key in characters
    )
    return "".join(f"{part};" for part in (shot["camera"], shot["plot"], shot["script"], described, shot["scene"]))


def _described(key: str, character: Mapping, language: str) -> str:
    name = str(character.get(f"name_{language}") or key).strip()
    return f"{name} is {str(character.get(f'prompt_{language}') or character.get('prompt_en') or 'shown').strip()}"


def _reference(folder: Path, key: str) -> Path | None:
    """A character's first picture; its folder may carry blanks that the key lacks, or the other way round."""
    root = folder / "image"
    folders = [path for path in root.iterdir() if path.name.strip() == key] if root.is_dir() else []
    files = [path for path in folders if path.is_dir() for path in picture_files(path)]
    return next((path for path in files if path.suffix.lower() in REFERENCE_SUFFIXES), None)
