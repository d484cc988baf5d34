import dataclasses
import os
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seedstory_jax.checkpoints.digest import digest_of
from seedstory_jax.checkpoints.layout import latest_step
from seedstory_jax.checkpoints.stage import Checkpoints
from seedstory_jax.config import MeshConfig, OptimizerConfig, StageConfig
from seedstory_jax.errors import UserError
from seedstory_jax.sharding import make_mesh
from seedstory_jax.training.loop import run_stage
from seedstory_jax.training.stage import Stage


def small_stage(steps=3, frozen=2.0, size=4, **settings) -> Stage:
    """Two parameters, one of which trains."""

    def loss(parameters, batch, key):
        again = parameters["story.norm.scale"] * parameters["story.llama.norm.scale"]
        return jnp.mean(jnp.square(again - batch["x"])), {}

    return Stage(
        name="story",
        config=StageConfig(steps=steps, save_every=1, optimizer=OptimizerConfig(warmup_steps=0), **settings),
        parameters={"story.norm.scale": jnp.ones(size), "story.llama.norm.scale": jnp.full(size, frozen)},
        trainable=lambda name: name == "story.norm.scale",
        loss=loss,
        batch=lambda step, rows=slice(None): {"x": np.full((2, size), step, np.float32)[rows]},
        batch_size=2,
        facts={"base": "weights"},
    )


def run(stage, workdir):
    workdir.mkdir(exist_ok=True)
    return run_stage(stage, workdir, seed=0, mesh=make_mesh(MeshConfig()))


def test_other_frozen_weights_are_refused(tmp_path):
    run(small_stage(steps=2), tmp_path / "run")
    run(small_stage(steps=3), tmp_path / "run")
    old = digest_of({"story.llama.norm.scale": jnp.full(4, 2.0)})
    new = digest_of({"story.llama.norm.scale": jnp.full(4, 2.5)})
    with pytest.raises(UserError, match=rf"hash {old} \(model.base 'weights'\).* have {new}.*another --workdir"):
        run(small_stage(steps=4, frozen=2.5), tmp_path / "run")


def test_the_hash_sees_every_bit_and_its_place():
    values = jnp.arange(12, dtype=jnp.bfloat16).reshape(3, 4)
    hashes = {
        digest_of({"a": values}),
        digest_of({"b": values}),
        digest_of({"a": values.T.reshape(3, 4)}),
        digest_of({"a": values.at[2, 3].set(11.0625)}),
        digest_of({"a": values.astype(jnp.float32)}),
    }
    assert len(hashes) == 5
    assert digest_of({"a": jax.device_put(values)}) == digest_of({"a": values})


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 600 kB; skipped where nothing may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the threads that failed
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_says_so_and_older_checkpoints_stay_good(tiny_disk):
    checkpoints = Checkpoints(tiny_disk / "story", keep=5)
    trained, state = {"a": jnp.arange(20_000.0)}, {"m": jnp.ones(3)}
    checkpoints.save(1, trained, state, {"step": 1})
    checkpoints.wait()
    (tiny_disk / "other").write_bytes(bytes(max(0, shutil.disk_usage(tiny_disk).free - 40_000)))
    noise = {"a": jnp.asarray(np.random.default_rng(0).normal(size=20_000), jnp.float32)}
    with pytest.raises(UserError, match=r"disk of .* is full .*step 2 was not written; those of steps \[1\] are good"):
        checkpoints.save(2, noise, state, {"step": 2})
        checkpoints.wait()
    assert latest_step(tiny_disk / "story") == 1
    (tiny_disk / "other").unlink()
    again = Checkpoints(tiny_disk / "story", keep=5)
    step, restored, _, facts = again.restore(trained, state)
    assert step == facts["step"] == 1 and (restored["a"] == trained["a"]).all()
    again.close()


@pytest.mark.parametrize("where", ["save", "wait_until_finished"])
def test_a_full_disk_is_known_in_whatever_orbax_raises(tmp_path, monkeypatch, where):
    """In a thread, wrapped, as tensorstore says it: without a disk to fill."""
    checkpoints = Checkpoints(tmp_path / "story")
    checkpoints.save(1, {"a": jnp.ones(3)}, {"m": jnp.ones(3)}, {})
    checkpoints.wait()

    def full(*_, **__):
        try:
            raise ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device [source locations=...]")
        except ValueError as error:
            raise RuntimeError("commit failed") from error

    monkeypatch.setattr(checkpoints._manager, where, full)
    with pytest.raises(UserError, match=r"is full .* step 2 was not written; those of steps \[1"):
        checkpoints.save(2, {"a": jnp.ones(3)}, {"m": jnp.ones(3)}, {})
        checkpoints.wait()
    monkeypatch.undo()
    checkpoints.close()


def test_worker_processes_change_nothing(story_only, undisturbed, rows_of, tmp_path):
    from seedstory_jax.training.train import train

    config = dataclasses.replace(story_only, data=dataclasses.replace(story_only.data, workers=2))
    train(config, tmp_path / "run")
    assert rows_of(tmp_path / "run") == undisturbed
