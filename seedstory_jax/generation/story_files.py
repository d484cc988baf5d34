"""Story folders: `story.json` and images, for one story or for a whole file of them.

Text never waits for pixels: a batch of stories is generated from features alone, then its images are rendered. A
story's folder appears under its name only when it is complete, so a run that was stopped goes on where it stopped.
"""

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from seedstory_jax import outputs
from seedstory_jax.data.names import folder_name
from seedstory_jax.errors import UserError
from seedstory_jax.generation.compile_stats import Compilations
from seedstory_jax.generation.engine import StoryEngine, StorySession
from seedstory_jax.generation.interface import Turn
from seedstory_jax.generation.policies import Policy, Sink
from seedstory_jax.models.kv_buffer import SlotMetadata

SETTINGS_FILE = "sample_settings.json"

Render = Callable[[np.ndarray, Sequence[int], Sequence[int]], np.ndarray]
"""(features [n q d], story numbers [n], turn numbers [n]) -> images uint8 [n h w 3]; noise keyed by those numbers."""


@dataclass(frozen=True)
class GivenTurn:
    """A turn that is given whole.

    Attributes:
        text: its caption.
        image_features: [q d].
        image: uint8 [h w 3]; None for text only.
        image_digest: of its pixels (`data.images.digest`).
    """

    text: str
    image_features: np.ndarray
    image: np.ndarray | None = None
    image_digest: str = ""


@dataclass(frozen=True)
class Request:
    """One story to be generated.

    Attributes:
        name: the story's id; `folder_name` of it names its folder.
        number: keys its noise, so that words and pixels depend on no batch and no order.
        text: the first caption.
        image_features: [q d] of the first image.
        image: the first image itself, uint8 [h w 3], stored with the rendered ones; None for text only.
        captions: of the turns after the given ones, where they are known (mode visualize).
        image_digest: of the first image's pixels (`data.images.digest`); tells a restart whether it is the same story.
        given: turns given after the first, images of further characters for example.
    """

    name: str
    number: int
    text: str
    image_features: np.ndarray
    image: np.ndarray | None = None
    captions: tuple[str, ...] = ()
    image_digest: str = ""
    given: tuple[GivenTurn, ...] = ()

    @classmethod
    def of(cls, name: str, number: int, turns: Sequence[GivenTurn], captions: Sequence[str] = ()) -> "Request":
        """A request whose first turns are given, one or more."""
        first, *others = turns
        return cls(
            name,
            number,
            first.text,
            first.image_features,
            image=first.image,
            captions=tuple(captions),
            image_digest=first.image_digest,
            given=tuple(others),
        )


@dataclass(frozen=True)
class GeneratedStory:
    """A story's turns, and why it ended ("length" if it went all the way)."""

    request: Request
    turns: tuple[Turn, ...]
    ending: str
    slots: int


def generate(
    engine: StoryEngine,
    requests: Sequence[Request],
    *,
    mode: Literal["generate", "visualize"] = "generate",
    batch: int | None = None,
) -> Iterator[GeneratedStory]:
    """Generates stories together and yields each when it ends; rows up to `batch` stay empty.

    "visualize" predicts images for the given captions and ends with the last of them; "generate" takes given captions
    as far as they go and lets the model write on. Given turns count as part of the length.
    """
    length = engine.config.length
    rows = batch or len(requests)
    seeds = [story_seed(engine.config.seed, request.number) for request in requests] + [0] * (rows - len(requests))
    session = StorySession(engine, rows, length, seeds)
    for row in range(len(requests), rows):
        session.end(row, "empty")
    features = np.zeros((rows, *requests[0].image_features.shape), np.float32)
    features[: len(requests)] = [request.image_features for request in requests]
    session.append([request.text for request in requests] + [""] * (rows - len(requests)), features)
    for place in range(max((len(request.given) for request in requests), default=0)):
        turns = [request.given[place] if place < len(request.given) else None for request in requests]
        for row, turn in enumerate(turns):
            features[row] = 0 if turn is None else turn.image_features
        texts = [turn.text if turn else "" for turn in turns] + [""] * (rows - len(requests))
        session.append(texts, features, [turn is not None for turn in turns] + [False] * (rows - len(requests)))
    yielded = set(range(len(requests), rows))
    while len(yielded) < rows:
        captions: list[str | None] = [None] * rows
        for row, request in enumerate(requests):
            turn = len(session.rows[row].turns)
            place = turn - 1 - len(request.given)
            if place < len(request.captions):
                captions[row] = request.captions[place]
            elif mode == "visualize":
                session.end(row, "captions")
            if turn == length:
                session.end(row, "length")
        if session.active.any():
            session.next(captions)
        for row, request in enumerate(requests):
            state = session.rows[row]
            if state.ending and row not in yielded:
                yielded.add(row)
                yield GeneratedStory(request, tuple(state.turns), state.ending, session.slots)


def write_one(
    engine: StoryEngine,
    request: Request,
    out: Path,
    *,
    render: Render | None = None,
    mode: Literal["generate", "visualize"] = "generate",
) -> dict:
    """Generates one story, renders it if `render` is given, writes `out/story.json` and images; returns story.json."""
    (story,) = generate(engine, [request], mode=mode)
    return write_story(engine, story, Path(out), render)


def write_many(
    engine: StoryEngine,
    requests: Iterable[Request | Exception],
    out: Path,
    *,
    identity: Mapping[str, Any] | None = None,
    batch: int = 8,
    render: Render | None = None,
    mode: Literal["generate", "visualize"] = "generate",
    after: Callable[[Path, dict], None] = lambda folder, story: None,
) -> dict[str, int]:
    """Generates all requested stories, `batch` at a time, each into `out/<name>` as soon as it has ended.

    Args:
        engine: see `StoryEngine`.
        requests: read as they are needed; an exception in place of one is a story that could not be read.
        out: stories that are already there are left alone; those that fail go to `out/errors.jsonl`. A story whose id
            an earlier one has fails, and so does one that is there from another prompt.
        identity: what else shapes the stories: weights, seed and steps of rendering.
        batch: stories generated at once; a last batch of fewer leaves rows empty and compiles nothing anew.
        render: None writes text only.
        mode: see `generate`.
        after: called with each finished folder and its story.json (to write its page, say).

    Returns:
        How many were "written", "skipped" and "failed".

    Raises UserError, before anything is generated, if the stories in `out` were shaped by anything else.
    """
    out = Path(out)
    outputs.agree(out, SETTINGS_FILE, {**settings_of(engine, mode), **(identity or {})}, by="sample")
    seen: set[str] = set()
    counts = {"written": 0, "skipped": 0, "failed": 0}

    def fail(name: str, fault: Exception) -> None:
        counts["failed"] += 1
        with (out / "errors.jsonl").open("a") as log:
            log.write(json.dumps({"story": name, "error": str(fault)}) + "\n")

    def wanted() -> Iterator[Request]:
        for number, request in enumerate(requests):
            if isinstance(request, Exception):
                fail(f"line {number + 1}", request)
            elif request.name in seen:
                fail(request.name, UserError(f"the id {request.name!r} stands more than once: ids must differ"))
            elif (known := stored_prompt_digest(out / folder_name(request.name))) is not None:
                seen.add(request.name)
                if known == prompt_digest(request):
                    counts["skipped"] += 1
                else:
                    fail(request.name, UserError(f"{out} holds its story from another prompt: give another --out"))
            else:
                seen.add(request.name)
                fault = fault_of(engine, request)
                if fault is None:
                    yield request
                else:
                    fail(request.name, fault)

    pending = wanted()
    while together := list(islice(pending, batch)):
        for story in generate(engine, together, mode=mode, batch=batch):
            folder = out / folder_name(story.request.name)
            try:
                after(folder, write_story(engine, story, folder, render))
                counts["written"] += 1
            except (ValueError, OSError) as fault:
                fail(story.request.name, fault)
    return counts


def fault_of(engine: StoryEngine, request: Request) -> UserError | None:
    """Reason why a request cannot be generated, found before any other story depends on it."""
    tokenizer, limit = engine.tokenizer, engine.config.max_text_tokens
    try:
        given = 1 + len(request.given)
        if given > engine.config.length:
            raise UserError(f"{given} turns are given, more than length={engine.config.length}: raise --length")
        for number, text in enumerate((request.text, *(turn.text for turn in request.given), *request.captions)):
            tokenizer.refuse_markup(text)
            count = len(tokenizer.next_turn(text) if number else tokenizer.first_turn(text))
            if count > limit:
                raise UserError(f"caption {number} has {count} tokens, max_text_tokens is {limit}: {text[:60]!r}")
        for features in (request.image_features, *(turn.image_features for turn in request.given)):
            if not np.isfinite(features).all():
                raise UserError("the image's features are not finite")
    except UserError as fault:
        return fault
    return None


def write_story(engine: StoryEngine, story: GeneratedStory, folder: Path, render: Render | None) -> dict:
    """Renders the images and writes the story's folder, whole or not at all; returns story.json.

    A prompt keeps its own image; without one (or without `render`) its `image` is null. Only files that were written
    there before are replaced or removed; UserError for others in the way.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".story.", suffix=".partial", dir=folder.parent))
    try:
        return _write_parts(engine, story, partial, folder, render)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_parts(
    engine: StoryEngine, story: GeneratedStory, partial: Path, folder: Path, render: Render | None
) -> dict:
    from PIL import Image

    compilations, start = Compilations(), time.perf_counter()
    indices = [turn.index for turn in story.turns if turn.source != "prompt"] if render else []
    pixels = {}
    if indices:
        features = np.stack([story.turns[index].predicted_image_features for index in indices])
        pixels = dict(zip(indices, render(features, [story.request.number] * len(indices), indices), strict=True))
    render_s = max(0.0, time.perf_counter() - start - compilations.seconds)
    if render:
        given = (story.request.image, *(turn.image for turn in story.request.given))
        pixels |= {index: image for index, image in enumerate(given) if image is not None}

    frames = []
    for turn in story.turns:
        image = f"frame_{turn.index:04d}.png" if turn.index in pixels else None
        if image:
            Image.fromarray(np.asarray(pixels[turn.index], np.uint8)).save(partial / image)
        kept = kept_runs(engine.policy, turn.slots)
        frames.append({"index": turn.index, "text": turn.text, "image": image, "source": turn.source, "kept": kept})
    content = {
        "id": story.request.name,
        "beginning": prompt_digest(story.request),
        "policy": engine.policy_name,
        "length": engine.config.length,
        "seed": engine.config.seed,
        "ending": story.ending,
        "frames": frames,
        "timing": {
            "compile_s": round(engine.compilations.seconds, 3),
            "llm_s": [round(turn.seconds / turn.together, 4) for turn in story.turns],  # this story's share
            "together": [turn.together for turn in story.turns],
            "render_s": round(render_s, 3),
        },
        "kv_slots": story.slots,
        "llm_calls": [turn.calls for turn in story.turns],
        "compilations": engine.compilations.count,
    }
    (partial / "story.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.chmod(0o755)  # mkdtemp's own is private
    outputs.put_in_place(partial, folder, by="sample", last="story.json")
    return content


def settings_of(engine: StoryEngine, mode: str) -> dict[str, Any]:
    """What shapes stories besides prompts and weights: the policy, the generation settings, the mode."""
    return {"policy": repr(engine.policy), "generation": asdict(engine.config), "mode": mode}


def prompt_digest(request: Request) -> str:
    """A digest of a story's prompt: its texts, its number (which keys the noise) and the first image."""
    given = [[turn.text, turn.image_digest] for turn in request.given]
    prompt = [request.number, request.text, request.captions, request.image_digest, *given]
    return hashlib.sha256(json.dumps(prompt).encode()).hexdigest()[:16]


def stored_prompt_digest(folder: Path) -> str | None:
    """The prompt's digest of the story in a folder; "" if it does not say, None if there is no story."""
    try:
        return str(json.loads((folder / "story.json").read_text(encoding="utf-8")).get("beginning", ""))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError):
        return ""


def kept_runs(policy: Policy, slots: SlotMetadata) -> list[list]:
    """Content of the buffer as runs [part, turn, tokens] in slot order; parts: text_sink, image_sink, window."""
    used = np.flatnonzero(slots.position >= 0)
    start = policy.start if isinstance(policy, Sink) else 0
    runs: list[list] = []
    for slot in used:
        part = "window"
        if slots.is_sink[slot]:
            part = "text_sink" if slots.story_index[slot] < start else "image_sink"
        turn = int(slots.turn[slot])
        if runs and runs[-1][:2] == [part, turn]:
            runs[-1][2] += 1
        else:
            runs.append([part, turn, 1])
    return runs


def story_seed(seed: int, number: int) -> int:
    """Seed of one story's sampling: a function of the run's seed and the story's number alone."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
