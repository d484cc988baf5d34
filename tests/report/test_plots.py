import json
import math
from xml.etree import ElementTree

import pytest

from seedstory_jax.report.loss_curves import loss_plots, read_metrics, thinned
from seedstory_jax.report.plots import Line, heat_map, line_plot, number, pie, ticks

NINE = range(9, 0, -1)


def svg(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def paths(text: str, kind: str) -> list[str]:
    found = svg(text).iter("{http://www.w3.org/2000/svg}path")
    return [path.get("d") for path in found if kind in (path.get("style") or "")]


def test_a_line_lies_where_its_values_say():
    text = line_plot([Line("a", [0, 10], [0.0, 1.0])], title="t", y_range=(0, 1), width=100, height=100)
    assert paths(text, "stroke") == ["M54.0 50.0L86.0 24.0"]


def test_gaps_break_lines_and_a_lone_point_is_a_dot():
    text = line_plot([Line("a", [1, 2, 3, 4], [1.0, 2.0, None, 3.0])], title="t")
    assert len(paths(text, "stroke")) == 1 and text.count("<circle") == 1
    text = line_plot([Line("a", [1, 2], [1.0, math.nan], [0.5, 1], [1.5, 2])], title="t")
    assert len(paths(text, "fill:var")) == 1


@pytest.mark.parametrize("lines", [[], [Line("a", [], [])], [Line("a", [1], [2.0])], [Line("a", [1, 1], [0.0, 0.0])]])
@pytest.mark.parametrize("log", [False, True])
def test_little_or_nothing_to_draw(lines, log):
    svg(line_plot(lines, title="<&>", log_y=log))


def test_many_names_take_more_rows():
    names = ["window", "multimodal_sink", "window_recompute", "another_long_one"]
    one, four = (line_plot([Line(n, [0, 1], [0, 1]) for n in some], title="t") for some in (names[:2], names))
    heights = [int(svg(text).get("viewBox").split()[3]) for text in (one, four)]
    assert heights == [260, 275]


@pytest.mark.parametrize(
    "low, high, expected",
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 30, [0, 10, 20, 30]), (1e-5, 3e-5, [1e-5, 1.5e-5, 2e-5, 2.5e-5, 3e-5])],
)
def test_ticks_are_round(low, high, expected):
    if low == 1e-5:
        assert all(low <= tick <= high for tick in ticks(low, high)) and len(ticks(low, high)) >= 3
    else:
        assert ticks(low, high) == pytest.approx(expected)


def test_numbers():
    assert [number(v) for v in (0, 0.05, 1000, 0.00002, 3e7)] == ["0", "0.05", "1,000", "2e-5", "3e7"]


def test_heat_map_and_pie():
    text = heat_map([[0, 1], [0.25, 0]], title="t", marks={0: "<s>"})
    shades = [r.get("fill-opacity") for r in svg(text).iter("{http://www.w3.org/2000/svg}rect") if r.get("style")]
    assert shades == ["1.000", "0.500"] and "&lt;s&gt;" in text
    text = pie({"win": 3, "tie": 0, "loss": 1}, title="t")
    assert "75.0 %" in text and "25.0 %" in text and len(paths(text, "fill")) == 2
    assert "<circle" in pie({"win": 2, "loss": 0}, title="t")
    with pytest.raises(ValueError, match="positive"):
        pie({"win": 0}, title="t")
    with pytest.raises(ValueError, match="at least one"):
        heat_map([], title="t")


def test_losses_of_a_run(tmp_path):
    rows = [
        {"stage": "story", "step": s, "loss": 2.0**-s, "next_token_loss": 2.0**-s, "lr": 1} for s in range(9, 0, -1)
    ]
    rows += [{"stage": "adapt", "step": 1, "loss": 3.0, "note": "x"}, {"stage": "odd", "step": 1}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"stage": "sto')
    stages = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in stages["story"]] == list(range(1, 10))
    (plot,) = loss_plots(stages["story"], "story")
    assert "story: next token loss" in plot and len(paths(plot, "stroke")) == 1
    assert len(loss_plots(stages["adapt"], "adapt")) == 1 and loss_plots(stages["odd"], "odd") == []
    line = thinned(stages["story"], "loss", points=3)
    assert line.x == [2.0, 5.0, 8.0] and line.y[0] == pytest.approx((0.5 + 0.25 + 0.125) / 3)
    assert thinned(stages["adapt"], "note") is None and read_metrics(tmp_path / "none.jsonl") == {}
