"""`make demo`: train the toy, then ablate its policies on held-out beginnings, and write out/demo/index.html.

Every step is kept on disk and passed over when it is there, so a demo that was stopped goes on.
"""

import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from seedstory_jax import cli
from seedstory_jax.ablate import generate_ablation, write_ablation
from seedstory_jax.config import Config, load_config
from seedstory_jax.data.names import folder_name
from seedstory_jax.evaluation.ablation import plan_runs
from seedstory_jax.evaluation.measure import Tools
from seedstory_jax.evaluation.policy_table import policy_table, to_markdown
from seedstory_jax.evaluation.prompts import prompts_of, true_stories
from seedstory_jax.files import write_json
from seedstory_jax.generation.policies import PUBLISHED
from seedstory_jax.pipeline import load
from seedstory_jax.report.demo_page import curve_plot, write_demo_page
from seedstory_jax.report.figures_page import thirds
from seedstory_jax.report.page import write_text
from seedstory_jax.training.loop import Interrupted
from seedstory_jax.training.train import train

LENGTH = 30
METRICS = ("well_formed", "scene", "all_characters", "props", "persistence", "opening_named", "opening_shown")
HERO = "window"  # whose story opens the page


def main(arguments: Sequence[str]) -> int:
    """Parses the flags and runs the demo."""
    parser = cli.Parser(prog="seedstory demo", description=__doc__)
    parser.add_argument("--config", default="toy")
    parser.add_argument("--workdir", type=Path, default=Path("runs/toy"))
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    parser.add_argument("--stories", type=int, default=20, help="held-out beginnings a policy")
    parser.add_argument("--length", type=int, default=LENGTH, help="sequences a story")
    parser.add_argument("--drawn", type=int, help="of the stories, how many get pictures; default: all")
    parser.add_argument("--untimed", action="store_true", help="leave out the story told alone for seconds and bytes")
    flags, overrides = parser.parse_strictly(arguments)
    try:
        page = run_demo(
            load_config(flags.config, overrides),
            flags.workdir,
            flags.out,
            stories=flags.stories,
            length=flags.length,
            drawn=flags.drawn,
            timed=not flags.untimed,
        )
    except Interrupted as stopped:
        print(stopped)
        return 0
    print((flags.out / "policies.md").read_text())
    minutes = sum(Clock(flags.out / "seconds.json").seconds.values()) / 60
    print(f"{minutes:.1f} minutes in all; open {page}")
    return 0


def run_demo(
    config: Config,
    workdir: Path,
    out: Path,
    *,
    stories: int = 20,
    length: int = LENGTH,
    drawn: int | None = None,
    timed: bool = True,
) -> Path:
    """Trains, ablates every policy into `out/ablation` and writes `out/index.html`; returns that page's path.

    Beside the page, `policies.md` and `policies.svg`: its table, and the first measure's curve, for a document.
    `stories`, `length`, `drawn` and `timed` are the ablation's. Raises Interrupted after SIGTERM.
    """
    clock = Clock(out / "seconds.json")
    with clock.measure("training"):
        train(config, workdir)
    system, ablation = load(workdir), out / "ablation"
    runs = plan_runs(list(PUBLISHED), (), [length])
    with clock.measure("telling and drawing"):
        requests = prompts_of(system, system.run_data.validation, stories)
        generate_ablation(system, runs, requests, ablation, drawn=drawn, timed=timed)
    with clock.measure("measuring"):
        names = [request.name for request in requests]
        tools = Tools(encode=None if drawn == 0 else system.encode)
        reference = true_stories(system.run_data.validation, stories)
        figures, measured = write_ablation(ablation, runs, names, tools, reference, up="../index.html")
    table = policy_table(measured[length].records, metrics=METRICS, ranges=thirds(length))
    write_text(out / "policies.md", to_markdown(table))
    write_text(out / "policies.svg", curve_plot(table, METRICS[0]))
    told = {run.label: ablation / "stories" / run.name / folder_name(names[0]) for run in runs}
    return write_demo_page(
        out,
        workdir=workdir,
        stories=told,
        hero=HERO,
        table=table,
        costs=measured[length].figures,
        facts=facts_of(clock.seconds, len(requests), length),
        links={"The ablation: every measure, curve and picture": figures},
    )


def facts_of(seconds: Mapping[str, float], stories: int, length: int) -> dict[str, object]:
    """What the page says of the run."""
    return {
        "held-out beginnings a policy": stories,
        "sequences a story": length,
        "minutes in all": round(sum(seconds.values()) / 60, 1),
        **{f"minutes of {name}": round(spent / 60, 1) for name, spent in seconds.items()},
        "machine": f"{platform.machine()}, {cpu_count()} cores",
    }


class Clock:
    """Seconds by name, kept in a file, so that a run in several pieces still knows its whole time."""

    def __init__(self, path: Path):
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the time inside to `name`, also when it ends in an error."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self.seconds)


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    cli.tune_allocator()
    cli.run(main)
