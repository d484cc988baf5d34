"""Plan and runs of an ablation: policies and their settings on the same prompts with the same noise.

A run is one variant at one length. Its stories lie in `out/stories/<run>/<story>`, its timing in `out/timing`; what is
there is passed over, so an ablation that was stopped goes on, and one that is asked for more adds only what is new.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import jax

from seedstory_jax.config import nearest
from seedstory_jax.data.names import folder_name
from seedstory_jax.errors import UserError
from seedstory_jax.evaluation.bootstrap import Interval, bootstrap_mean
from seedstory_jax.evaluation.stories import StoryFolder, read_story
from seedstory_jax.files import read_json, write_json
from seedstory_jax.generation.engine import StoryEngine
from seedstory_jax.generation.flops import buffer_bytes
from seedstory_jax.generation.interface import GenerationConfig
from seedstory_jax.generation.policies import POLICIES, Policy, make_policy
from seedstory_jax.generation.story_files import (
    Render,
    Request,
    generate,
    prompt_digest,
    stored_prompt_digest,
    write_story,
)
from seedstory_jax.models.story_mllm import StoryMLLM

SWEEPS = ("image_head", "image_tail", "start", "window", "cap", "positions")
TIMED = 2  # runs of which the faster counts
SETTINGS_FILE = "ablation_settings.json"


@dataclass(frozen=True)
class Variant:
    """A policy with settings that differ from the others': (name, value) pairs of `SWEEPS`."""

    policy: str
    settings: tuple[tuple[str, int | str], ...] = ()

    @property
    def name(self) -> str:
        """For tables: "multimodal_sink image_head=4"."""
        return " ".join([self.policy, *(f"{name}={value}" for name, value in self.settings)])

    def make(self, **defaults) -> Policy:
        """The policy; `defaults` hold where the variant says nothing and the policy has such a setting."""
        known = {field.name for field in fields(POLICIES[self.policy])}
        arguments = {name: value for name, value in defaults.items() if name in known}
        for name, value in self.settings:
            arguments |= _setting(name, value)
        return make_policy(self.policy, **arguments)


@dataclass(frozen=True)
class Run:
    """One variant at one length."""

    variant: Variant
    length: int

    @property
    def name(self) -> str:
        """The folder's name."""
        return re.sub(r"[^A-Za-z0-9]+", "-", self.variant.name).strip("-") + f"-{self.length}"


def plan_runs(policies: Sequence[str], sweeps: Sequence[str], lengths: Sequence[int]) -> list[Run]:
    """All runs: every policy as it is, and every value of every sweep for the policies that have the setting.

    A sweep is "image_head=0,4,8". Raises UserError for unknown policies, settings and values.
    """
    for policy in policies:
        if policy not in POLICIES:
            raise UserError(f"unknown policy {policy!r}: {nearest(policy, list(POLICIES))}")
    if not policies or not lengths or min(lengths) < 2:
        raise UserError(f"policies={','.join(policies)!r}, length={list(lengths)}: give one or more, lengths from 2 on")
    variants = [Variant(policy) for policy in dict.fromkeys(policies)]
    for sweep in sweeps:
        name, equals, values = sweep.partition("=")
        if name not in SWEEPS:
            raise UserError(f"unknown sweep {name!r}: {nearest(name, SWEEPS)}")
        if not equals or not values:
            raise UserError(f"--sweep={sweep} has no values: write --sweep={name}=0,4,8")
        wanted = [_value(name, value) for value in values.split(",")]
        field = next(iter(_setting(name, wanted[0])))
        able = [policy for policy in policies if field in {f.name for f in fields(POLICIES[policy])}]
        if not able:
            raise UserError(f"no policy of {', '.join(policies)} has the setting {name!r}; leave the sweep out")
        variants += [Variant(policy, ((name, value),)) for policy in able for value in wanted]
    return [Run(variant, length) for length in dict.fromkeys(lengths) for variant in dict.fromkeys(variants)]


def _value(name: str, text: str) -> int | str:
    if name == "positions":
        if text not in ("slot", "absolute"):
            raise UserError(f"--sweep=positions={text}: choose slot or absolute")
        return text
    if not text.strip().isdigit():
        raise UserError(f"--sweep={name}={text}: values are numbers of tokens (or frames), 0 or more")
    return int(text)


def _setting(name: str, value: int | str) -> dict:
    """A sweep's value as settings of a policy. An image's head or tail of 0 keeps nothing around that border."""
    if name == "image_head":
        return {"head": (4, value) if value else (0, 0)}
    if name == "image_tail":
        return {"tail": (value, 4) if value else (0, 0)}
    return {"image_sink_cap" if name == "cap" else name: value}


@dataclass(frozen=True)
class Setup:
    """What all runs share.

    Attributes:
        model: the story model.
        tokenizer: its tokenizer.
        generation: settings of generation; `length` is set by the run.
        window, head, tail: of policies that have them, where no sweep says otherwise.
        render: renders images; None generates text only.
        identity: what must be the same when an ablation goes on in a folder: checkpoint, config, seed.
    """

    model: StoryMLLM
    tokenizer: object
    generation: GenerationConfig
    window: int = 8
    head: tuple[int, ...] = (4, 8)
    tail: tuple[int, ...] = (8, 4)
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
    _agree(out, setup)
    drawn = len(requests) if drawn is None else drawn
    for run in runs:
        config = replace(setup.generation, length=run.length)
        policy = run.variant.make(window=setup.window, head=setup.head, tail=setup.tail)
        engine = StoryEngine(setup.model, setup.tokenizer, policy, config)
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


def _agree(out: Path, setup: Setup) -> None:
    """Raises UserError if `out` was written with another model or other settings; else notes them there."""
    asked = json.loads(json.dumps({"identity": dict(setup.identity or {}), "window": setup.window}))
    path = out / SETTINGS_FILE
    if path.is_file():
        known = read_json(path)
        differing = [key for key in asked["identity"] if known["identity"].get(key) != asked["identity"][key]]
        differing += ["window"] if known["window"] != asked["window"] else []
        if differing:
            raise UserError(
                f"{out} holds an ablation with another {', '.join(differing)}: give another --out or remove it"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, asked)
