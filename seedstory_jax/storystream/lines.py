"""JSONL files in and out: bounded lines, records kept as they are, nothing half-written."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from seedstory_jax.data.storystream import Story, StoryFault, jsonl_files, parse_story
from seedstory_jax.errors import UserError

MAX_LINE = 16 * 1024 * 1024


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, line) of every line that is not blank; None for one longer than 16 MiB, which is skipped over."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE)
                yield number, None
            elif line.strip():
                yield number, line


def stories(source: Path) -> Iterator[tuple[Story, dict[str, Any]]]:
    """(story, its record with whatever else it holds) of every line of a file or a folder's files.

    Raises UserError at the first line that is none, with the command that sorts such lines out.
    """
    for file in jsonl_files(source):
        for number, line in numbered_lines(file):
            try:
                if line is None:
                    raise StoryFault("longer than 16 MiB")
                yield parse_story(line), json.loads(line)
            except StoryFault as fault:
                raise UserError(
                    f"{file}, line {number}: {fault}; "
                    "`python -m seedstory_jax.storystream validate` writes a clean file"
                ) from None


@contextmanager
def written_whole(path: Path) -> Iterator[TextIO]:
    """A text file to write that takes its name only when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            yield file
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Write records to a JSONL file, whole or not at all; how many."""
    count = 0
    with written_whole(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count
