"""Where a model looks: the heat map (Figure 4), the keys most attended to (Table 5), and what follows for the sinks."""

from pathlib import Path

from seedstory_jax.evaluation.attention_statistics import AttentionStatistics, kept_share, suggest_counts
from seedstory_jax.report.page import render_page, theme_button, write_text
from seedstory_jax.report.plots import Line, heat_map, line_plot
from seedstory_jax.report.tables import figures_html

PUBLISHED = ((4, 8), (8, 4))
ROWS = 24


def write_attention_page(path: Path, found: AttentionStatistics, window: int, share: float = 0.9) -> Path:
    """Write the page; returns its path. `share` of the attention is what the suggested counts keep."""
    head, tail, kept = suggest_counts(found.head_mass, found.tail_mass, share)
    published = kept_share(found.head_mass, found.tail_mass, *PUBLISHED)
    keys = list(found.occurrences)[:ROWS]
    rows = {name: [found.occurrences[name], found.mean_attention.get(name)] for name in keys}
    counts = {
        "published": [str(PUBLISHED[0]), str(PUBLISHED[1]), sum(map(sum, PUBLISHED)), published],
        f"for {share:.0%}": [str(head), str(tail), sum(head) + sum(tail), kept],
    }
    distances = [
        line_plot(
            [Line("", list(mass), list(mass.values()))],
            title=f"Attention by distance from {mark}",
            x_label="tokens",
        )
        for mark, mass in (("the opening <img>", found.head_mass), ("the closing </img>", found.tail_mass))
        if mass
    ]
    heat = heat_map(found.heat.tolist(), title="Attention", x_label="key", y_label="query")
    body = f"""<header class="mast"><div class="tools">{theme_button()}</div><h1>Where the model looks</h1>
<p class="lead">{found.stories} whole stories read without eviction, {found.maps:,} maps (stories, layers and heads).
{found.old_share:.1%} of all attention goes to frames that a window of {window} would have evicted, the first four
tokens apart.</p></header><main class="sheet">
<section><h2>The map</h2><p class="lead">Mean over layers, heads and stories; a row is a stretch of queries, a column a
stretch of keys.</p><figure class="narrow">{heat}</figure></section>
<section><h2>The keys most attended to</h2><p class="lead">In what share of the maps such a token is among the ten keys
with the highest mean attention, and that mean.</p>
{figures_html(["in the top ten of", "mean attention"], rows)}</section>
<section><h2>What to keep of an evicted image</h2><p class="lead">Tokens before a mark and from it on, and the share of
the attention to evicted frames that they keep.</p>
{figures_html(["head", "tail", "tokens an image", "share kept"], counts)}
<div class="plots">{"".join(f"<figure>{plot}</figure>" for plot in distances)}</div></section></main>"""
    return write_text(path, render_page("Where the model looks", body, styles=("sheet.css",)))
