"""Ablate eviction policies: generate from the same prompts under each, measure, and write the paper's tables as a page.

    seedstory ablate --workdir=runs/toy --out=out/ablation --length=30 --num_stories=20
    seedstory ablate --workdir=... --stories=val.jsonl --policies=dense,window,multimodal_sink
        --length=25,50 --grid='window=4,8 x image_sink_cap=0,8' --out=DIR [--clip=DIR] [--inception=FILE]
    seedstory ablate --workdir=... --policies='sink(start=1),mine.py:EveryOther(window=4)' --out=DIR

Run again with the same --out it goes on where it stopped; with more stories, lengths or grids it adds what is new.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from seedstory_jax import cli, outputs
from seedstory_jax.checkpoints.readers import fingerprint
from seedstory_jax.config import load_config, to_dict
from seedstory_jax.errors import UserError
from seedstory_jax.evaluation.ablation import (
    DEFAULT_POLICIES,
    Run,
    Setup,
    generate_runs,
    plan_runs,
    read_run,
    timing_figures,
)
from seedstory_jax.evaluation.bootstrap import Interval
from seedstory_jax.evaluation.clip_score import ClipScore
from seedstory_jax.evaluation.measure import Measurement, Tools, measure
from seedstory_jax.evaluation.perplexity import Perplexity
from seedstory_jax.evaluation.policy_table import KEYS
from seedstory_jax.evaluation.pretrained import find_aesthetic, find_encoders
from seedstory_jax.evaluation.prompts import open_dataset, prompts_of, true_stories, whole_numbers
from seedstory_jax.evaluation.records import records_csv
from seedstory_jax.evaluation.teacher_forced import TrueStory, held_out, read_scores, score_runs
from seedstory_jax.generation.policy_names import parse_named, split_list
from seedstory_jax.generation.story_files import Request
from seedstory_jax.locks import owned
from seedstory_jax.pipeline import StoryPipeline, load
from seedstory_jax.report.contact_sheet import write_contact_sheet
from seedstory_jax.report.figures_page import section_of, write_figures
from seedstory_jax.report.page import write_text
from seedstory_jax.report.storybook import write_storybook


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit code."""
    parser = cli.Parser(prog="seedstory ablate", description=__doc__)
    parser.add_argument("--config", help="must agree with the workdir's own; may be left out")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--stories", type=Path, help="a StoryStream .jsonl; default: the workdir's validation stories")
    parser.add_argument("--image_root", type=Path, help="folder of the stories' pictures; default: the file's own")
    policies = "names with settings, sink(start=1,positions=absolute); FILE.py:CLASS of your own; or all"
    parser.add_argument("--policies", default=",".join(DEFAULT_POLICIES), help=policies)
    parser.add_argument("--length", default="25", help="frames a story, one or more: 25,50")
    parser.add_argument("--num_stories", type=int, default=20, help="prompts a run; 0 takes all")
    parser.add_argument("--drawn", type=int, help="of these, how many get pictures; default: all; 0 is text only")
    grid = "window=4,8 x image_sink_cap=0,8: a row more a point, where a policy has the setting; may be repeated"
    parser.add_argument("--grid", action="append", default=[], help=grid)
    parser.add_argument("--sweep", help=argparse.SUPPRESS)
    forced = "true stories to read under every policy, for teacher-forced loss; default: --num_stories; 0: none"
    parser.add_argument("--teacher_forced", type=int, metavar="N", help=forced)
    parser.add_argument("--against", help="the policy that all others are compared with; default: the first one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="denoising steps")
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--batch", type=int, default=20, help="stories generated together")
    parser.add_argument(
        "--untimed", action="store_true", help="leave out the story generated alone for seconds and bytes"
    )
    parser.add_argument("--clip", type=Path, help="a local CLIP folder, for the CLIP score")
    parser.add_argument("--inception", type=Path, help="local Inception weights, for FID")
    parser.add_argument("--perplexity", action="store_true", help="of captions, by SmolLM2-135M (docs/benchmarks.md)")
    parser.add_argument("--weights", type=Path, help="local weights of dino, clip, csd and aesthetic, a folder each")
    parser.add_argument("--out", type=Path, required=True)
    flags, overrides = parser.parse_strictly(arguments)
    outputs.claim(
        *(flags.out / name for name in ("ablation.json", "ablation.md", "ablation.csv", "records.csv", "index.html")),
        by="report",
    )
    if flags.sweep is not None:
        raise UserError("--sweep is --grid now: write --grid='window=4,8 x head=0:0,4:8'")
    lengths = whole_numbers(flags.length, "length")
    runs = plan_runs(split_list(flags.policies), flags.grid, lengths)
    against = str(parse_named(flags.against)) if flags.against else runs[0].label
    if against not in {run.label for run in runs}:
        labels = ", ".join(dict.fromkeys(run.label for run in runs))
        raise UserError(f"--against={flags.against} is no policy of this table: {labels}")
    tools = Tools(
        clip=ClipScore(flags.clip) if flags.clip else None,
        inception=flags.inception,
        encoders=find_encoders(flags.weights),
        aesthetic=find_aesthetic(flags.weights),
        perplexity=Perplexity() if flags.perplexity else None,
    )
    system = load(flags.workdir, load_config(flags.config, overrides) if flags.config else None)
    dataset = open_dataset(system, flags.stories, flags.image_root)
    requests = prompts_of(system, dataset, flags.num_stories)
    rendering = {"seed": flags.seed, "steps": flags.steps, "guidance": flags.guidance}
    forced = flags.num_stories if flags.teacher_forced is None else flags.teacher_forced
    true = [] if flags.teacher_forced == 0 else held_out(system, dataset, forced, max(lengths))
    tools = dataclasses.replace(tools, encode=None if flags.drawn == 0 else system.encode)
    reference = true_stories(dataset, flags.num_stories)
    names, scored = [request.name for request in requests], [story.name for story in true]
    options = {"drawn": flags.drawn, "timed": not flags.untimed, "batch": flags.batch, "true": true, **rendering}
    with owned(flags.out, by="ablate", beside=True):
        generate_ablation(system, runs, requests, flags.out, **options)
        page, found = write_ablation(flags.out, runs, names, tools, reference, against=against, scored=scored)
        records = {length: measured.records for length, measured in found.items()}
        write_text(flags.out / "records.csv", records_csv(records, runs, system.config.sample, flags.seed))
    print(f"{len(runs)} runs; open {page}")
    return 0


def generate_ablation(
    system: StoryPipeline,
    runs: Sequence[Run],
    requests: Sequence[Request],
    out: Path,
    *,
    drawn: int | None = None,
    timed: bool = True,
    batch: int = 20,
    true: Sequence[TrueStory] = (),
    seed: int = 0,
    steps: int | None = None,
    guidance: float | int | None = None,
) -> None:
    """Generates, renders and times into `out` what is missing there; every story gets its storybook.

    `steps` and `guidance` are the renderer's, None the config's; `true` stories are read under every policy and scored;
    the rest is as in `generate_runs`.
    """
    rendering = {"seed": seed, "steps": steps, "guidance": guidance}
    setup = Setup(
        model=system.story_model,
        tokenizer=system.tokenizer,
        generation=system.generation_config(seed=seed, allow_end=False),
        sample=system.config.sample,
        render=None if drawn == 0 else lambda *images: system.renderer.render(*images, **rendering),
        identity=identity_of(system, rendering),
    )
    with tqdm(total=len(runs), unit="run") as bar:

        def progress(run: Run, what: str) -> None:
            bar.n = runs.index(run)
            bar.set_description(f"{run.name}: {what}")

        options = {"drawn": drawn, "timed": timed, "batch": batch}
        generate_runs(setup, runs, requests, out, after=partial(write_storybook, up=UP), progress=progress, **options)
        score_runs(setup, runs, true, out, batch=batch, progress=progress)
        bar.n = len(runs)
        bar.set_description("generated")


def write_ablation(
    out: Path,
    runs: Sequence[Run],
    names: Sequence[str],
    tools: Tools,
    reference: Sequence = (),
    *,
    against: str | None = None,
    scored: Sequence[str] = (),
    notes: Sequence[str] = (),
    up: str | None = None,
) -> tuple[Path, dict[int, Measurement]]:
    """Measures the runs in `out`, writes tables, sheets and page: (its path, measures by length).

    `against` is the label of the policy that the others are compared with; `scored` are the true stories whose
    teacher-forced scores are there. `up` links the page that this one belongs to.
    The measures' records name a run's policy with its settings; `policy_table` makes other tables of them.
    """
    sections, found = [], {}
    for length in dict.fromkeys(run.length for run in runs):
        own = [run for run in runs if run.length == length]
        stories = {run.label: read_run(run, out, names) for run in own}
        cut = [dataclasses.replace(s, texts=s.texts[:length], images=s.images[:length]) for s in reference]
        with tqdm(total=len(own) * len(names), desc=f"measuring {length}", unit="story", mininterval=1.0) as bar:
            measured = measure(stories, tools, reference=cut, progress=lambda system, story, bar=bar: bar.update(1))
        figures = {run.label: {**timing_figures(run, out), **measured.figures[run.label]} for run in own}
        sheets = {}
        for run in own:
            sheet = write_contact_sheet(out / "sheets" / f"{run.name}.png", stories[run.label])
            sheets |= {run.label: sheet} if sheet else {}
        records = [dict(record) for run in own for record in _with_scores(run, out, scored, measured.records)]
        measured = found[length] = Measurement(records, _without_empty(figures))
        extra = {"stories": stories, "sheets": sheets, "against": against}
        sections.append(section_of(f"Stories of {length} frames", measured, length, **extra))
    return write_figures(out, "ablation", "What a story remembers", sections, notes=[*NOTES, *notes], up=up), found


def _with_scores(run: Run, out: Path, scored: Sequence[str], records: Sequence[Mapping]) -> list[Mapping]:
    """A run's records, with the teacher-forced scores of their stories' turns before the rest."""
    scores = read_scores(run, out, scored)
    found = []
    for record in records:
        if record["policy"] == run.label:
            keys = {name: record[name] for name in KEYS}
            found.append({**keys, **scores.pop((record["story"], record["frame"]), {}), **record})
    return found + [
        {"policy": run.label, "story": story, "frame": turn, **own} for (story, turn), own in scores.items()
    ]


UP = "../../../index.html"  # from `stories/<run>/<name>/index.html` to the ablation's page
NOTES = (
    "The same prompts and the same noise under every policy. Seconds, calls and bytes are of one story generated "
    "alone, compilation taken out.",
    "Teacher-forced columns read the true held-out stories instead of generating: what each policy kept has to predict "
    "the next true caption and image. The next-token loss is the primary measure.",
)


def identity_of(system: StoryPipeline, rendering: Mapping) -> Mapping:
    """What stories depend on besides policy and prompts; `rendering`: seed, steps and guidance."""
    return {
        "checkpoint": fingerprint(system.workdir, system.config.sample.checkpoint),
        "model": to_dict(system.config.model),
        "sample": to_dict(system.config.sample),
        **rendering,
    }


def _without_empty(figures: Mapping[str, Mapping[str, Interval]]) -> dict[str, dict[str, Interval]]:
    """Without columns in which no system has a number (peak memory on a CPU)."""
    filled = {name for own in figures.values() for name, interval in own.items() if interval.mean is not None}
    return {system: {name: own[name] for name in own if name in filled} for system, own in figures.items()}


if __name__ == "__main__":
    cli.tune_allocator()
    cli.run(main)
