"""The judge's page: win rates as pies (Figure 6) and a table, mean scores (Table 7)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from seedstory_jax.evaluation.bootstrap import Interval
from seedstory_jax.evaluation.judge_tables import Duel
from seedstory_jax.report.page import render_page, theme_button, write_text
from seedstory_jax.report.plots import pie
from seedstory_jax.report.tables import figures_html


def write_judge_page(
    path: Path, duels: Sequence[Duel], scores: Mapping[str, Mapping[str, Interval]], unread: int
) -> Path:
    """Write the page; returns its path."""
    pies, rows = [], {}
    several = len({duel.systems for duel in duels}) > 1
    for duel in duels:
        first, second = duel.systems
        counts = {first: duel.wins[0], "tie": duel.ties, second: duel.wins[1]}
        if sum(counts.values()):
            title = f"{first} against {second}: {duel.aspect}" if several else duel.aspect
            pies.append(f"<figure>{pie(counts, title=title)}</figure>")
        row = [*counts.values(), duel.rates[0], duel.rates[1], duel.first_chosen, duel.disagreed, duel.unread]
        rows[f"{first} against {second}: {duel.aspect}"] = row
    columns = ["first wins", "ties", "second wins", "first's rate", "second's rate", "place one chosen",
               "orders disagree", "unread"]  # fmt: skip
    aspects = list(dict.fromkeys(aspect for own in scores.values() for aspect in own))
    table = {system: [own.get(aspect) for aspect in aspects] for system, own in scores.items()}
    parts = [f'<header class="mast"><div class="tools">{theme_button()}</div><h1>What the judge says</h1>']
    if unread:
        parts.append(f'<p class="lead">{unread} answers are missing; stories they belong to are left out.</p>')
    parts.append('</header><main class="sheet">')
    if rows:
        parts.append(
            "<section><h2>Which story is better</h2><p class='lead'>Every pair was shown in both orders. A story "
            "counts as won if both orders agree, else as a tie. A judge without a favourite place chooses place one "
            f"half the time.</p><div class='plots'>{''.join(pies)}</div>{figures_html(columns, rows)}</section>"
        )
    if table:
        parts.append(f"<section><h2>Scores out of ten</h2>{figures_html(aspects, table)}</section>")
    parts.append("</main>")
    html = render_page("What the judge says", "\n".join(parts), styles=("sheet.css",))
    return write_text(path, html)
