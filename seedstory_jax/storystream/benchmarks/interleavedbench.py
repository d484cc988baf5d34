"""InterleavedBench (Liu et al., EMNLP 2024): texts and pictures in turn, judged in five aspects.

Read: `interleaved_bench.json`, a list of `{id, image: [...], conversations: [{value: "... <image> ..."}], task_name}`,
with its pictures below `zipped_images/` or beside it. Written: `predictions.json` in the data's own form, the answer's
`value` being our texts with an `<image>` where a picture is, and `image` the question's pictures, then ours.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from seedstory_jax.errors import UserError
from seedstory_jax.storystream.benchmarks.exports import Export, Target, save_picture
from seedstory_jax.storystream.benchmarks.story_set import (
    Item,
    Options,
    Skipped,
    below,
    given_turns,
    read_json,
    wanted,
)

DATA = "interleaved_bench.json"
TASKS = ("story",)  # visual story completion and the like
MARK = "<image>"


def read(folder: Path, options: Options) -> Iterator[Item | Skipped]:
    """Items of the story tasks: a given turn ends with each `<image>` of the question.

    Raises UserError for a folder without data.
    """
    file = folder if folder.is_file() else folder / DATA
    if not file.is_file():
        raise UserError(f"{folder} holds no InterleavedBench: give the folder of {DATA}")
    for number, data in enumerate(read_json(file, list)):
        name = f"{number:04d}"  # ids repeat over the data sets that it was made of
        try:
            if wanted(str(data["task_name"]), options, TASKS):
                yield _item(name, data, file.parent, options)
        except UserError as fault:
            yield Skipped(name, str(fault))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            yield Skipped(name, f"{type(error).__name__}: {error}")


def write(exports: Sequence[Export], folder: Path, target: Target) -> None:
    """`predictions.json` and `images/`."""
    rows = []
    for one in exports:
        item = dict(one.source["item"])
        images = [f"images/{one.name}-q-{k}.png" for k in range(len(one.given_images))]
        for path, file in zip(images, one.given_images, strict=True):
            save_picture(file, folder / path)
        value = []
        for place, turn in enumerate(one.shots.values()):
            value.append(one.texts[turn])
            if one.pictures[turn]:
                images.append(f"images/{one.name}-o-{place}.png")
                save_picture(one.pictures[turn], folder / images[-1])
                value.append(MARK)
        answer = {**item.pop("answer"), "value": " ".join(value)}
        conversations = [item.pop("asked"), answer]
        rows.append({**item, "image": images, "conversations": conversations, "model": target.model})
    text = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    (folder / "predictions.json").write_text(text, encoding="utf-8")


def place(target: Target, exports: Sequence[Export]) -> Path:
    """A folder a model."""
    return Path(target.model)


def _item(name: str, data: Mapping, root: Path, options: Options) -> Item:
    asked, *rest = data["conversations"]
    *texts, tail = asked["value"].split(MARK)
    given = data["image"][: len(texts)]
    if len(given) < len(texts):
        raise UserError(f"the question has {len(texts)} marks {MARK} but {len(given)} pictures")
    base = root / "zipped_images" if (root / "zipped_images").is_dir() else root
    parts = [(text.lstrip(". "), below(base, path)) for text, path in zip(texts, given, strict=True)]
    turns = given_turns([*parts, (tail.lstrip(". "), None)], name, options)
    answer = dict(rest[0]) if rest else {"from": "gpt", "value": ""}
    kept = {key: value for key, value in data.items() if key not in ("conversations", "image")}
    source = {
        "benchmark": "interleavedbench",
        "task": data["task_name"],
        "outputs": answer.get("value", "").count(MARK) or max(0, len(data["image"]) - len(given)),
        "item": {**kept, "asked": asked, "answer": answer},
        "own_picture": turns.own,
    }
    return Item(name, turns.pictures, turns.captions, (), source)
