import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from seedstory_jax.checkpoints.layout import checkpoint_folder, latest_step
from seedstory_jax.checkpoints.readers import check_digest
from seedstory_jax.config import to_dict
from seedstory_jax.errors import UserError
from seedstory_jax.training.loop import Interrupted
from seedstory_jax.training.stages import STAGES
from seedstory_jax.training.train import train

ROOT = Path(__file__).resolve().parents[2]


def test_every_stage_leaves_a_checkpoint_metrics_and_pictures(trained_workdir, rows_of):
    steps = {"vae": 2, "vit": 2, "detokenizer": 2, "story": 6, "adapt": 2}
    for stage, count in steps.items():
        assert latest_step(trained_workdir / stage) == count
        assert [row["step"] for row in rows_of(trained_workdir, stage)] == list(range(1, count + 1))
    for stage in ("vae", "vit", "detokenizer", "adapt"):
        assert list((trained_workdir / stage / "previews").glob("*.png"))
    assert list((trained_workdir / "tensorboard" / "story").iterdir())


def test_run_again_does_nothing_more(trained_workdir, micro):
    before = (trained_workdir / "metrics.jsonl").read_bytes()
    train(micro, trained_workdir)
    assert (trained_workdir / "metrics.jsonl").read_bytes() == before


def test_another_config_is_refused_with_its_keys(trained_workdir, micro):
    other = dataclasses.replace(micro, story=dataclasses.replace(micro.story, steps=7))
    with pytest.raises(UserError, match=r"begun with another config.*story\.steps: 6 -> 7"):
        train(other, trained_workdir)
    more_checkpoints = dataclasses.replace(micro, story=dataclasses.replace(micro.story, keep=3))
    train(more_checkpoints, trained_workdir)


def test_a_stage_says_which_stage_it_needs(tmp_path, micro):
    config = dataclasses.replace(micro, stages=("story",))
    with pytest.raises(UserError, match=r"no trained vit.*the stage that trains it \(vit\).*init_from=none"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize("seconds_after_first_line", [0.0, 0.3])
def test_killed_and_started_again_gives_the_same_metrics(
    undisturbed, rows_of, tmp_path, story_only, seconds_after_first_line
):
    config = story_only
    script = tmp_path / "run.py"
    script.write_text(
        "import json, sys\nfrom pathlib import Path\nfrom seedstory_jax.config import Config, from_dict\n"
        "from seedstory_jax.training.train import train\n"
        "train(from_dict(Config, json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2]))\n"
    )
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    workdir = tmp_path / "run"
    command = [sys.executable, str(script), str(tmp_path / "config.json"), str(workdir)]
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # shared, and not safe from SIGKILL
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    metrics = workdir / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.02)
    time.sleep(seconds_after_first_line)
    process.send_signal(signal.SIGKILL)
    process.wait()
    train(config, workdir)
    assert rows_of(workdir) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_says_how_to_go_on(number, undisturbed, rows_of, tmp_path, story_only, monkeypatch):
    config, workdir = story_only, tmp_path / "run"
    make = STAGES["story"].make

    def signalling(*arguments):
        stage = make(*arguments)

        def batch(step):
            if step == 2:  # from inside the run, so that no timing matters
                os.kill(os.getpid(), number)
            return stage.batch(step)

        return dataclasses.replace(stage, batch=batch)

    monkeypatch.setitem(STAGES, "story", dataclasses.replace(STAGES["story"], make=signalling))
    with pytest.raises(Interrupted, match="saved at step"):
        train(config, workdir)
    monkeypatch.undo()
    step = latest_step(workdir / "story")
    assert 0 < step < config.story.steps
    assert rows_of(workdir) == undisturbed[:step]
    train(config, workdir)
    assert rows_of(workdir) == undisturbed


@pytest.mark.parametrize("damage", ["half of every file", "one flipped bit"])
def test_a_damaged_newest_checkpoint_is_named_and_trained_again(
    damage, undisturbed, rows_of, tmp_path, story_only, caplog
):
    config, workdir = story_only, tmp_path / "run"
    train(config, workdir)
    newest = checkpoint_folder(workdir / "story", 6)
    if damage == "one flipped bit":
        flip_a_bit(newest / "trained")
    else:
        for file in newest.rglob("*"):
            if file.is_file():
                file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    shutil.rmtree(workdir / "tensorboard")
    train(config, workdir)
    assert "damaged checkpoint" in caplog.text and "step 6" in caplog.text and "going on from step 4" in caplog.text
    assert rows_of(workdir) == undisturbed
    check_digest(checkpoint_folder(workdir / "story", 6))


def flip_a_bit(item):
    """Changes one bit of the largest file of stored arrays, which neither the format nor tensorstore notices."""
    file = max((path for path in item.rglob("d/*") if path.is_file()), key=lambda path: path.stat().st_size)
    stored = bytearray(file.read_bytes())
    stored[len(stored) // 2] ^= 4
    file.write_bytes(stored)


def test_loss_that_is_not_finite_stops_the_run(tmp_path, micro, story_only):
    fast = dataclasses.replace(micro.story.optimizer, learning_rate=float("inf"), warmup_steps=0)
    config = story_only
    config = dataclasses.replace(config, story=dataclasses.replace(config.story, optimizer=fast))
    with pytest.raises(UserError, match=r"stage story, step \d+: loss .*last good checkpoint"):
        train(config, tmp_path / "run")


def test_accumulation_equals_the_large_batch(micro):
    import jax
    import jax.numpy as jnp
    import optax

    from seedstory_jax.training.step import train_step

    def loss(parameters, batch, key):
        value = jnp.mean(jnp.square(batch @ parameters["w"] - 1.0))
        return value, {"again": value}

    parameters = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)}
    batch = np.random.default_rng(1).normal(size=(8, 5)).astype(np.float32)
    optimizer = optax.adamw(1e-2)
    state = optimizer.init(parameters)
    key = jax.random.key(0)
    whole = train_step(loss, optimizer, 1, parameters, state, {}, batch, key)
    parts = train_step(loss, optimizer, 4, parameters, state, {}, batch.reshape(4, 2, 5), key)
    np.testing.assert_allclose(whole[0]["w"], parts[0]["w"], rtol=1e-5)
    np.testing.assert_allclose(whole[2]["loss"], parts[2]["loss"], rtol=1e-5)
