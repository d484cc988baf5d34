"""The demo's page: a story, the same beginning under every policy, the policies' table, and how it was trained."""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from seedstory_jax.evaluation.bootstrap import Interval
from seedstory_jax.evaluation.policy_table import PolicyTable, title_of
from seedstory_jax.report.loss_curves import loss_plots, read_metrics
from seedstory_jax.report.page import escape, href, picture, render_page, theme_button, write_text
from seedstory_jax.report.plots import Line, line_plot
from seedstory_jax.report.storybook import POLICY_WORDS
from seedstory_jax.report.tables import figures_html, policy_table_html
from seedstory_jax.training.stages import STAGES


def write_demo_page(
    out: Path,
    *,
    workdir: Path,
    stories: Mapping[str, Path],
    hero: str = "",
    table: PolicyTable | None = None,
    costs: Mapping[str, Mapping[str, Interval]] | None = None,
    facts: Mapping[str, object] | None = None,
    links: Mapping[str, Path] | None = None,
    title: str = "A miniature SEED-Story",
) -> Path:
    """Write `out/index.html` and, beside it, `pictures/` of the stages; returns the page's path.

    Args:
        out: the page's folder; every path below is linked relative to it, so keep them under `out`.
        workdir: a run: its `metrics.jsonl` gives the curves, `<stage>/previews/*.png` the pictures.
        stories: by policy, a folder with story.json, index.html and the frames.
        hero: the policy whose story opens the page; the first one by default.
        table: the policies' table, with its curves by frame.
        costs: by policy, what a story costs and how far its pictures are from true ones.
        facts: what to say about the run, by name (minutes, machine, held-out beginnings ...).
        links: further pages by name (the ablation page).
        title: the page's headline.
    """
    out = Path(out)
    told = {policy: (Path(folder), _read_story(Path(folder))) for policy, folder in stories.items()}
    hero = hero or next(iter(told), "")
    parts = ['<header class="mast"><div class="tools">', theme_button(), f"</div><h1>{escape(title)}</h1>"]
    parts.append(
        '<p class="lead">One picture and one sentence go in; the model writes the next caption, draws its picture, '
        "reads both again and goes on. Everything here was trained from nothing on this machine.</p>"
    )
    further = "".join(f'<a href="{_link(out, path)}">{escape(name)}</a>' for name, path in (links or {}).items())
    further = f'<p class="links">{further}</p>' if further else ""
    parts.append(f'{further}</header><main class="sheet">')
    if hero in told:
        parts.append(_hero(out, *told[hero]))
    if told:
        parts.append(_policies(out, told))
    if table is not None:
        parts.append(_figures(table, costs or {}, further))
    parts.append(_training(out, Path(workdir)))
    if facts:
        rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
        parts.append(f'<section><h2>This run</h2><dl class="facts">{rows}</dl></section>')
    parts.append("</main>")
    return write_text(out / "index.html", render_page(title, "\n".join(parts), styles=("sheet.css",)))


def thumbnails(out: Path, folder: Path, story: Mapping, *, limit: int | None = None) -> str:
    """A story's pictures as a strip; each links to its page of the storybook."""
    base = os.path.relpath(folder, out)
    items = []
    for number, frame in enumerate(story["frames"][:limit], 1):
        words = f"{number}: {frame['text']}"
        content = picture(folder, frame["image"], words, base=base) if frame.get("image") else f"<i>{number}</i>"
        items.append(f'<li><a href="{href(base)}/index.html#{number}" title="{escape(words)}">{content}</a></li>')
    return f'<ol class="thumbs">{"".join(items)}</ol>'


def curve_plots(table: PolicyTable, metrics: Sequence[str] | None = None) -> str:
    """Every metric over the frames, a line with its band a policy."""
    plots = [curve_plot(table, metric) for metric in (table.metrics if metrics is None else metrics)]
    return f'<div class="plots">{"".join(f"<figure>{plot}</figure>" for plot in plots if plot)}</div>'


def curve_plot(table: PolicyTable, metric: str) -> str:
    """One metric over the frames as SVG; "" where nothing was measured."""
    lines = []
    for policy, by_metric in table.curves.items():
        line = by_metric[metric]
        y, low, high = ([getattr(cell, side) for cell in line.values()] for side in ("mean", "low", "high"))
        if any(value is not None for value in y):
            lines.append(Line(policy, [float(frame) for frame in line], y, low, high))
    known = [value for line in lines for value in line.y if value is not None]
    span = (0.0, 1.0) if known and min(known) >= 0 and max(known) <= 1 else None
    return line_plot(lines, title=title_of(metric), x_label="frame", y_range=span) if lines else ""


def _read_story(folder: Path) -> dict:
    return json.loads((folder / "story.json").read_text(encoding="utf-8"))


def _link(out: Path, path: Path) -> str:
    return href(os.path.relpath(path, out))


def _hero(out: Path, folder: Path, story: Mapping) -> str:
    base = os.path.relpath(folder, out)
    frames = story["frames"]
    last = len(frames)
    shown = [number for number in dict.fromkeys((1, 2, last // 3, 2 * last // 3, last)) if 1 <= number <= last]
    pictures = []
    for number in shown:
        frame = frames[number - 1]
        if frame.get("image"):
            art = picture(folder, frame["image"], frame["text"], base=base)
            pictures.append(
                f'<a class="card" href="{href(base)}/index.html#{number}">{art}<b>{number}</b>'
                f"<span>{escape(frame['text'])}</span></a>"
            )
    return (
        f'<section class="hero"><div class="cards">{"".join(pictures)}</div>'
        f'<p><a class="open" href="{href(base)}/index.html">Open the whole story, {last} pictures</a> '
        f"<span class='soft'>first picture and sentence given, the rest written and drawn</span></p></section>"
    )


def _policies(out: Path, told: Mapping[str, tuple[Path, Mapping]]) -> str:
    rows = []
    for policy, (folder, story) in told.items():
        base = os.path.relpath(folder, out)
        figures = [f"{len(story['frames'])} pictures"]
        figures += [f"{story['kv_slots']:,} slots"] if story.get("kv_slots") else []
        rows.append(
            f'<article class="policy"><h3><a href="{href(base)}/index.html">{escape(policy)}</a></h3>'
            f"<p>{escape(POLICY_WORDS.get(policy, ''))}<span class='soft'>{escape(' · '.join(figures))}</span></p>"
            f"{thumbnails(out, folder, story)}</article>"
        )
    return (
        "<section><h2>One beginning, a story for every policy</h2><p class='lead'>What the model may remember "
        "decides how the same beginning goes on. Every picture opens its storybook, where a strip shows which "
        f"tokens were held.</p>{''.join(rows)}</section>"
    )


def _figures(table: PolicyTable, costs: Mapping[str, Mapping[str, Interval]], further: str) -> str:
    stories = sorted(set(table.stories.values()))
    count = str(stories[0]) if len(stories) == 1 else f"{stories[0]} to {stories[-1]}" if stories else "no"
    names = list(dict.fromkeys(name for own in costs.values() for name in own))
    rows = {policy: [own.get(name) for name in names] for policy, own in costs.items()}
    spent = figures_html([title_of(name) for name in names], rows) if costs else ""
    return (
        f"<section><h2>The policies in figures</h2><p class='lead'>Share of frames judged right, over {count} held-out "
        "beginnings, by how far the story has come. Small figures: 95 % of bootstrap resamples over stories.</p>"
        f"{spent}{policy_table_html(table)}<h3>Frame by frame</h3>{curve_plots(table)}{further}</section>"
    )


def _training(out: Path, workdir: Path) -> str:
    metrics = read_metrics(workdir / "metrics.jsonl")
    stages = list(dict.fromkeys((*metrics, *(path.parent.name for path in sorted(workdir.glob("*/previews"))))))
    stages.sort(key=lambda stage: list(STAGES).index(stage) if stage in STAGES else len(STAGES))
    cards = []
    for stage in stages:
        rows = metrics.get(stage, [])
        seconds = sum(row.get("step_seconds") or 0 for row in rows)
        steps = f"{rows[-1]['step']:,} steps" if rows else ""
        steps += f", {seconds / 60:.1f} minutes" if seconds else ""
        plots = "".join(f"<figure>{plot}</figure>" for plot in loss_plots(rows, stage))
        pictures = f'<div class="previews">{_previews(out, workdir, stage)}</div>'
        cards.append(
            f'<article class="stage"><h3>{escape(stage)} <span class="soft">{escape(steps)}</span></h3>'
            f"<p>{escape(STAGES[stage].summary if stage in STAGES else '')}</p>"
            f"<div class='plots'>{plots}{pictures}</div></article>"
        )
    return f"<section><h2>How it was trained</h2>{''.join(cards)}</section>" if cards else ""


def _previews(out: Path, workdir: Path, stage: str) -> str:
    """Pictures that a stage drew as it trained, copied beside the page: the newest of each kind, or their progress."""
    found = sorted((workdir / stage / "previews").glob("*.png"), key=lambda path: (path.stat().st_mtime, path.name))
    if not found:
        return ""
    kinds = {re.sub(r"\d+", "", path.stem): path for path in found}  # the newest of each kind
    picked = kinds.values() if len(kinds) > 1 else dict.fromkeys((found[0], found[len(found) // 2], found[-1]))
    folder = out / "pictures" / stage
    folder.mkdir(parents=True, exist_ok=True)
    figures = []
    for path in picked:
        shutil.copyfile(path, folder / path.name)
        art = picture(folder, path.name, f"{stage}, {path.stem}", base=f"pictures/{stage}", css="sample")
        figures.append(f"<figure>{art}<figcaption>{escape(_name(path))}</figcaption></figure>")
    return "".join(figures)


def _name(path: Path) -> str:
    return re.sub(r"\b0+(?=\d)", "", path.stem.replace("_", " "))
