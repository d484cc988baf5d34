"""Cohen's kappa, and judge and study brought together."""

import json

import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.evaluate import main
from seedstory_jax.evaluation.agreement import cohens_kappa, judge_and_study
from seedstory_jax.evaluation.judge import Question
from seedstory_jax.evaluation.judge_client import Answer
from seedstory_jax.evaluation.judge_tables import story_verdicts


def test_kappa_by_hand():
    # The textbook's 2 x 2: 20 yes-yes, 15 no-no, 5 and 10 apart: observed .7, expected .5.
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert cohens_kappa(pairs) == pytest.approx(0.4)
    assert cohens_kappa([("a", "a"), ("b", "b")]) == 1 and cohens_kappa([("a", "b"), ("b", "a")]) == -1
    assert cohens_kappa([("a", "a")]) == 1 and cohens_kappa([("a", "a"), ("a", "b")]) == 0
    with pytest.raises(ValueError, match="at least one"):
        cohens_kappa([])


def answer(story, verdict, systems=("ours", "theirs"), aspect="style"):
    return Answer(Question("compare", aspect, story, systems, ()), verdict)


def test_verdicts_of_both_orders():
    turned = ("theirs", "ours")
    answers = [answer("a", "ours"), answer("a", "ours", turned), answer("b", "ours"), answer("b", "theirs", turned)]
    answers += [
        answer("c", None),
        answer("c", "ours", turned),
        Answer(Question("score", "style", "a", ("ours",), ()), 7.0),
    ]
    pair = {"systems": ["ours", "theirs"], "aspect": "style"}
    assert story_verdicts(answers) == [
        {**pair, "story": "a", "verdict": "ours"},
        {**pair, "story": "b", "verdict": "tie"},
    ]


@pytest.fixture
def files(tmp_path):
    """A judge and three people over six stories; people agree with it on five."""
    systems, stories = ["ours", "theirs"], [f"s{k}" for k in range(6)]
    verdicts = ["ours", "ours", "theirs", "theirs", "tie", "ours"]
    rows = [{"systems": systems, "aspect": "engagement", "story": s, "verdict": v} for s, v in zip(stories, verdicts)]
    (tmp_path / "judge.json").write_text(json.dumps({"verdicts": rows}))
    pairs = [
        {"number": k, "story": s, "left": systems[k % 2], "right": systems[1 - k % 2]} for k, s in enumerate(stories)
    ]
    questions = {"plot": "Which is more interesting?"}
    (tmp_path / "key.json").write_text(json.dumps({"study": "x", "questions": questions, "pairs": pairs}))
    wanted = [*verdicts[:5], "theirs"]
    for person in range(3):
        answers = {}
        for pair, label in zip(pairs, wanted):
            side = "same" if label == "tie" else "left" if pair["left"] == label else "right"
            answers[str(pair["number"])] = {"plot": "same" if person == 2 and pair["number"] < 2 else side}
        path = tmp_path / f"p{person}.json"
        path.write_text(json.dumps({"study": "x", "person": f"p{person}", "answers": answers}))
    return tmp_path


def test_judge_and_people(files):
    (found,) = judge_and_study(files / "judge.json", files / "key.json", sorted(files.glob("p*.json")))
    assert (found.aspect, found.question, found.stories) == ("engagement", "plot", 6)
    assert found.counts["first"] == {"first": 2, "second": 1, "tie": 0} and found.counts["tie"]["tie"] == 1
    expected = (3 * 2 + 2 * 3 + 1) / 36
    assert found.agreed == pytest.approx(5 / 6)
    assert found.kappa.mean == pytest.approx((5 / 6 - expected) / (1 - expected)) and found.kappa.low < found.kappa.mean
    # Two people who differ count as a tie.
    (two,) = judge_and_study(files / "judge.json", files / "key.json", [files / "p0.json", files / "p2.json"])
    assert two.counts["first"]["tie"] == 2


def test_the_page(files, capsys):
    answers = [str(path) for path in sorted(files.glob("p*.json"))]
    flags = [f"--judge={files / 'judge.json'}", f"--key={files / 'key.json'}", f"--out={files / 'out'}"]
    assert main(["agreement", *answers, *flags]) == 0
    assert "| engagement | plot | 0.7" in capsys.readouterr().out
    assert "Cohen" in (files / "out" / "index.html").read_text() and (files / "out" / "agreement.md").is_file()
    assert json.loads((files / "out" / "agreement.json").read_text())[0]["stories"] == 6


def test_nothing_in_common(files):
    people = [files / "p0.json"]
    (files / "old.json").write_text(json.dumps({"duels": []}))
    with pytest.raises(UserError, match="holds no verdicts by story"):
        judge_and_study(files / "old.json", files / "key.json", people)
    (files / "empty.json").write_text(json.dumps({"verdicts": []}))
    with pytest.raises(UserError, match="in common"):
        judge_and_study(files / "empty.json", files / "key.json", people)
