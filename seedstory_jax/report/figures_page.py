"""The page of an ablation or a comparison: figures a system, quality by frame, curves, and pictures side by side."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from seedstory_jax.evaluation.bootstrap import Interval
from seedstory_jax.evaluation.differences import Difference, paired_differences
from seedstory_jax.evaluation.measure import Measurement
from seedstory_jax.evaluation.policy_table import PolicyTable, title_of, to_markdown
from seedstory_jax.evaluation.stories import StoryFolder
from seedstory_jax.report.demo_page import curve_plots
from seedstory_jax.report.page import escape, href, picture, render_page, theme_button, write_text
from seedstory_jax.report.storybook import POLICY_WORDS
from seedstory_jax.report.tables import figures_html, policy_table_html, words


@dataclass(frozen=True)
class Section:
    """One table of systems: all of an ablation's policies at one length, or a comparison.

    Attributes:
        title: the section's headline.
        table: quality by system and range of frames.
        figures: by system, then by name.
        stories: by system.
        sheets: by system, its contact sheet.
        against: the system that the others are compared with, None for none.
        differences: of the others from it, by system and measure.
    """

    title: str
    table: PolicyTable
    figures: Mapping[str, Mapping[str, Interval]]
    stories: Mapping[str, Sequence[StoryFolder]] = field(default_factory=dict)
    sheets: Mapping[str, Path] = field(default_factory=dict)
    against: str | None = None
    differences: Mapping[str, Mapping[str, Difference]] = field(default_factory=dict)


def section_of(title: str, measured: Measurement, length: int, *, against: str | None = None, **rest) -> Section:
    """A section whose ranges of frames are thirds of `length` (2-10, 11-20, 21-30 for thirty frames)."""
    from seedstory_jax.evaluation.policy_table import policy_table

    table = policy_table(measured.records, ranges=thirds(length))
    differences = {} if against is None else paired_differences(measured.records, against, table.metrics)
    return Section(title, table, measured.figures, against=against, differences=differences, **rest)


def thirds(length: int) -> list[tuple[int, int]]:
    """Frames 2 to `length`, counted from 1, in three ranges that end on thirds; fewer where there are fewer frames."""
    ends = sorted({max(2, round(length * part / 3)) for part in (1, 2, 3)})
    firsts = [2, *(end + 1 for end in ends[:-1])]
    return [(first, end) for first, end in zip(firsts, ends, strict=True) if first <= end] or [(2, 2)]


def write_figures(
    out: Path,
    name: str,
    title: str,
    sections: Sequence[Section],
    *,
    notes: Sequence[str] = (),
    up: str | None = None,
) -> Path:
    """Write `<name>.json`, `.md`, `.csv` and `index.html` into `out`; the page's path. `up`: its link upwards."""
    out = Path(out)
    content = {
        "title": title,
        "notes": list(notes),
        "sections": [
            {
                "title": section.title,
                "figures": {s: {n: asdict(i) for n, i in own.items()} for s, own in section.figures.items()},
                "quality": asdict(section.table),
                "against": section.against,
                "differences": {s: {n: asdict(d) for n, d in own.items()} for s, own in section.differences.items()},
            }
            for section in sections
        ],
    }
    write_text(out / f"{name}.json", json.dumps(content, indent=1) + "\n")
    write_text(out / f"{name}.md", _markdown(title, sections, notes))
    write_text(out / f"{name}.csv", _csv(sections))
    back = f'<a href="{href(up)}">&lsaquo; Up</a> ' if up else ""
    downloads = back + " ".join(f'<a href="{name}.{kind}">{name}.{kind}</a>' for kind in ("json", "md", "csv"))
    parts = [
        f'<header class="mast"><div class="tools">{theme_button()}</div><h1>{escape(title)}</h1>',
        *(f'<p class="lead">{escape(note)}</p>' for note in notes),
        f'<p class="links">{downloads}</p></header><main class="sheet">',
        *(_section_html(out, section) for section in sections),
        "</main>",
    ]
    return write_text(out / "index.html", render_page(title, "\n".join(parts), styles=("sheet.css",)))


TABLE_2 = ("frechet_vit", "fid", "clip_score", "seconds", "llm_calls", "kv_slots", "buffer_mb", "peak_mb")


def _summary(section: Section) -> tuple[list[str], dict[str, list]]:
    """The paper's Table 2 and what else counts whole stories: columns, and a row a system."""
    every = section.table.ranges[-1] if section.table.ranges else ""
    rows = {}
    for system, own in section.figures.items():
        clip = section.table.cells.get(system, {}).get(every, {}).get("clip_score")
        rows[system] = {**own, **({"clip_score": clip} if clip else {})}
    found = dict.fromkeys(name for own in rows.values() for name in own)
    names = [*(name for name in TABLE_2 if name in found), *(name for name in found if name not in TABLE_2)]
    return [title_of(name) for name in names], {system: [own.get(n) for n in names] for system, own in rows.items()}


def _quality(section: Section) -> tuple[list[str], dict[str, list]]:
    """Every measure over all frames but the prompt: a column a system, a row a measure."""
    table = section.table
    every = table.ranges[-1]
    rows = {title_of(m): [table.cells[system][every][m] for system in table.cells] for m in table.metrics}
    return list(table.cells), rows


def _differences(section: Section) -> tuple[list[str], dict[str, list]]:
    """Every measure's difference from the reference over all frames but the prompt: a column a system."""
    found = section.differences
    rows = {}
    for metric in section.table.metrics:
        cells = [own.get(metric) for own in found.values()]
        if any(cells):
            rows[title_of(metric)] = [cell and cell.interval for cell in cells]
    return list(found), rows


def _difference_words(section: Section) -> str:
    return (
        f"Each system less {section.against}, paired over stories: the mean of the stories' differences, with 95 % of "
        "bootstrap resamples of whole stories. No correction for the number of comparisons is made."
    )


def _differences_html(section: Section) -> str:
    if not section.differences:
        return ""
    return (
        f"<h3>Differences from {escape(section.against)}</h3><p class='soft'>{escape(_difference_words(section))}</p>"
        f"{figures_html(*_differences(section))}"
    )


def _section_html(out: Path, section: Section) -> str:
    counts = sorted(set(section.table.stories.values()))
    count = "" if not counts else f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    head = f"<section><h2>{escape(section.title)}</h2>{figures_html(*_summary(section))}"
    if not section.table.metrics:  # some evaluators score whole systems alone
        return f"{head}{_pictures(out, section)}</section>"
    return (
        f"{head}<h3>Quality of all frames but the prompt</h3>"
        f"<p class='soft'>{count} stories a system; small figures: 95 % of resamples over stories.</p>"
        f"{figures_html(*_quality(section))}{_differences_html(section)}{_pictures(out, section)}"
        "<h3>Quality by frame</h3>"
        "<p class='soft'>Means of three frames, with the band of 95 % of resamples over stories.</p>"
        f"{curve_plots(section.table)}<details><summary>The same as tables</summary>"
        f"{policy_table_html(section.table)}</details></section>"
    )


def _pictures(out: Path, section: Section) -> str:
    rows = []
    for system in section.figures:
        sheet, stories = section.sheets.get(system), section.stories.get(system, ())
        books = [story.images[0].parent for story in stories if story.images and story.images[0] is not None]
        links = "".join(
            f'<a href="{href(os.path.relpath(book, out))}/index.html">{place}</a> '
            for place, book in enumerate(books, 1)
            if (book / "index.html").is_file()
        )
        if sheet is None and not links:
            continue
        art = ""
        if sheet is not None:
            folder = os.path.relpath(sheet.parent, out)
            alt = f"{system}: some stories as rows, frames from first to last as columns"
            art = picture(sheet.parent, sheet.name, alt, base="" if folder == "." else folder, css="sample")
        about = POLICY_WORDS.get(system.partition("(")[0], "")
        rows.append(
            f'<article class="policy"><h3>{escape(system)}</h3><p>{escape(about)} <span class="soft">'
            f"{'storybooks: ' + links if links else ''}</span></p>{art}</article>"
        )
    return f"<h3>Pictures</h3>{''.join(rows)}" if rows else ""


def _markdown(title: str, sections: Sequence[Section], notes: Sequence[str]) -> str:
    lines = [f"# {title}", "", *(f"{note}\n" for note in notes)]
    for section in sections:
        (columns, rows), (systems, measures) = _summary(section), _quality(section)
        rows = {f"`{system}`": row for system, row in rows.items()}
        lines += [f"## {section.title}", "", *_markdown_table(columns, rows), ""]
        if not section.table.metrics:
            continue
        lines += [*_markdown_table([f"`{system}`" for system in systems], measures), ""]
        if section.differences:
            others, rows = _differences(section)
            lines += [f"### Differences from `{section.against}`", "", _difference_words(section), ""]
            lines += [*_markdown_table([f"`{system}`" for system in others], rows), ""]
        lines += [to_markdown(section.table)]
    return "\n".join(lines)


def _markdown_table(columns: Sequence[str], rows: Mapping[str, Sequence]) -> list[str]:
    def cell(text: str) -> str:
        return text.replace("|", chr(92) + "|")

    lines = ["| | " + " | ".join(map(cell, columns)) + " |", "|---|" + "---|" * len(columns)]
    return lines + [f"| {cell(name)} | {' | '.join(map(words, cells))} |" for name, cells in rows.items()]


def _csv(sections: Sequence[Section]) -> str:
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("section", "system", "frames", "metric", "mean", "low", "high", "count"))
    for section in sections:
        for system, own in section.figures.items():
            for name, i in own.items():
                writer.writerow((section.title, system, "", name, i.mean, i.low, i.high, i.count))
        for row in section.table.rows():
            cells = (row[key] for key in ("policy", "frames", "metric", "mean", "low", "high", "count"))
            writer.writerow((section.title, *cells))
    return text.getvalue()
