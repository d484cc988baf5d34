"""A folder of tales in StoryStream's layout, with the record that captions are scored by.

DIR/train.jsonl      pieces of ten turns, as the published rows are cut
DIR/val.jsonl        whole tales, held out
DIR/images/...       PNG
DIR/facts/*.json     the tales' records: {"id", "tale"} of every whole tale, in the order of the files
DIR/world.json       what was asked for
"""

import dataclasses
import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seedstory_jax.config import from_dict, nearest
from seedstory_jax.errors import UserError
from seedstory_jax.files import atomic_folder
from seedstory_jax.toy.tales.brush import UNITS
from seedstory_jax.toy.tales.facts import SERIES, Question, Tale, Turn
from seedstory_jax.toy.tales.language import caption_of
from seedstory_jax.toy.tales.paint import paint
from seedstory_jax.toy.tales.plot import CHUNK, MIN_LENGTH, make_tale

VERSION = 1
SPLITS = ("train", "val")
LEAST_SIZE = 128  # StoryStream's own filter drops smaller pictures


@dataclasses.dataclass(frozen=True)
class World:
    """What a folder of tales holds; the same values give the same bytes.

    Attributes:
        series: "woods" or "harbour".
        stories, held_out: whole tales in train.jsonl (as pieces of ten turns) and val.jsonl.
        length: turns of a tale.
        size: side of the pictures in pixels.
    """

    series: str = "woods"
    stories: int = 400
    held_out: int = 60
    length: int = 30
    size: int = UNITS
    seed: int = 0

    def __post_init__(self):
        if self.series not in SERIES:
            raise UserError(f"series is {self.series!r}: {nearest(self.series, list(SERIES))}")
        if min(self.stories, self.held_out) < 0:
            raise UserError(f"a world cannot have {min(self.stories, self.held_out)} stories; give 0 or more")
        if self.length < MIN_LENGTH:
            raise UserError(f"a tale of {self.length} turns is too short for its plot; the least is {MIN_LENGTH}")
        if self.size < LEAST_SIZE:
            raise UserError(f"size is {self.size} pixels; StoryStream's filter wants {LEAST_SIZE} at least")


def told(world: World, split: str, number: int) -> tuple[int, Tale, list[str]]:
    """(id, record, captions) of one tale. Tales to train on ask for nothing that a row of ten turns cannot hold."""
    seed = [world.seed, list(SERIES).index(world.series), SPLITS.index(split), number]
    rng = np.random.default_rng(seed)
    tale = make_tale(rng, world.series, world.length, within_rows=split == "train")
    identity = seed[1] * 100_000 + seed[2] * 50_000 + number
    return identity, tale, [caption_of(tale, turn, rng) for turn in tale.turns]


def build(folder: Path, world: World, processes: int = 2) -> Path:
    """Writes the world into `folder`, beside first; one that already holds this very world is left as it is.

    Raises UserError if the folder holds something else.
    """
    about = {**dataclasses.asdict(world), "version": VERSION}
    if folder.exists():
        known = folder / "world.json"
        if known.is_file() and json.loads(known.read_text()) == about:
            return folder
        raise UserError(f"{folder} exists and is not the world asked for: remove it or name another folder")
    with atomic_folder(folder) as beside:
        (beside / "facts").mkdir()
        counts = {"train": world.stories, "val": world.held_out}
        jobs = [(beside, world, split, number) for split in SPLITS for number in range(counts[split])]
        if processes > 1 and len(jobs) >= 32:  # fewer are written sooner than processes start
            with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
                written = list(pool.map(_write, jobs, chunksize=4))
        else:
            written = [_write(job) for job in jobs]
        for split in SPLITS:
            own = [result for job, result in zip(jobs, written, strict=True) if job[2] == split]
            (beside / f"{split}.jsonl").write_text("".join(line for lines, _ in own for line in lines))
            (beside / "facts" / f"{split}.json").write_text(json.dumps([record for _, record in own]) + "\n")
        (beside / "world.json").write_text(json.dumps(about) + "\n")
    return folder


def _write(job: tuple[Path, World, str, int]) -> tuple[list[str], dict[str, Any]]:
    folder, world, split, number = job
    identity, tale, captions = told(world, split, number)
    place = Path("images") / f"{identity:06d}"
    os.makedirs(folder / place)
    images = []
    for turn in tale.turns:
        images.append(f"{place.as_posix()}/{turn.number:03d}.png")
        Image.fromarray(paint(tale, turn, world.size)).save(folder / images[-1], "PNG")
    pieces = [slice(None)]
    if split == "train":
        # A rest of one turn is no row: nothing in it comes after anything.
        pieces = [slice(first, first + CHUNK) for first in range(0, world.length - 1, CHUNK)]
    lines = [
        {
            "id": identity * 100 + index if split == "train" else identity,
            "images": images[piece],
            "captions": captions[piece],
        }
        for index, piece in enumerate(pieces)
    ]
    record = {"id": identity, "tale": dataclasses.asdict(tale)}
    return [json.dumps(line, ensure_ascii=False) + "\n" for line in lines], record


def read_tales(folder: Path, split: str = "val") -> dict[int, Tale]:
    """The records of a folder by id. Raises UserError if there are none."""
    file = folder / "facts" / f"{split}.json"
    if not file.is_file():
        raise UserError(f"{folder} has no {file.relative_to(folder)}: it is no folder of tales")
    return {each["id"]: tale_from_json(each["tale"]) for each in json.loads(file.read_text())}


def tale_from_json(values: dict[str, Any]) -> Tale:
    """A tale from the dict that `dataclasses.asdict` made and JSON kept."""

    def pairs(rows):
        return tuple((name, value) for name, value in rows)

    turns = tuple(
        Turn(
            **{
                **turn,
                "cast": pairs(turn["cast"]),
                "returns": pairs(turn["returns"]),
                "question": from_dict(Question, turn["question"]) if turn["question"] else None,
            }
        )
        for turn in values["turns"]
    )
    return Tale(**{**values, "scarves": pairs(values["scarves"]), "turns": turns})
