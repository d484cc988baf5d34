import json

import numpy as np
import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.parity import runner


def echo(results):
    return {"thing": lambda fixture: results}


def f4(*values):
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("ours", "reference", "max_abs", "max_rel", "ok"),
    [
        (f4(3, 4), f4(3, 4), 0, 0, True),
        (f4(3, 4.001), f4(3, 4), 0.001, 0.0002, False),
        (f4(1e-5, 0), f4(0, 0), 1e-5, 1e-5, True),  # an all-zero reference: the absolute difference
        (f4(np.nan, 4), f4(3, 4), np.inf, np.inf, False),
        (f4(3, 4, 5), f4(3, 4), np.inf, np.inf, False),
        (np.array([1, 2]), np.array([1, 3]), 1, 10**-0.5, False),
        (np.array(True), np.array(True), 0, 0, True),
    ],
)
def test_differences(ours, reference, max_abs, max_rel, ok):
    result = runner.compare(ours, reference, 1e-4)
    assert result.max_abs == pytest.approx(max_abs, rel=1e-3)
    assert result.max_rel == pytest.approx(max_rel, rel=1e-3)
    assert result.ok is ok


def test_integers_are_exact():
    assert runner.compare(np.array([1, 2]), np.array([1, 2]), 1e-4).tolerance == 0


@pytest.mark.parametrize(
    ("kind", "array", "tolerance"),
    [
        ("qwen_vit", "output", 1e-4),
        ("schedulers", "sigmas_10", 1e-6),
        ("sdxl_adapter", "gen:image", 1e-3),
        ("sdxl_adapter", "train:total_loss", 1e-4),
    ],
)
def test_tolerances(kind, array, tolerance):
    assert runner.tolerance_of(kind, array) == tolerance


def test_an_unknown_kind_is_an_error_and_the_others_run(write_fixture):
    write_fixture("unheard_of", {"y": np.ones(3)})
    folder = write_fixture("thing", {"y": np.ones(3)}).parent
    results = list(runner.run_all(folder, echo({"y": np.ones(3)})))
    assert [(result.name, result.ok) for result in results] == [("thing", True), ("unheard_of", False)]
    assert "unknown kind of fixture 'unheard_of'" in results[1].error


def test_what_breaks_is_one_line(write_fixture):
    def broken(fixture):
        raise ValueError("first\nsecond")

    (result,) = runner.run_all(write_fixture("thing", {"y": np.ones(3)}), {"thing": broken})
    assert result.error == "ValueError: first" and not result.ok
    assert "\n" not in runner.table_row(result)


@pytest.mark.parametrize("missing", ["config.json", "outputs.npz"])
def test_a_fixture_without_its_files_is_an_error(write_fixture, missing):
    folder = write_fixture("thing", {"y": np.ones(3)})
    (folder / missing).unlink()
    with pytest.raises(UserError, match="cannot be read"):
        runner.run_fixture(folder, echo({"y": np.ones(3)}))


def test_an_array_that_the_run_does_not_give_is_an_error(write_fixture):
    folder = write_fixture("thing", {"y": np.ones(3), "z": np.ones(1)})
    (result,) = runner.run_all(folder, echo({"y": np.ones(3)}))
    assert "no array 'z'" in result.error
    assert not result.ok


def test_of_the_sink_script_only_the_rule_counts(write_fixture):
    names = ["a:evict0:nominal_kept", "a:evict0:recomputed_window", "a:published:evict0:sink"]
    folder = write_fixture("sink_indices", {name: np.arange(3) for name in names})
    result = runner.run_fixture(folder, {"sink_indices": lambda _: {name: np.arange(3) for name in names[:2]}})
    assert list(result.arrays) == names[:2]
    assert result.ok


def test_every_spelling_of_the_weights_is_run(write_fixture):
    folder = write_fixture("thing", {"y": f4(1)}, weights={"w": f4(1)}, weights_peft_new={"w": f4(2)})
    result = runner.run_fixture(folder, {"thing": lambda fixture: {"y": fixture.weights["w"]}})
    assert {name: array.ok for name, array in result.arrays.items()} == {"y": True, "y@weights_peft_new": False}


def test_the_command_prints_json_and_says_whether_all_is_well(write_fixture, tmp_path, capsys, monkeypatch):
    folder = str(write_fixture("thing", {"y": f4(1, 2)}).parent)
    monkeypatch.setattr(runner, "KINDS", echo({"y": f4(1, 2)}))
    assert runner.main([folder, "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert {"name": "thing", "ok": True, "max_abs": 0.0, "max_rel": 0.0, "tolerance": 1e-4}.items() <= record.items()
    assert record["arrays"]["y"]["ok"]
    monkeypatch.setattr(runner, "KINDS", echo({"y": f4(1, np.nan)}))
    assert runner.main([folder, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["max_rel"] is None
    assert runner.main([folder]) == 1
    assert "OFF" in capsys.readouterr().out


def test_the_command_refuses_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        runner.main([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="holds no fixture folder"):
        runner.main([str(tmp_path)])
    with pytest.raises(UserError, match="required: DIR"):
        runner.main([])


def test_every_kind_has_its_fixture_here(fixtures_dir):
    kinds = {"llama_lora", "lvlm_forward", "lvlm_generate", "pos_embed_interp", "qwen_vit", "resampler_in",
             "resampler_in_kvproj", "resampler_out", "resampler_xl_v2", "schedulers", "sdxl_adapter", "sdxl_unet",
             "sdxl_vae", "sink_indices", "story_sample"}  # fmt: skip
    assert set(runner.KINDS) == kinds
    assert {folder.name for folder in fixtures_dir.iterdir() if folder.is_dir()} == kinds


def test_one_fixture_alone(fixtures_dir):
    (result,) = runner.run_all(fixtures_dir / "pos_embed_interp")
    assert result.ok
