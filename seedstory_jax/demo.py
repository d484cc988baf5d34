"""`make demo`: train the toy, tell held-out beginnings under every policy, judge them, write out/demo/index.html.

Every step is kept on disk and passed over when it is there, so a demo that was stopped goes on.
"""

import json
import platform
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from seedstory_jax import cli
from seedstory_jax.config import load_config
from seedstory_jax.data.images import open_image
from seedstory_jax.evaluation.policy_table import PolicyTable, policy_table, records_of, to_csv, to_json, to_markdown
from seedstory_jax.evaluation.probe import score_story
from seedstory_jax.generation.policies import POLICIES
from seedstory_jax.generation.sample import Request, sample_many
from seedstory_jax.report.demo import write_demo_page
from seedstory_jax.report.page import write_text
from seedstory_jax.report.storybook import write_storybook
from seedstory_jax.system import StorySystem, load
from seedstory_jax.training.checkpoint import write_json
from seedstory_jax.training.loop import Interrupted
from seedstory_jax.training.run import train

LENGTH = 30
METRICS = ("well_formed", "scene", "all_characters", "props", "persistence", "opening_named", "opening_shown")


def main(arguments: Sequence[str]) -> int:
    """Parses the flags and runs the demo."""
    parser = cli.Parser(prog="python -m seedstory_jax.demo", description=__doc__)
    parser.add_argument("--config", default="configs/toy.py")
    parser.add_argument("--workdir", type=Path, default=Path("runs/toy"))
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    parser.add_argument("--stories", type=int, default=20, help="held-out beginnings a policy")
    parser.add_argument("--length", type=int, default=LENGTH, help="sequences a story")
    flags, overrides = parser.parse_strictly(arguments)

    clock = Clock(flags.out / "seconds.json")
    try:
        with clock.measure("training"):
            train(load_config(flags.config, overrides), flags.workdir)
    except Interrupted as stopped:
        print(stopped)
        return 0
    system = load(flags.workdir)
    requests = held_out(system, flags.stories)
    for name in POLICIES:
        with clock.measure("stories"):
            tell_all(system, name, requests, flags.out / "stories" / name, flags.length)
    with clock.measure("judging"):
        table = judge(flags.out / "stories", list(POLICIES), requests, flags.out)
    first = requests[0].name
    page = write_demo_page(
        flags.out,
        workdir=flags.workdir,
        stories={name: flags.out / "stories" / name / first for name in POLICIES},
        hero="window",
        table=table,
        facts={
            "held-out beginnings a policy": len(requests),
            "sequences a story": flags.length,
            "minutes in all": round(sum(clock.seconds.values()) / 60, 1),
            **{f"minutes of {name}": round(seconds / 60, 1) for name, seconds in clock.seconds.items()},
            "machine": f"{platform.machine()}, {cpu_count()} cores",
        },
    )
    print(to_markdown(table))
    print(f"{sum(clock.seconds.values()) / 60:.1f} minutes in all; open {page}")
    return 0


class Clock:
    """Seconds by name, kept in a file, so that a run in several pieces still knows its whole time."""

    def __init__(self, path: Path):
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def measure(self, name: str) -> "Clock":
        """As a context: adds the time inside to `name`."""
        self._name, self._start = name, time.monotonic()
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + time.monotonic() - self._start
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.seconds)


def held_out(system: StorySystem, count: int) -> list[Request]:
    """The beginnings of the first `count` validation stories."""
    dataset = system.workspace.validation
    stories = dataset.stories[:count]
    pictures = [open_image(dataset.image_path(story, 0)) for story in stories]
    features = system.encode(pictures)
    shown = [system.workspace.pixel_transform.pixels(picture) for picture in pictures]
    return [
        Request(name=str(story.id), number=number, text=story.captions[0], image_features=feature, picture=picture)
        for number, (story, feature, picture) in enumerate(zip(stories, features, shown, strict=True))
    ]


def tell_all(system: StorySystem, policy: str, requests: Sequence[Request], out: Path, length: int) -> None:
    """Tells and draws every beginning under one policy; those that are there already are passed over."""
    telling = system.telling(length=length, allow_end=False)
    draw = partial(draw_frames, system)
    with tqdm(total=len(requests), desc=f"{policy:>16}", unit="story", mininterval=1.0) as bar:

        def after(folder: Path, story: dict) -> None:
            write_storybook(folder, story)
            bar.update(1)

        sample_many(
            system.teller(policy, telling), requests, out, batch=len(requests), draw=draw, mode="generate", after=after
        )
        bar.update(len(requests) - bar.n)


def draw_frames(system: StorySystem, features: np.ndarray, stories: Sequence[int], frames: Sequence[int]) -> np.ndarray:
    """Pixels of features, noise keyed by story and frame."""
    return system.renderer.draw(features, stories, frames)


def judge(stories: Path, policies: Sequence[str], requests: Sequence[Request], out: Path) -> PolicyTable:
    """Scores every told story with the world's own probe; writes policies.{json,csv,md} and returns the table."""
    records = []
    for policy in policies:
        for request in tqdm(requests, desc=f"{'judging':>16}", unit="story", mininterval=1.0, leave=False):
            folder = stories / policy / request.name
            story = json.loads((folder / "story.json").read_text())
            captions = [frame["text"] for frame in story["frames"]]
            pictures = [np.asarray(open_image(folder / frame["image"])) for frame in story["frames"]]
            records += records_of(policy, request.name, score_story(captions, pictures))
    table = policy_table(records, metrics=METRICS)
    write_text(out / "policies.json", to_json(table))
    write_text(out / "policies.csv", to_csv(table))
    write_text(out / "policies.md", to_markdown(table))
    return table


def cpu_count() -> int:
    """Cores that this process may use."""
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    cli.tune_allocator()
    cli.run(main)
