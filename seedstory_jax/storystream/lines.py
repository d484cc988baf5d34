"""JSONL files in and out: bounded lines, records kept as they are, nothing half-written."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from seedstory_jax import outputs
from seedstory_jax.data.storystream import Story, StoryFault, iter_lines, jsonl_files, parse_story, whole_line
from seedstory_jax.errors import UserError


def stories(source: Path) -> Iterator[tuple[Story, dict[str, Any]]]:
    """(story, its record with whatever else it holds) of every line of a file or a folder's files.

    Raises UserError at the first line that is none, with the command that sorts such lines out.
    """
    for file in jsonl_files(source):
        for number, line in iter_lines(file):
            try:
                yield parse_story(whole_line(line)), json.loads(line)
            except StoryFault as fault:
                raise UserError(
                    f"{file}, line {number}: {fault}; `seedstory data validate` writes a clean file"
                ) from None


def claim_jsonl(source: Path, *outs: Path, by: str) -> None:
    """Raises UserError if one of `outs` is a file that is read, or will be read with the folder `source`."""
    outputs.claim(*outs, by=by, inputs=jsonl_files(source))
    for out in outs:
        if source.is_dir() and out.suffix == ".jsonl" and out.parent.resolve() == source.resolve():
            raise UserError(f"{out} would lie among the stories of {source} and be read with them: name another folder")


@contextmanager
def written_whole(path: Path, *, by: str | None) -> Iterator[TextIO]:
    """A text file to write that takes its name only when the block ends well; see `outputs.written_whole`."""
    with outputs.written_whole(path, by=by) as beside, beside.open("w", encoding="utf-8") as file:
        yield file


def write_jsonl(path: Path, records: Iterable[dict[str, Any]], *, by: str = "storystream") -> int:
    """Write records to a JSONL file as command `by`, whole or not at all; how many."""
    count = 0
    with written_whole(path, by=by) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count
