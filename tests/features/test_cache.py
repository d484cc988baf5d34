import dataclasses
import json
import pickle
import shutil

import jax
import numpy as np
import pytest

from seedstory_jax.checkpoints.load import load_parameters
from seedstory_jax.config import STAGES as NAMES
from seedstory_jax.config import to_dict
from seedstory_jax.data.pipeline import HOST_FIELDS
from seedstory_jax.data.sources import JoinedSource, open_source
from seedstory_jax.errors import UserError
from seedstory_jax.features.cache import CachedEncodings, Encoder, write_cache
from seedstory_jax.features.run_data import RunData
from seedstory_jax.storystream.__main__ import main as storystream
from seedstory_jax.training.stages import STAGES
from seedstory_jax.training.train import check_or_write_config


@pytest.fixture(scope="module")
def config(micro):
    return micro


@pytest.fixture(scope="module")
def cache(trained_workdir, tmp_path_factory):
    """What the command wrote of the trained encoders, in every kind, over all stories."""
    out = tmp_path_factory.mktemp("features") / "out"
    flags = [f"--workdir={trained_workdir}", f"--out={out}", "--kinds=squash,crop,moments"]
    assert storystream(["features", str(trained_workdir / "world"), *flags]) == 0
    return out


def with_features(config, trained_workdir, tmp_path, features):
    """The config, and a workdir with what the earlier stages left, but no cache."""
    workdir = tmp_path / "run"
    ignored = shutil.ignore_patterns("cache", "tensorboard", "story", "adapt", "detokenizer")
    shutil.copytree(trained_workdir, workdir, ignore=ignored)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, features=str(features))), workdir


def first_loss(config, trained_workdir, workdir, name):
    """The loss of a stage's first batch under its own parameters."""
    run_data = RunData(config, workdir)
    parameters = load_parameters(config.model, STAGES[name].needs, trained_workdir, seed=0, stages=NAMES[:-1])
    if config.data.features == "online":
        vit = {key: value for key, value in parameters.items() if key.startswith("vit.")}
        parameters |= {key: value.astype(config.model.frozen_dtype) for key, value in vit.items()}
    stage = STAGES[name].make(config, run_data, parameters)
    batch = {key: value for key, value in stage.batch(0).items() if key not in HOST_FIELDS}
    return float(jax.jit(stage.loss)(stage.parameters, batch, jax.random.key(3))[0]), batch


@pytest.mark.parametrize("name", ["detokenizer", "story", "adapt"])
def test_losses_with_the_cache_are_those_without(config, trained_workdir, cache, tmp_path, name):
    cached, workdir = with_features(config, trained_workdir, tmp_path, cache)
    online = dataclasses.replace(cached, data=dataclasses.replace(cached.data, features="online"))
    wanted, pictures = first_loss(online, trained_workdir, workdir, name)
    found, rows = first_loss(cached, trained_workdir, workdir, name)
    assert not (workdir / "cache").exists()
    assert {array.dtype.name for array in pictures.values() if array.ndim == 5} <= {"uint8"}
    assert any(array.dtype.name == "bfloat16" for array in rows.values())
    assert found == pytest.approx(wanted, rel=2**-8)


def test_each_kind_has_its_own_transform_and_rows(config, cache):
    facts = {kind: json.loads((cache / f"{kind}.json").read_text()) for kind in ("squash", "crop", "moments")}
    assert facts["squash"]["weights"] == facts["crop"]["weights"] != facts["moments"]["weights"]
    assert len({facts[kind]["transform"] for kind in facts}) == 3
    assert facts["squash"]["dtype"] == "bfloat16"
    assert len(set(facts["squash"]["images"])) == facts["squash"]["shape"][0] == 30 * 6


def test_rows_are_found_by_the_pictures_names(config, trained_workdir, cache):
    """Whatever part of the stories is read, in whatever order; worker processes get no copy of the arrays."""
    encoder = Encoder(config, "squash")
    world = trained_workdir / "world"
    whole = CachedEncodings(encoder, JoinedSource([open_source(world, world)]), [cache])
    part = JoinedSource([open_source(world / "val.jsonl", world), open_source(world / "train.jsonl", world)])
    rows = CachedEncodings(encoder, part, [cache, cache])
    names = json.loads((cache / "squash.json").read_text())["images"]
    for place in (0, 3, 61, 100):
        story, turn = part.at(place)
        row = names.index(part.stories[story].images[turn])
        assert (rows.read(np.array([[place]]))[0, 0] == whole.read(np.array(row))).all()
    assert len(pickle.dumps(rows)) < 100_000
    assert (pickle.loads(pickle.dumps(rows)).read(np.arange(3)) == rows.read(np.arange(3))).all()


def test_a_stale_cache_is_refused_with_both_hashes_and_the_command(config, trained_workdir, cache, tmp_path):
    changed, workdir = with_features(config, trained_workdir, tmp_path, cache)
    parameters = load_parameters(config.model, ("vit",), trained_workdir, seed=0)
    old = json.loads((cache / "squash.json").read_text())["weights"]
    other = {name: value + 0.5 for name, value in parameters.items()}
    new = Encoder(config, "squash").stamp(other)["weights"]
    with pytest.raises(UserError, match=rf"vit's weights has the hash {old}, this run's {new}.*data features"):
        RunData(changed, workdir).encodings("squash", other)
    resampled = dataclasses.replace(changed, data=dataclasses.replace(changed.data, resample="bilinear"))
    with pytest.raises(UserError, match=r"vit's transform has the hash .*--kinds=squash"):
        RunData(resampled, workdir).encodings("squash", parameters)
    empty = dataclasses.replace(changed, data=dataclasses.replace(changed.data, features=str(tmp_path)))
    with pytest.raises(UserError, match=r"holds no squash features"):
        RunData(empty, workdir).encodings("squash", parameters)


def test_pictures_that_cannot_be_read_are_told_and_replaced(config, trained_workdir, tmp_path):
    world = tmp_path / "world"
    shutil.copytree(trained_workdir / "world", world)
    source = open_source(world / "train.jsonl", world)
    (world / source.stories[1].images[4]).write_bytes(b"no picture")
    encoder = Encoder(config, "squash")
    parameters = load_parameters(config.model, ("vit",), trained_workdir, seed=0)
    with pytest.warns(UserWarning, match="1 pictures cannot be read and have no features"):
        write_cache(encoder, parameters, source, tmp_path / "out", dtype="float32")
    rows = CachedEncodings(encoder, JoinedSource([source]), [tmp_path / "out"])
    with pytest.raises(UserError, match="could not be read when its squash features were made"):
        rows.read(np.array([33, 34]))

    from seedstory_jax.training.stages.detokenizer import PictureBatches

    batch = PictureBatches(count=36, size=24, seed=0, rows={"features": rows}, max_bad=5)
    seen = [batch(step) for step in range(4)]
    assert any(note for fields in seen for note in fields["unreadable"])
    assert all(np.isfinite(fields["features"]).all() for fields in seen)
    some = batch(1, np.array([2, 9]))
    assert (some["features"] == seen[1]["features"][[2, 9]]).all()
    with pytest.raises(UserError, match=r"1 pictures cannot be read, 0 are allowed"):
        write_cache(encoder, parameters, source, tmp_path / "none", dtype="float32", max_bad=0)


def test_pictures_decoded_for_one_use_serve_the_others(config, trained_workdir, tmp_path, monkeypatch):
    workdir = with_features(config, trained_workdir, tmp_path, "")[1]
    parameters = load_parameters(config.model, ("vit", "vae"), trained_workdir, seed=0)
    kinds = ("crop", "moments")
    wanted = {kind: RunData(config, workdir).encodings(kind, parameters).read(np.arange(9)) for kind in kinds}
    shutil.rmtree(workdir / "cache")
    run_data = RunData(config, workdir)
    run_data.pictures(run_data.pixel_transform)

    def picture(self, story, turn):
        raise RuntimeError("decoded again")

    monkeypatch.setattr(JoinedSource, "picture", picture)
    for kind in kinds:
        assert (run_data.encodings(kind, parameters).read(np.arange(9)) == wanted[kind]).all()
    with pytest.raises(RuntimeError, match="decoded again"):  # other pixels: squashed, not cropped
        run_data.encodings("squash", parameters)


def test_workdir_config_from_before_a_key_was_there_is_no_other_config(config, tmp_path):
    old = to_dict(config)
    del old["data"]["features"], old["watch"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    check_or_write_config(config, tmp_path)
