"""OpenING (Zhou et al., CVPR 2025): open-ended texts and pictures in turn; 110 of its test items are stories.

Read: `test_data.jsonl` (or dev_data.jsonl) and `images/`. Written: `<model>_output/<uid>.json` with its pictures
`<uid>-o-<i>.jpg` beside it, the input word for word as the data has it (the judges compare it).
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from seedstory_jax.data.storystream import iter_lines
from seedstory_jax.errors import UserError
from seedstory_jax.storystream.benchmarks.exports import Export, Target, save_picture
from seedstory_jax.storystream.benchmarks.story_set import Item, Options, Skipped, below, given_turns, wanted

TASKS = ("Storybook Completion", "Story Writ", "Fiction Writing")  # the data spells it "Story Writting"
BEGIN = re.compile(r"^.*?<BEGIN>", re.DOTALL)  # what stands before it asks for a task and is no part of the story


def read(folder: Path, options: Options) -> Iterator[Item | Skipped]:
    """Items whose task is a story's: their pictures with texts are the given turns.

    A text without a picture is put before the text of the next picture. Raises UserError for a folder without data.
    """
    files = [folder] if folder.is_file() else sorted(folder.glob("*.jsonl"))
    if not files:
        raise UserError(f"{folder} holds no OpenING: give the folder of test_data.jsonl and images/")
    for file in files:
        for number, line in iter_lines(file):
            try:
                data = json.loads(line or b"")
                task = str(data["subtask_name"])
                if wanted(task, options, TASKS):
                    yield _item(data, file.parent, options)
            except UserError as fault:
                yield Skipped(uid_of(data), str(fault))
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                yield Skipped(f"line {number}", f"{type(error).__name__}: {error}")


def write(exports: Sequence[Export], folder: Path, target: Target) -> None:
    """An item's JSON with its own keys and our output, and a JPEG a picture."""
    for one in exports:
        item, output = dict(one.source["item"]), []
        for place, turn in enumerate(one.shots.values()):
            name = f"{one.source['uid']}-o-{place}.jpg" if one.pictures[turn] else None
            if name:
                save_picture(one.pictures[turn], folder / name)
            output.append({"text": one.texts[turn], "image": name})
        item["conversations"] = [{"input": item.pop("input")}, {"output": output}]
        path = folder / f"{one.source['uid']}.json"
        path.write_text(json.dumps(item, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def place(target: Target, exports: Sequence[Export]) -> Path:
    """The folder of one model's outputs."""
    return Path(f"{target.model}_output")


def uid_of(data: Mapping) -> str:
    """An item's number as the judges build it: two digits of task, two of subtask, three of the item."""
    return f"{int(data['meta_task_id']):02}{int(data['subtask_id']):02}{int(data['data_id']):03}"


def _item(data: Mapping, root: Path, options: Options) -> Item:
    uid = uid_of(data)
    given = data["conversations"][0]["input"]
    expected = data["conversations"][1].get("output") or () if len(data["conversations"]) > 1 else ()
    parts = [
        (BEGIN.sub("", str(turn.get("text") or "")), below(root, turn["image"]) if turn.get("image") else None)
        for turn in given
    ]
    turns = given_turns(parts, uid, options)
    source = {
        "benchmark": "opening",
        "uid": uid,
        "task": data["subtask_name"],
        "outputs": len(expected),
        "item": {**{key: value for key, value in data.items() if key != "conversations"}, "input": given},
        "own_picture": turns.own,
    }
    return Item(uid, turns.pictures, turns.captions, (), source)
