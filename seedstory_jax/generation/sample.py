"""Stories to files: `story.json` and the frames, for one story or for a whole file of them.

Text never waits for pixels: a batch of stories is told from features alone, then its frames are drawn. A story's
folder appears under its name only when it is complete, so a run that was stopped goes on where it stopped.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from seedstory_jax.errors import UserError
from seedstory_jax.generation.compilations import Compilations
from seedstory_jax.generation.policies import Policy
from seedstory_jax.generation.story import Stories, StoryTeller
from seedstory_jax.generation.telling import Sequence as StorySequence
from seedstory_jax.models.kv_buffer import SlotFacts

Draw = Callable[[np.ndarray, Sequence[int], Sequence[int]], np.ndarray]
"""(features [n q d], story numbers [n], frame numbers [n]) -> pixels uint8 [n h w 3]; noise keyed by those numbers."""


@dataclass(frozen=True)
class Request:
    """One story that is asked for.

    Attributes:
        name: its folder's name.
        number: keys its noise, so that words and pixels depend on no batch and no order.
        text: the first caption.
        image_features: [q d] of the first image.
        picture: the first image itself, uint8 [h w 3], kept beside the drawn ones; None under text only.
        captions: of the sequences after the first, where they are given (mode visualize).
    """

    name: str
    number: int
    text: str
    image_features: np.ndarray
    picture: np.ndarray | None = None
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Told:
    """A story that was told: its sequences, and why it ended ("length" if it went all the way)."""

    request: Request
    sequences: tuple[StorySequence, ...]
    ending: str
    slots: int


def tell(
    teller: StoryTeller,
    requests: Sequence[Request],
    *,
    mode: Literal["generate", "visualize"] = "generate",
    batch: int | None = None,
) -> Iterator[Told]:
    """Tells stories together and yields each when it ends; rows up to `batch` stay empty.

    "visualize" draws the given captions and ends with the last of them; "generate" takes given captions as far as
    they go and lets the model write on.
    """
    length = teller.config.length
    rows = batch or len(requests)
    seeds = [story_seed(teller.config.seed, request.number) for request in requests] + [0] * (rows - len(requests))
    stories = Stories(teller, rows, length, seeds)
    for row in range(len(requests), rows):
        stories.end(row, "empty")
    features = np.zeros((rows, *requests[0].image_features.shape), np.float32)
    features[: len(requests)] = [request.image_features for request in requests]
    stories.read([request.text for request in requests] + [""] * (rows - len(requests)), features)
    yielded = set(range(len(requests), rows))
    for number in range(1, length + 1):
        captions: list[str | None] = [None] * rows
        for row, request in enumerate(requests):
            if number <= len(request.captions):
                captions[row] = request.captions[number - 1]
            elif mode == "visualize":
                stories.end(row, "captions")
            if number == length:
                stories.end(row, "length")
        if number < length and stories.active.any():
            stories.next(captions)
        for row, request in enumerate(requests):
            state = stories.rows[row]
            if state.ending and row not in yielded:
                yielded.add(row)
                yield Told(request, tuple(state.sequences), state.ending, stories.slots)
        if len(yielded) == rows:
            return


def sample(
    teller: StoryTeller,
    request: Request,
    out: Path,
    *,
    draw: Draw | None = None,
    mode: Literal["generate", "visualize"] = "generate",
) -> dict:
    """Tells one story, draws it unless `draw` is None, writes `out/story.json` and the frames; returns story.json."""
    (told,) = tell(teller, [request], mode=mode)
    return write_story(teller, told, Path(out), draw)


def sample_many(
    teller: StoryTeller,
    requests: Iterable[Request | Exception],
    out: Path,
    *,
    batch: int = 8,
    draw: Draw | None = None,
    mode: Literal["generate", "visualize"] = "generate",
    after: Callable[[Path, dict], None] = lambda folder, story: None,
) -> dict[str, int]:
    """Tells all requested stories, `batch` at a time, each into `out/<name>` as soon as it has ended.

    Args:
        teller: see `StoryTeller`.
        requests: read as they are needed; an exception in place of one is a story that could not be read.
        out: stories that are already there are left alone; those that fail go to `out/errors.jsonl`.
        batch: stories told at once; a last batch of fewer leaves rows empty and compiles nothing anew.
        draw: None writes text only.
        mode: see `tell`.
        after: called with each finished folder and its story.json (to write its page, say).

    Returns:
        How many were "written", "skipped" and "failed".
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    counts = {"written": 0, "skipped": 0, "failed": 0}

    def fail(name: str, fault: Exception) -> None:
        counts["failed"] += 1
        with (out / "errors.jsonl").open("a") as log:
            log.write(json.dumps({"story": name, "error": str(fault)}) + "\n")

    def wanted() -> Iterator[Request]:
        for number, request in enumerate(requests):
            if isinstance(request, Exception):
                fail(f"line {number + 1}", request)
            elif (out / request.name / "story.json").is_file():
                counts["skipped"] += 1
            else:
                fault = fault_of(teller, request)
                if fault is None:
                    yield request
                else:
                    fail(request.name, fault)

    pending = wanted()
    while together := list(islice(pending, batch)):
        for told in tell(teller, together, mode=mode, batch=batch):
            folder = out / told.request.name
            try:
                after(folder, write_story(teller, told, folder, draw))
                counts["written"] += 1
            except (ValueError, OSError) as fault:
                fail(told.request.name, fault)
    return counts


def fault_of(teller: StoryTeller, request: Request) -> UserError | None:
    """Why a request cannot be told, found before any other story depends on it."""
    tokenizer, limit = teller.tokenizer, teller.config.max_text_tokens
    try:
        if not request.name or "/" in request.name or request.name.startswith("."):
            raise UserError(f"story name {request.name!r} makes no folder: use letters and digits")
        for number, text in enumerate((request.text, *request.captions)):
            tokenizer.refuse_markup(text)
            count = len(tokenizer.next_turn(text) if number else tokenizer.first_turn(text))
            if count > limit:
                raise UserError(f"caption {number} has {count} tokens, max_text_tokens is {limit}: {text[:60]!r}")
        if not np.isfinite(request.image_features).all():
            raise UserError("the image's features are not finite")
    except UserError as fault:
        return fault
    return None


def write_story(teller: StoryTeller, told: Told, folder: Path, draw: Draw | None) -> dict:
    """Draws the frames and writes the story's folder, whole or not at all; returns story.json.

    A frame that was given keeps its picture; without one (or without `draw`) its `image` is null.
    """
    from PIL import Image

    beside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    compilations, start = Compilations(), time.perf_counter()
    drawn = [one.index for one in told.sequences if one.source != "prompt"] if draw else []
    pixels = {}
    if drawn:
        features = np.stack([told.sequences[index].predicted_image_features for index in drawn])
        pixels = dict(zip(drawn, draw(features, [told.request.number] * len(drawn), drawn), strict=True))
    render_s = max(0.0, time.perf_counter() - start - compilations.seconds)
    if draw and told.request.picture is not None:
        pixels[0] = told.request.picture

    frames = []
    for one in told.sequences:
        image = f"frame_{one.index:04d}.png" if one.index in pixels else None
        if image:
            Image.fromarray(np.asarray(pixels[one.index], np.uint8)).save(beside / image)
        kept = kept_runs(teller.policy, one.slots)
        frames.append({"index": one.index, "text": one.text, "image": image, "source": one.source, "kept": kept})
    story = {
        "policy": teller.policy_name,
        "length": teller.config.length,
        "seed": teller.config.seed,
        "ending": told.ending,
        "frames": frames,
        "timing": {
            "compile_s": round(teller.compilations.seconds, 3),
            "llm_s": [round(one.seconds / one.together, 4) for one in told.sequences],  # this story's share
            "together": [one.together for one in told.sequences],
            "render_s": round(render_s, 3),
        },
        "kv_slots": told.slots,
        "llm_calls": [one.calls for one in told.sequences],
        "compilations": teller.compilations.count,
    }
    (beside / "story.json").write_text(json.dumps(story, indent=1, ensure_ascii=False) + "\n")
    _put_in_place(beside, folder)
    return story


def kept_runs(policy: Policy, slots: SlotFacts) -> list[list]:
    """What the buffer held as runs [part, frame, tokens] in slot order; parts: text_sink, image_sink, window."""
    used = np.flatnonzero(slots.position >= 0)
    start = getattr(policy, "start", 0)
    runs: list[list] = []
    for slot in used:
        part = "window"
        if slots.pinned[slot]:
            part = "text_sink" if slots.index[slot] < start else "image_sink"
        frame = int(slots.frame[slot])
        if runs and runs[-1][:2] == [part, frame]:
            runs[-1][2] += 1
        else:
            runs.append([part, frame, 1])
    return runs


def story_seed(seed: int, number: int) -> int:
    """The seed of one story's sampling: of the run's seed and the story's number, and of nothing else."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _put_in_place(beside: Path, folder: Path) -> None:
    """Moves the new folder's files over those of an older one, story.json last; other files there are kept."""
    if not folder.exists():
        os.replace(beside, folder)
        return
    (folder / "story.json").unlink(missing_ok=True)
    for old in folder.glob("frame_*.png"):
        old.unlink()
    for file in sorted(beside.iterdir(), key=lambda path: path.name == "story.json"):
        os.replace(file, folder / file.name)
    beside.rmdir()
