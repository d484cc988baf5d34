"""Scores in the layouts of ViStoryBench, MMIE and OpenING, read back."""

import json

import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.evaluate import main
from seedstory_jax.evaluation.field_scores import read_scores


def item(metric, submetric, story, shot, value, **rest):
    scope = {"level": "item", "story_id": story, "shot_index": shot, **rest.pop("scope", {})}
    return {
        "metric": {"name": metric, "submetric": submetric},
        "scope": scope,
        "value": value,
        "status": "complete",
        **rest,
    }


def write_run(root, mode, drop=0.0, time="20261126_120000", stories=("01", "02", "03"), shots=(1, 2, 4, 5)):
    """A run as the benchmark's result manager leaves it: csd, prompt_align, cids and aesthetic rows."""
    folder = root / "seedstory_jax" / mode / "en" / time
    rows = {"csd": [], "prompt_align": [], "cids": [], "aesthetic": []}
    for story in stories:
        for place, shot in enumerate(shots):
            base = 0.9 - drop * place
            rows["csd"].append(item("csd", "cross_csd", story, shot, base))
            rows["prompt_align"].append(item("prompt_align", "camera", story, str(shot), 4))
            for k, key in enumerate(("Tom", "Ada")):
                rows["cids"].append(item("cids", "cross_sim", story, shot, base - k / 10, scope={"character_key": key}))
            rows["aesthetic"].append(item("aesthetic", "aesthetic_score", story, place, 5.0 + place))
    for metric, own in rows.items():
        (folder / "metrics" / metric).mkdir(parents=True)
        text = "".join(json.dumps(row) + "\n" for row in own)
        (folder / "metrics" / metric / "items.jsonl").write_text(text)
    results = {
        s: {"metrics": {"self_csd": 0.5 + k / 10, "deep": {"er": 1}, "name": "x"}} for k, s in enumerate(stories)
    }
    (folder / "metrics" / "csd" / "story_results.json").write_text(json.dumps(results))
    (folder / "metrics" / "diversity").mkdir()
    (folder / "metrics" / "diversity" / "scores.json").write_text(json.dumps({"inception_score": 6.3}))
    about = {"method": "seedstory_jax", "mode": mode, "language": "en", "timestamp": time}
    (folder / "metadata.json").write_text(json.dumps({"run": about}))
    return folder


def export(root, mode, stories):
    folder = root / "seedstory_jax" / mode / "en" / "20261126_110000"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"stories": stories, "missing": ["03"]}))


def test_rows_become_records(tmp_path):
    write_run(tmp_path, "window", drop=0.1)
    found = read_scores([tmp_path])
    (first, *_), records = found.measured.records, {(r["story"], r["frame"]): r for r in found.measured.records}
    assert first["policy"] == "window" and len({r["frame"] for r in found.measured.records}) == 5
    assert records["01", 4]["cross_csd"] == pytest.approx(0.7) and records["01", 4]["cross_sim"] == pytest.approx(0.65)
    assert [records["01", shot].get("aesthetic_score") for shot in (1, 2, 3, 4)] == [5.0, 6.0, 7.0, 8.0]  # no manifest
    figures = found.measured.figures["window"]
    assert figures["self_csd"].mean == pytest.approx(0.6) and figures["self_csd"].low is not None
    assert figures["deep_er"].mean == 1 and figures["inception_score"].mean == 6.3 and "name" not in figures
    assert found.length == 6 and found.notes == []


def test_the_manifest_knows_which_shots_were_there(tmp_path):
    write_run(tmp_path / "results", "sink")
    shots = {"1": 1, "2": 2, "4": 3, "5": 4}
    export(tmp_path / "out", "sink", {"01": {"shots": shots, "missing": []}, "02": {"shots": shots, "missing": [6]}})
    found = read_scores([tmp_path / "results"], tmp_path / "out")
    records = {(r["story"], r["frame"]): r for r in found.measured.records}
    assert [records["01", shot]["aesthetic_score"] for shot in (1, 2, 4, 5)] == [5.0, 6.0, 7.0, 8.0]
    assert {story for story, _ in records} == {"01", "02"}  # nobody exported 03: its zeros count nowhere
    assert found.measured.figures["sink"]["self_csd"].mean == pytest.approx(0.55)
    assert found.notes == [
        "sink: 20 rows are of stories that were not exported: left out.",
        "sink: 1 stories and 1 turns of the others were missing.",
    ]


def test_newest_run_and_odd_rows(tmp_path):
    folder = write_run(tmp_path, "dense")
    write_run(tmp_path, "dense", drop=0.3, time="20250101_000000")
    odd = [
        item("csd", "cross_csd", "01", 1, 0.1),  # evaluated again: counts instead of the first
        item("csd", "cross_csd", "01", 2, None),
        item("csd", "cross_csd", "01", None, 0.5),
        item("csd", "cross_csd", "01", 2, 0.5, status="failed"),
        {"scope": 3},
    ]
    with (folder / "metrics" / "csd" / "items.jsonl").open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in odd) + '{"torn')
    found = read_scores([tmp_path])
    records = {(r["story"], r["frame"]): r["cross_csd"] for r in found.measured.records if "cross_csd" in r}
    assert records["01", 1] == 0.1 and records["01", 2] == 0.9
    assert found.notes[0] == "1 older runs are left out." and "5 rows are no complete scores" in found.notes[1]


def test_the_page(tmp_path, capsys):
    for mode, drop in (("window", 0.2), ("multimodal_sink", 0.02)):
        write_run(tmp_path / "results", mode, drop)
    assert main(["read-scores", str(tmp_path / "results"), f"--out={tmp_path / 'out'}"]) == 0
    (section,) = json.loads((tmp_path / "out" / "field_scores.json").read_text())["sections"]
    assert set(section["quality"]["curves"]) == {"window", "multimodal_sink"}
    assert section["quality"]["curves"]["window"]["cross_csd"]["3.0"]["mean"] == pytest.approx(0.8)
    page = (tmp_path / "out" / "index.html").read_text()
    assert (
        "style like the reference&#x27;s (CSD)" in page and "<svg" in page and "index.html" in capsys.readouterr().out
    )


def test_lists_of_results(tmp_path):
    feedback = "Good.\n### Score\n The score is {}"
    rows = [
        {"id": f"{kind}/{k}", "model": "m", "gpt_feedback": feedback.format(k)}
        for kind in ("SA", "MSR")
        for k in (4, 9)
    ]
    (tmp_path / "mmie.json").write_text(json.dumps([*rows, {"id": "SA/1", "model": "m", "gpt_feedback": "none"}]))
    pairs = [("A", "m", "n"), ("Tie(B)", "m", "n"), ("B", "n", "m"), ("Tie(A)", "n", "m")]
    rows = [
        {"data_id": str(k), "winner": won, "model_A": {"name": a}, "model_B": {"name": b}}
        for k, (won, a, b) in enumerate(pairs)
    ]
    (tmp_path / "opening.json").write_text(json.dumps(rows))
    figures = read_scores([tmp_path / "mmie.json", tmp_path / "opening.json"]).measured.figures
    assert {name: figures["m"][name].mean for name in figures["m"]} == {
        "mmie": 4,
        "mmie_SA": 4,
        "mmie_MSR": 4,
        "opening_win_rate": 0.5,
        "opening_win_rate_ties_divided": 0.5,
    }
    assert figures["n"]["opening_win_rate"].mean == 0 and figures["n"]["opening_win_rate_ties_divided"].mean == 0.5
    assert main(["read-scores", str(tmp_path / "mmie.json"), f"--out={tmp_path / 'out'}"]) == 0
    written = [path.read_text() for path in sorted((tmp_path / "out").glob("*.[mh]*"))]
    assert len(written) == 2 and all("mmie" in text for text in written)
    assert not any("| |  |" in text or "Quality" in text for text in written)  # nobody scored frames


def test_what_holds_no_scores(tmp_path):
    (tmp_path / "empty.json").write_text('[{"id": 1}]')
    with pytest.raises(UserError, match="expected MMIE's gpt_feedback"):
        read_scores([tmp_path / "empty.json"])
    with pytest.raises(UserError, match="holds no scores: give ViStoryBench's bench_results"):
        read_scores([tmp_path])
    with pytest.raises(UserError, match="does not exist"):
        read_scores([tmp_path / "nowhere"])
    write_run(tmp_path, "sink")
    with pytest.raises(UserError, match="--exports"):
        read_scores([tmp_path / "seedstory_jax"], tmp_path / "nowhere")
