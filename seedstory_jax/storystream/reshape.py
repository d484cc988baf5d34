"""Cut stories into chunks, and split a dataset by story."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seedstory_jax.errors import UserError
from seedstory_jax.storystream.lines import claim_jsonl, stories, write_jsonl

CHUNK = 10


def chunk(
    source: Path,
    out: Path,
    *,
    length: int = CHUNK,
    stride: int | None = None,
    rest: bool = False,
    keep_ids: bool = False,
) -> int:
    """Cut every story into pieces of `length` turns; how many were written.

    Without a stride the pieces do not overlap, as published; what is left over is dropped, as published, unless `rest`
    keeps it (two turns or more). A piece's id is "<story>/<first turn>"; `keep_ids` gives it the story's own, as the
    release does. Lists beside images and captions that are as long (the release's "orders") are cut along.
    """
    stride = length if stride is None else stride
    if length < 2 or stride < 1:
        raise UserError(f"chunks of {length} turns every {stride}: give 2 turns or more and a stride of 1 or more")
    claim_jsonl(source, out, by="chunk")

    def pieces() -> Iterator[dict[str, Any]]:
        for story, record in stories(source):
            for first in range(0, len(story), stride):
                size = min(length, len(story) - first)
                if size < length and not (rest and size >= 2):
                    break
                piece = {
                    key: value[first : first + size] if isinstance(value, list) and len(value) == len(story) else value
                    for key, value in record.items()
                }
                yield piece if keep_ids else piece | {"id": f"{story.id}/{first}"}
                if first + size >= len(story):
                    break

    return write_jsonl(out, pieces(), by="chunk")


def split(source: Path, outs: dict[Path, float], *, seed: int = 0) -> dict[Path, int]:
    """Divide stories over files by share; how many each got.

    Deterministic: stories are ranked by a hash of the seed and their id, whatever the order of lines. Pieces of one
    story ("12/0", "12/10", or the same id twice) stay together. A file with a share gets at least one story.
    Raises UserError if the shares are negative or do not sum to 1, or if there are fewer stories than files.
    """
    if any(share < 0 for share in outs.values()) or abs(sum(outs.values()) - 1) > 1e-6:
        raise UserError(f"shares {', '.join(f'{share:g}' for share in outs.values())} must be 0 or more and sum to 1")
    claim_jsonl(source, *outs, by="split")
    records = [(_whole(story.id), record) for story, record in stories(source)]
    ranked = sorted({whole for whole, _ in records}, key=lambda whole: _rank(whole, seed))
    wanted = [out for out, share in outs.items() if share > 0]
    if len(ranked) < len(wanted):
        raise UserError(f"{source} has {len(ranked)} stories, too few to divide over {len(wanted)} files")
    largest = max(outs, key=outs.get)
    place, start = {}, 0
    for out in (out for out in wanted if out != largest):
        count = max(1, round(outs[out] * len(ranked)))
        place |= dict.fromkeys(ranked[start : start + count], out)
        start += count
    parts = {out: [record for whole, record in records if place.get(whole, largest) == out] for out in outs}
    return {out: write_jsonl(out, part, by="split") for out, part in parts.items()}


def _whole(story_id: int | str) -> str:
    """The story that a piece is of."""
    return str(story_id).partition("/")[0]


def _rank(whole: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{whole}".encode()).digest()
