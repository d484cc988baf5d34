"""MMIE (Xia et al., ICLR 2025): questions of texts and pictures, answered with both.

Read: a JSON list of `{id, question: [{text, image}], answer | gt_answer: [...]}` and `images/`. Written: `data.json`
and `images/`, which MMIE's `main.py --input_dir` takes. Its reader shows the judge three pictures at most, the
question's first, and leaves an item of more than four out.
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

MOST_PICTURES = 4  # of a question; its reader leaves out an item that shows more


def read(folder: Path, options: Options) -> Iterator[Item | Skipped]:
    """Every question with a picture; --tasks=SA,PBL,MSR takes those whose id names one of these.

    Raises UserError for a folder without data.
    """
    files = [folder] if folder.is_file() else sorted(folder.glob("*.json"))
    lists = [(file, data) for file in files if isinstance(data := read_json(file), list)]
    if not lists:
        raise UserError(f"{folder} holds no MMIE: give the folder of its JSON list and images/")
    for file, items in lists:
        for number, data in enumerate(items, 1):
            try:
                if wanted(str(data["id"]), options, ("all",)):
                    yield _item(data, file.parent, options)
            except UserError as fault:
                yield Skipped(str(data["id"]), str(fault))
            except (KeyError, TypeError, AttributeError) as error:
                yield Skipped(f"item {number} of {file.name}", f"{type(error).__name__}: {error}")


def write(exports: Sequence[Export], folder: Path, target: Target) -> None:
    """`data.json`, a dict an item, and the pictures of questions and answers."""
    rows = []
    for one in exports:
        images = iter(range(len(one.given_images)))
        question = []
        for turn in one.source["question"]:
            number = next(images, None) if turn.get("image") else None
            path = None if number is None else f"images/{one.name}-q-{number}.png"
            if path:
                save_picture(one.given_images[number], folder / path)
            question.append({"text": turn.get("text"), "image": path})
        answer = []
        for place, turn in enumerate(one.shots.values()):
            path = f"images/{one.name}-a-{place}.png" if one.pictures[turn] else None
            if path:
                save_picture(one.pictures[turn], folder / path)
            answer.append({"text": one.texts[turn], "image": path})
        row = {"id": one.source["id"], "question": question, "answer": answer, "model": target.model}
        rows.append({**row, "gt_answer": one.source["gt_answer"]})
    (folder / "images").mkdir(exist_ok=True)
    (folder / "data.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def place(target: Target, exports: Sequence[Export]) -> Path:
    """A folder a model, each an --input_dir."""
    return Path(target.model)


def _item(data: Mapping, root: Path, options: Options) -> Item:
    name = str(data["id"])
    asked = data["question"]
    parts = [(str(turn.get("text") or ""), below(root, turn["image"]) if turn.get("image") else None) for turn in asked]
    turns = given_turns(parts, name, options)
    if len(turns.pictures) > MOST_PICTURES:
        raise UserError(f"the question shows {len(turns.pictures)} pictures; MMIE leaves out more than {MOST_PICTURES}")
    truth = data.get("gt_answer") or data.get("answer") or []
    truth = [{"text": truth, "image": None}] if isinstance(truth, str) else truth
    source = {
        "benchmark": "mmie",
        "id": name,
        "outputs": len(truth),
        "question": asked,
        "gt_answer": truth or [{"text": "", "image": None}],  # its reader takes the first one's text
        "own_picture": turns.own,
    }
    return Item(name, turns.pictures, turns.captions, (), source)
