"""Tables of a report as HTML: figures with their intervals, shaded by size."""

from collections.abc import Mapping, Sequence

from seedstory_jax.evaluation.bootstrap import Interval
from seedstory_jax.evaluation.policy_table import PolicyTable, title_of
from seedstory_jax.report.page import escape


def policy_table_html(table: PolicyTable) -> str:
    """A small table a metric: a row a policy, a column a range of frames."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.ranges)
    tables = []
    for metric in table.metrics:
        rows = "".join(
            f'<tr><th scope="row">{escape(policy)}</th>'
            + "".join(_share_cell(by_range[name][metric], metric) for name in table.ranges)
            + "</tr>"
            for policy, by_range in table.cells.items()
        )
        tables.append(
            f'<div class="wide"><table class="figures"><caption>{escape(title_of(metric))}</caption>'
            f'<thead><tr><th scope="col">frames</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        )
    return f'<div class="tables">{"".join(tables)}</div>'


def figures_html(columns: Sequence[str], rows: Mapping[str, Sequence], *, corner: str = "") -> str:
    """A plain table: a row a name; cells are Intervals, numbers, text or None."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(map(_cell, cells))}</tr>' for name, cells in rows.items()
    )
    return (
        f'<div class="wide"><table class="figures"><thead><tr><th scope="col">{escape(corner)}</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(cell: object) -> str:
    """An interval's bounds stand small below its mean, so that a table of many columns fits a page."""
    if isinstance(cell, Interval) and cell.mean is not None and cell.low is not None:
        low, high = words(float(cell.low)), words(float(cell.high))
        return f"<td>{words(float(cell.mean))}<small>{low} to {high}</small></td>"
    return f"<td>{escape(words(cell))}</td>"


def words(cell: object) -> str:
    """A cell as text: three significant digits, thousands apart, nothing for None."""
    if cell is None:
        return "–"  # noqa: RUF001
    if isinstance(cell, bool | str):
        return str(cell)
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    if isinstance(cell, Interval):
        if cell.mean is None:
            return words(None)
        band = "" if cell.low is None else f" [{words(float(cell.low))}, {words(float(cell.high))}]"
        return words(float(cell.mean)) + band
    return str(cell)


def _share_cell(cell: Interval, metric: str) -> str:
    if cell.mean is None:
        return "<td>–</td>"  # noqa: RUF001
    band = "" if cell.low is None else f"<small>{cell.low:.2f} to {cell.high:.2f}</small>"
    shade = round(100 * min(max(cell.mean, 0.0), 1.0))
    title = f"{title_of(metric)}: {cell.mean:.3f} over {cell.count} observations"
    return f'<td style="--share:{shade}%" title="{escape(title)}">{cell.mean:.2f}{band}</td>'
