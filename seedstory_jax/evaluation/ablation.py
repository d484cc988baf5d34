"""Plan and runs of an ablation: policies and their settings on the same prompts with the same noise.

A run is one policy with its settings at one length. Its stories lie in `out/stories/<run>/<story>`, its timing in
`out/timing`; what is there is passed over, so an ablation that was stopped goes on, and one that is asked for more adds
only what is new.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax

from seedstory_jax.config import SampleConfig
from seedstory_jax.data.names import folder_name
from seedstory_jax.errors import UserError, nearest
from seedstory_jax.evaluation.bootstrap import Interval, bootstrap_mean
from seedstory_jax.evaluation.stories import StoryFolder, read_story
from seedstory_jax.files import read_json, write_json
from seedstory_jax.generation.engine import StoryEngine
from seedstory_jax.generation.flops import buffer_bytes
from seedstory_jax.generation.interface import GenerationConfig
from seedstory_jax.generation.policies import POLICIES
from seedstory_jax.generation.policy_names import NamedPolicy, parse_named, source_digest
from seedstory_jax.generation.story_files import (
    Render,
    Request,
    generate,
    prompt_digest,
    stored_prompt_digest,
    write_story,
)
from seedstory_jax.models.story_mllm import StoryMLLM

TIMED = 2  # runs of which the faster counts
SETTINGS_FILE = "ablation_settings.json"
DEFAULT_POLICIES = (
    "dense",
    "window",
    "sink",
    "sink(positions=absolute)",
    "multimodal_sink",
    "multimodal_sink(positions=absolute)",
    "window_recompute",
)
"""The paper's, and the sinks without a shift of positions (a window has no gap that a shift could close)."""
ALL_POLICIES = (*DEFAULT_POLICIES, *(name for name in POLICIES if name not in DEFAULT_POLICIES))


@dataclass(frozen=True)
class Run:
    """One policy with its settings at one length."""

    policy: NamedPolicy
    length: int

    @property
    def label(self) -> str:
        """For tables: "multimodal_sink(image_sink_cap=8)"."""
        return str(self.policy)

    @property
    def name(self) -> str:
        """The folder's name."""
        return re.sub(r"[^A-Za-z0-9]+", "-", self.label).strip("-") + f"-{self.length}"


def plan_runs(policies: Sequence[str], grids: Sequence[str], lengths: Sequence[int]) -> list[Run]:
    """All runs: every policy as it is, and every point of every grid for the policies that have its settings.

    A policy is a text for `parse_policy`, or "all". A grid is "window=4,8 x image_sink_cap=0,8"; a policy takes the
    axes that it has and does not set itself. Raises UserError for unknown policies, settings and values.
    """
    texts = [one for text in policies for one in (ALL_POLICIES if text == "all" else (text,))]
    named = list(dict.fromkeys(parse_named(text) for text in texts))
    if not named or not lengths or min(lengths) < 2:
        raise UserError(f"policies={','.join(policies)!r}, length={list(lengths)}: give one or more, lengths from 2 on")
    every = [*named, *(point for grid in grids for one in _points(named, grid) for point in one)]
    runs = [Run(policy, length) for length in dict.fromkeys(lengths) for policy in dict.fromkeys(every)]
    folders: dict[str, Run] = {}
    for run in runs:
        other = folders.setdefault(run.name, run)
        if other is not run:
            raise UserError(f"{other.label} and {run.label} would both lie in {run.name}: rename a file")
    return runs


def _points(policies: Sequence[NamedPolicy], grid: str) -> Iterator[list[NamedPolicy]]:
    """The points of a grid, for each policy that has one of its settings."""
    axes = {}
    for axis in re.split(r"\s+x\s+", grid.strip()):
        name, _, values = (part.strip() for part in axis.partition("="))
        known = sorted({setting for policy in policies for setting in policy.known})
        if name not in known:
            raise UserError(f"--grid={grid}: no policy of this table has the setting {name!r}: {nearest(name, known)}")
        axes[name] = [value.strip() for value in values.split(",") if value.strip()]
        if not axes[name]:
            raise UserError(f"--grid={grid}: {name} has no values; write --grid='{name}=4,8 x ...'")
    for policy in policies:
        free = [name for name in axes if name in policy.known and name not in dict(policy.settings)]
        if free:
            yield [
                policy.with_settings(list(zip(free, point, strict=True)))
                for point in itertools.product(*(axes[name] for name in free))
            ]


@dataclass(frozen=True)
class Setup:
    """What all runs share.

    Attributes:
        model: the story model.
        tokenizer: its tokenizer.
        generation: settings of generation; `length` is set by the run.
        sample: the config's section with window, head and tail, for policies that have them and say nothing else.
        render: renders images; None generates text only.
        identity: what must be the same when an ablation goes on in a folder: checkpoint, config, seed.
    """

    model: StoryMLLM
    tokenizer: object
    generation: GenerationConfig
    sample: SampleConfig = SampleConfig()
    render: Render | None = None
    identity: Mapping = None


def generate_runs(
    setup: Setup,
    runs: Sequence[Run],
    requests: Sequence[Request],
    out: Path,
    *,
    drawn: int | None = None,
    timed: bool = True,
    batch: int = 8,
    after: Callable[[Path, dict], None] = lambda folder, story: None,
    progress: Callable[[Run, str], None] = lambda run, what: None,
) -> None:
    """Generates what is missing of all runs.

    Args:
        setup: see `Setup`.
        runs: from `plan_runs`.
        requests: the prompts; the same for every run, with the same noise.
        out: the ablation's folder.
        drawn: only so many stories a run get pictures; None: all.
        timed: also generate the first prompt's story alone, for the seconds of Table 2.
        batch: stories generated together.
        after: called with each finished folder and its story.json.
        progress: called before each part.

    Raises UserError if the folder holds an ablation of another model or with other settings.
    """
    _agree(out, setup, runs)
    drawn = len(requests) if drawn is None else drawn
    for run in runs:
        config = replace(setup.generation, length=run.length)
        engine = StoryEngine(setup.model, setup.tokenizer, run.policy.make(setup.sample), config)
        folder = out / "stories" / run.name
        missing = _missing(folder, requests)
        with_images = {one.name for one in requests[:drawn]} if setup.render else set()
        folder.mkdir(parents=True, exist_ok=True)
        for first in range(0, len(missing), batch):
            progress(run, f"{len(missing) - first} stories")
            for story in generate(engine, missing[first : first + batch], batch=min(batch, len(requests))):
                name = story.request.name
                render = setup.render if name in with_images else None
                place = folder / folder_name(name)
                after(place, write_story(engine, story, place, render))
        timing = out / "timing" / f"{run.name}.json"
        if timed and not timing.is_file():
            progress(run, "timing")
            timing.parent.mkdir(parents=True, exist_ok=True)
            write_json(timing, time_run(engine, requests[0]))


def _missing(folder: Path, requests: Sequence[Request]) -> list[Request]:
    """Requests whose story is not in a run's folder. Raises UserError for one that is, from another prompt."""
    missing = []
    for one in requests:
        known = stored_prompt_digest(folder / folder_name(one.name))
        if known is None:
            missing.append(one)
        elif known != prompt_digest(one):
            raise UserError(f"{folder} holds story {one.name!r} from another prompt: give another --out or remove it")
    return missing


def time_run(engine: StoryEngine, request: Request) -> dict:
    """One story generated alone: the best of two runs' seconds (compilation taken out), LLM calls, slots, bytes.

    `peak_bytes` is the device's own count, and None where a device keeps none (CPUs).
    """
    device = jax.devices()[0]
    tries = []
    for _ in range(TIMED):
        (story,) = generate(engine, [request])
        tries.append(sum(turn.seconds for turn in story.turns))
    llama = engine.spec.config.llama
    dtype = engine.config.buffer_dtype or llama.dtype
    stats = device.memory_stats() or {}
    return {
        "seconds": min(tries),
        "frames": len(story.turns),
        "llm_calls": [turn.calls for turn in story.turns],
        "kv_slots": story.slots,
        "buffer_bytes": buffer_bytes(llama, 1, story.slots, dtype),
        "peak_bytes": stats.get("peak_bytes_in_use"),
        "device": device.device_kind,
    }


def read_run(run: Run, out: Path, names: Sequence[str]) -> list[StoryFolder]:
    """A run's stories, by their requests' names."""
    return [read_story(out / "stories" / run.name / folder_name(name)) for name in names]


def timing_figures(run: Run, out: Path) -> dict[str, Interval]:
    """The columns of Table 2 that a run's timing gives; empty where it was not timed."""
    path = out / "timing" / f"{run.name}.json"
    if not path.is_file():
        return {}
    timing = read_json(path)
    calls = timing["llm_calls"][1:]  # the first turn is the prompt
    return {
        "seconds": _one(timing["seconds"]),
        "llm_calls": bootstrap_mean([[count] for count in calls]),
        "kv_slots": _one(timing["kv_slots"]),
        "buffer_mb": _one(timing["buffer_bytes"] / 1e6),
        "peak_mb": _one(timing["peak_bytes"] / 1e6 if timing["peak_bytes"] else None),
    }


def _one(value: float | int | None) -> Interval:
    return Interval(None if value is None else float(value), None, None, 0 if value is None else 1)


def _agree(out: Path, setup: Setup, runs: Sequence[Run]) -> None:
    """Raises UserError if `out` was written with another model, other settings or another policy of that name.

    Else notes there what these are.
    """
    identity = json.loads(json.dumps(dict(setup.identity or {})))
    identity["window"] = setup.sample.window
    sources = {run.policy.name: digest for run in runs if (digest := source_digest(run.policy.kind))}
    path, known = out / SETTINGS_FILE, {}
    if path.is_file():
        known = read_json(path)
        differing = [key for key, value in identity.items() if known["identity"].get(key) != value]
        differing += [name for name, digest in sources.items() if known.get("policies", {}).get(name, digest) != digest]
        if differing:
            raise UserError(
                f"{out} holds an ablation with another {', '.join(differing)}: give another --out or remove it"
            )
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, {"identity": identity, "policies": known.get("policies", {}) | sources})
