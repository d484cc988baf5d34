import json
from collections import Counter

import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.evaluation.stories import StoryFolder
from seedstory_jax.evaluation.study import QUESTIONS, make_pairs, read_back, results_markdown, write_key


def systems(*names: str, count: int = 20) -> dict:
    return {name: [StoryFolder(f"s{n}", (f"{name} {n}",), (None,)) for n in range(count)] for name in names}


def answers_of(pairs, better: str, person: str, study: str = "x") -> dict:
    given = {str(p.number): dict.fromkeys(QUESTIONS, "left" if p.left == better else "right") for p in pairs}
    return {"study": study, "person": person, "answers": given}


def test_pairs_are_blind_and_balanced():
    pairs = make_pairs(systems("a", "b", "c"), seed=1)
    assert len(pairs) == 60 and [pair.number for pair in pairs] == list(range(60))
    sides = Counter(pair.left for pair in pairs if {pair.left, pair.right} == {"a", "b"})
    assert 4 <= sides["a"] <= 16
    assert [pair.story for pair in pairs] != sorted(pair.story for pair in pairs)
    assert pairs == make_pairs(systems("a", "b", "c"), seed=1) != make_pairs(systems("a", "b", "c"), seed=2)
    assert len(make_pairs(systems("a", "b"), limit=5)) == 5
    with pytest.raises(UserError, match="two systems"):
        make_pairs(systems("a"))


def test_answers_come_back_as_table_3(tmp_path):
    pairs = make_pairs(systems("ours", "theirs"))
    write_key(tmp_path / "key.json", pairs, "x", QUESTIONS)
    files = []
    for person, better in (("p1", "ours"), ("p2", "ours"), ("p3", "theirs"), ("p4", "ours")):
        files.append(tmp_path / f"{person}.json")
        files[-1].write_text(json.dumps(answers_of(pairs, better, person)))
    results = read_back(tmp_path / "key.json", files)
    assert [result.question for result in results] == list(QUESTIONS)
    for result in results:
        assert result.systems == ("ours", "theirs") and result.people == 4
        assert (result.first.mean, result.second.mean, result.same.mean) == (0.75, 0.25, 0.0)
        assert result.first.low < 0.75 <= result.first.high and result.first.count == 80
    assert "| ours against theirs | Which story is more interesting to read? | 0.75 [" in results_markdown(results)


def test_one_person_is_resampled_over_stories(tmp_path):
    pairs = make_pairs(systems("a", "b", count=6))
    write_key(tmp_path / "key.json", pairs, "x", QUESTIONS)
    answers = answers_of(pairs, "a", "me")
    answers["answers"][str(pairs[0].number)] = {"style": "same"}
    (tmp_path / "me.json").write_text(json.dumps(answers))
    style, *others = read_back(tmp_path / "key.json", [tmp_path / "me.json"])
    assert style.same.mean == pytest.approx(1 / 6) and style.same.high > style.same.mean
    assert others[0].first.count == 5


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("{", "cannot be read"),
        ("[]", "no file of a study"),
        ('{"study": "y", "person": "p", "answers": {}}', "answers study 'y'"),
        ('{"study": "x", "person": "p", "answers": []}', "must be an object"),
        ('{"study": "x", "person": "p", "answers": {"99": {}}}', "no answer of this study"),
        ('{"study": "x", "person": "p", "answers": {"0": {"style": "up"}}}', "no answer of this study"),
        ('{"study": "x", "person": "p", "answers": {"0": {"taste": "left"}}}', "no answer of this study"),
    ],
)
def test_files_that_are_no_answers(tmp_path, text, complaint):
    write_key(tmp_path / "key.json", make_pairs(systems("a", "b", count=2)), "x", QUESTIONS)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=complaint):
        read_back(tmp_path / "key.json", [tmp_path / "a.json"])


def test_nobody_counts_twice(tmp_path):
    pairs = make_pairs(systems("a", "b", count=2))
    write_key(tmp_path / "key.json", pairs, "x", QUESTIONS)
    for name in ("1.json", "2.json"):
        (tmp_path / name).write_text(json.dumps(answers_of(pairs, "a", "same person")))
    with pytest.raises(UserError, match="second time"):
        read_back(tmp_path / "key.json", [tmp_path / "1.json", tmp_path / "2.json"])
    with pytest.raises(UserError, match="no answers"):
        read_back(tmp_path / "key.json", [])


@pytest.mark.parametrize(
    "key",
    [
        {"pairs": [{"number": 0}]},
        {"pairs": [{"number": "x", "story": "s", "left": "a", "right": "b"}]},
        {"pairs": [{"number": 0, "story": "s", "left": ["a"], "right": "b"}]},
        {"pairs": [{"number": 0, "story": "s", "left": "a", "right": "b"}] * 2},
        {"pairs": 7},
        {"questions": ["q"]},
        {"questions": {"q": 7}},
    ],
)
def test_keys_that_are_none(tmp_path, key):
    (tmp_path / "key.json").write_text(json.dumps({"study": "s", "questions": {}, "pairs": [], **key}))
    with pytest.raises(UserError, match="is no key of a study"):
        read_back(tmp_path / "key.json", [])


@pytest.mark.parametrize("person", [None, "", 7, ["a"], {}])
def test_answers_of_nobody(tmp_path, person):
    write_key(tmp_path / "key.json", [], "s", QUESTIONS)
    (tmp_path / "a.json").write_text(json.dumps({"study": "s", "person": person, "answers": {}}))
    with pytest.raises(UserError, match="the person is no text"):
        read_back(tmp_path / "key.json", [tmp_path / "a.json"])
