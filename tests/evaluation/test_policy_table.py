from seedstory_jax.evaluation.bootstrap import Interval
from seedstory_jax.evaluation.policy_table import policy_table, records_of, to_markdown
from seedstory_jax.report.tables import figures_html, policy_table_html
from seedstory_jax.toy.probe import FrameScore


def records(policy: str, stories: int = 3, frames: int = 30, right=lambda story, frame: True) -> list[dict]:
    found = []
    for story in range(stories):
        scores = [{"well_formed": right(story, frame), "scene": None if frame < 20 else 1.0} for frame in range(frames)]
        found += records_of(policy, f"s{story}", scores)
    return found


def test_ranges_count_from_one_and_leave_out_the_prompt():
    # Right exactly in frames 2 to 10, as a reader counts them: indices 1 to 9.
    table = policy_table(records("window", right=lambda story, frame: 1 <= frame <= 9))
    cells = table.cells["window"]
    assert [cells[name]["well_formed"].mean for name in table.ranges] == [1.0, 0.0, 0.0, 9 / 29]
    assert table.ranges == ("2-10", "11-20", "21-30", "2-30")
    assert cells["2-10"]["well_formed"].count == 27 and cells["2-10"]["scene"] == Interval(None, None, None, 0)


def test_curves_are_bins_of_frames():
    table = policy_table(records("dense", frames=9, right=lambda story, frame: frame in (1, 7, 8)))
    points = table.curves["dense"]["well_formed"]
    assert {frame: round(cell.mean, 3) for frame, cell in points.items()} == {3.0: 0.333, 6.0: 0.0, 8.5: 1.0}


def test_scores_of_the_probe_and_questions_that_never_arise():
    scores = [FrameScore(True), FrameScore(True, scene=True), FrameScore(False, scene=False)]
    table = policy_table(records_of("sink", "a", scores))
    assert table.metrics == ("well_formed", "scene")
    assert table.cells["sink"]["2-10"]["scene"].mean == 0.5 and table.stories == {"sink": 1}


def test_writers_agree():
    made = [*records("window"), *records("a|b <i>", right=lambda story, frame: story == 0)]
    table = policy_table(made)
    lines = to_markdown(table).splitlines()
    assert len(lines) == 6 and all(line.replace("\\|", "").count("|") == 7 for line in lines)
    html = policy_table_html(table)
    assert "a|b &lt;i&gt;" in html and "<i>" not in html and html.count("<table") == 2


def test_plain_figures():
    html = figures_html(["s", "n", "x", "z"], {"<a>": [1.23456, 12345, Interval(0.5, 0.4, 0.6, 3), None]})
    for text in ("&lt;a&gt;", "1.23", "12,345", "0.5<small>0.4 to 0.6</small>"):
        assert text in html
