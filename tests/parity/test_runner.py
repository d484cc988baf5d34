import json
import shutil

import numpy as np
import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.parity import runner as parity


def write_fixture(folder, outputs, config=None, inputs=None):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or {}))
    np.savez(folder / "inputs.npz", **(inputs or {"x": np.ones(2)}))
    np.savez(folder / "outputs.npz", **outputs)


def echo(results):
    return {"thing": lambda folder, config, inputs, weights: results}


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
    result = parity.compare(ours, reference, 1e-4)
    assert result.max_abs == pytest.approx(max_abs, rel=1e-3)
    assert result.max_rel == pytest.approx(max_rel, rel=1e-3)
    assert result.ok is ok


def test_integers_are_exact():
    assert parity.compare(np.array([1, 2]), np.array([1, 2]), 1e-4).tolerance == 0


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
    assert parity.tolerance_of(kind, array) == tolerance


def test_an_unknown_kind_is_an_error_and_the_others_run(tmp_path):
    write_fixture(tmp_path / "thing", {"y": np.ones(3)})
    write_fixture(tmp_path / "unheard_of", {"y": np.ones(3)})
    results = list(parity.run_all(tmp_path, echo({"y": np.ones(3)})))
    assert [(result.name, result.ok) for result in results] == [("thing", True), ("unheard_of", False)]
    assert "unknown kind of fixture 'unheard_of'" in results[1].error


@pytest.mark.parametrize("missing", ["config.json", "outputs.npz"])
def test_a_fixture_without_its_files_is_an_error(tmp_path, missing):
    write_fixture(tmp_path / "thing", {"y": np.ones(3)})
    (tmp_path / "thing" / missing).unlink()
    folder = tmp_path / "thing"
    with pytest.raises(UserError, match="cannot be read"):
        parity.run_fixture(folder, echo({"y": np.ones(3)}))


def test_an_array_that_the_run_does_not_give_is_an_error(tmp_path):
    write_fixture(tmp_path / "thing", {"y": np.ones(3), "z": np.ones(1)})
    (result,) = parity.run_all(tmp_path, echo({"y": np.ones(3)}))
    assert "no array 'z'" in result.error
    assert not result.ok


def test_of_the_sink_script_only_the_rule_counts(tmp_path):
    names = ["a:evict0:nominal_kept", "a:evict0:recomputed_window", "a:published:evict0:sink"]
    write_fixture(tmp_path / "sink_indices", {name: np.arange(3) for name in names})
    run = {"sink_indices": lambda *_: {name: np.arange(3) for name in names[:2]}}
    result = parity.run_fixture(tmp_path / "sink_indices", run)
    assert list(result.arrays) == names[:2]
    assert result.ok


def test_every_spelling_of_the_weights_is_run(tmp_path):
    from safetensors.numpy import save_file

    write_fixture(tmp_path / "thing", {"y": f4(1)})
    for name, value in (("weights", 1), ("weights_peft_new", 2)):
        save_file({"w": f4(value)}, tmp_path / "thing" / f"{name}.safetensors")
    result = parity.run_fixture(tmp_path / "thing", {"thing": lambda f, c, i, weights: {"y": weights["w"]}})
    assert {name: array.ok for name, array in result.arrays.items()} == {"y": True, "y@weights_peft_new": False}


def test_the_command_prints_json_and_says_whether_all_is_well(tmp_path, capsys, monkeypatch):
    write_fixture(tmp_path / "in" / "thing", {"y": f4(1, 2)})
    monkeypatch.setattr(parity, "known_kinds", lambda: echo({"y": f4(1, 2)}))
    assert parity.main([str(tmp_path / "in"), "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert {"name": "thing", "ok": True, "max_abs": 0.0, "max_rel": 0.0, "tolerance": 1e-4}.items() <= record.items()
    assert record["arrays"]["y"]["ok"]
    monkeypatch.setattr(parity, "known_kinds", lambda: echo({"y": f4(1, np.nan)}))
    assert parity.main([str(tmp_path / "in"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["max_rel"] is None
    assert parity.main([str(tmp_path / "in")]) == 1
    assert "OFF" in capsys.readouterr().out
    with pytest.raises(UserError, match="no folder"):
        parity.main([str(tmp_path / "nowhere")])


def test_all_kinds_are_known(fixtures_dir):
    kinds = {"llama_lora", "lvlm_forward", "lvlm_generate", "pos_embed_interp", "qwen_vit", "resampler_in",
             "resampler_in_kvproj", "resampler_out", "resampler_xl_v2", "schedulers", "sdxl_adapter", "sdxl_unet",
             "sdxl_vae", "sink_indices", "story_sample"}  # fmt: skip
    assert set(parity.known_kinds()) == kinds


@pytest.mark.parametrize(
    "kind", ["pos_embed_interp", "resampler_in", "resampler_in_kvproj", "resampler_out", "qwen_vit"]
)
def test_vision(fixtures_dir, kind):
    result = parity.run_fixture(fixtures_dir / kind, parity.known_kinds())
    assert result.ok, parity.table_row(result)


def test_one_fixture_alone(fixtures_dir, tmp_path):
    shutil.copytree(fixtures_dir / "pos_embed_interp", tmp_path / "pos_embed_interp")
    (result,) = parity.run_all(tmp_path / "pos_embed_interp", parity.known_kinds())
    assert result.ok
