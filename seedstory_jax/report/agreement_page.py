"""The page of judge and people side by side: kappa by question, and who said what."""

from collections.abc import Sequence
from pathlib import Path

from seedstory_jax.evaluation.agreement import LABELS, Agreement
from seedstory_jax.report.page import escape, render_page, theme_button, write_text
from seedstory_jax.report.plots import heat_map
from seedstory_jax.report.tables import figures_html


def write_agreement_page(path: Path, found: Sequence[Agreement]) -> Path:
    """Write the page: a table, and a map a question whose rows are the judge's labels and columns people's."""
    rows = {f"{one.aspect} / {one.question}": [one.kappa, one.agreed, one.stories] for one in found}
    maps = "".join(
        "<figure>"
        + heat_map(
            [[one.counts[mine][theirs] for theirs in LABELS] for mine in LABELS],
            title=f"{one.aspect} / {one.question}",
            x_label="people",
            y_label=f"judge: {', '.join(reversed(LABELS))}",
            marks={place: label for place, label in enumerate(LABELS)},
            width=300,
        )
        + f"<figcaption>{escape(_counted(one))}</figcaption></figure>"
        for one in found
    )
    body = (
        f'<header class="mast"><div class="tools">{theme_button()}</div><h1>Judge and people</h1>'
        "<p class='lead'>Cohen's kappa is agreement beyond chance: 1 is full, 0 what labels at random would have. "
        "First and second are the two systems by name; people's label is what most of them chose.</p></header>"
        f'<main class="sheet"><section><h2>Agreement</h2>{figures_html(("kappa", "labelled alike", "stories"), rows)}'
        f"<div class='plots'>{maps}</div></section></main>"
    )
    return write_text(path, render_page("Judge and people", body, styles=("sheet.css",)))


def _counted(one: Agreement) -> str:
    return "; ".join(
        f"judge {mine}: " + ", ".join(f"people {theirs} {one.counts[mine][theirs]}" for theirs in LABELS)
        for mine in LABELS
    )
