import dataclasses
import json
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from seedstory_jax.checkpoints.layout import latest_step
from seedstory_jax.checkpoints.load import load_parameters
from seedstory_jax.config import StageConfig, WatchConfig
from seedstory_jax.errors import UserError
from seedstory_jax.pipeline import load
from seedstory_jax.training.metrics import MetricsLog, StepSize, Throughput, peak_flops
from seedstory_jax.training.step import train_step
from seedstory_jax.training.train import train


def test_peaks_are_known_by_the_names_that_jax_gives():
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("TPU v5p") == peak_flops("TPU v5") == 459e12
    assert peak_flops("NVIDIA H200") == peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("cpu") is None


def test_rates_leave_out_the_first_step_and_pauses():
    rates = Throughput(StepSize(images=10, tokens=400, flops=int(1e12)), devices=2, peak=1e12)
    assert rates.step(now=0.0) == {}
    assert rates.step(0.5, now=2.0) == pytest.approx({"images_per_second": 5, "tokens_per_second": 100, "mfu": 0.25})
    rates.pause()
    assert rates.step(0.5, now=100.0) == {}
    assert rates.step(1.0, now=102.0)["tokens_per_second"] == pytest.approx(200)
    unknown = Throughput(StepSize(images=1, flops=5), devices=1, peak=None)
    unknown.step(now=0.0)
    assert unknown.step(now=1.0) == {"images_per_second": 1.0}


def test_wandb_that_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb_project is 'stories', but wandb is not installed"):
        MetricsLog(tmp_path, "story", 0, WatchConfig(wandb_project="stories"))


def test_wandb_gets_numbers_rates_and_pictures(tmp_path, monkeypatch):
    seen = []

    class Run:
        def log(self, numbers, step):
            seen.append((step, numbers))

        def finish(self):
            seen.append("finished")

    class Wandb:
        def init(self, **options):
            seen.append(options["project"])
            return Run()

        def Image(self, pixels):
            return pixels.shape

    monkeypatch.setitem(sys.modules, "wandb", Wandb())
    log = MetricsLog(tmp_path, "story", 0, WatchConfig(wandb_project="stories"))
    log.write(1, {"loss": 2.0}, 0.5, {"mfu": 0.4})
    log.image(1, "", np.zeros((4, 6, 3), np.uint8))
    log.close()
    assert seen == [
        "stories",
        (1, {"story/loss": 2.0, "story/mfu": 0.4}),
        (1, {"story/preview": (4, 6, 3)}),
        "finished",
    ]
    assert json.loads((tmp_path / "metrics.jsonl").read_text()).keys() == {"stage", "step", "loss", "step_seconds"}


def test_gradient_norms_by_part(micro):
    import jax
    import optax

    def loss(parameters, batch, key):
        return 3 * parameters["story.llama.a"] + 4 * parameters["story.head.b"], {}

    parameters = {"story.llama.a": jnp.float32(1), "story.head.b": jnp.float32(1)}
    optimizer = optax.sgd(0.1)
    state = optimizer.init(parameters)
    _, _, metrics = train_step(loss, optimizer, 1, parameters, state, {}, {}, jax.random.key(0))
    numbers = {name: float(value) for name, value in metrics.items()}
    assert numbers == pytest.approx({"loss": 7, "grad_norm": 5, "grad_norm/llama": 3, "grad_norm/head": 4})


def test_held_out_stories_are_evaluated_and_the_best_kept(tmp_path, story_only, undisturbed, rows_of):
    """Packing, workers' notes and evaluation in one run: losses of the steps are as without evaluation."""
    stage = dataclasses.replace(story_only.story, eval_every=2, eval_batches=2, preview_every=3)
    config = dataclasses.replace(story_only, story=stage)
    workdir = tmp_path / "run"
    train(config, workdir)
    rows = rows_of(workdir)
    validation = {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}
    assert sorted(validation) == [2, 4, 6]
    plain = [{name: value for name, value in row.items() if not name.startswith("validation")} for row in rows]
    assert plain == undisturbed
    best = min(validation, key=validation.get)
    assert latest_step(workdir / "story" / "best") == best
    assert all(row["over_length_rows"] == row["replaced_rows"] == 0 for row in rows)
    assert {"grad_norm/llama", "real_token_share", "learning_rate"} <= rows[0].keys()
    assert [path.name for path in (workdir / "story" / "previews").glob("*.png")] != []

    shutil.rmtree(workdir / "story" / "checkpoints" / "6")
    of = {
        which: load_parameters(config.model, ("story",), workdir, seed=0, checkpoint=which)["story.llama.norm.scale"]
        for which in ("newest", "best")
    }
    assert best == 6 and not np.array_equal(of["newest"], of["best"])


def test_the_best_checkpoint_is_asked_for_where_none_was_kept(trained_workdir, micro):
    config = dataclasses.replace(micro, sample=dataclasses.replace(micro.sample, checkpoint="best"))
    with pytest.raises(UserError, match=r"no stage in .* was evaluated: use 'newest'"):
        load(trained_workdir, config)


def test_validation_needs_stories_that_are_held_out(tmp_path, story_only, trained_workdir):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "train.jsonl").write_text((trained_workdir / "world" / "train.jsonl").read_text())
    data = dataclasses.replace(story_only.data, folder=str(tmp_path / "own"), features="online")
    stage = dataclasses.replace(story_only.story, eval_every=2)
    config = dataclasses.replace(story_only, data=data, story=stage)
    with pytest.raises(UserError, match=r"has no val.jsonl to validate on.*eval_every=0"):
        train(config, tmp_path / "run")


def test_dry_run_says_bytes_and_time(micro, tmp_path, monkeypatch, capsys):
    from seedstory_jax.training.dry_run import dry_run

    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(micro, stages=("story",))
    lines = dry_run(config)
    assert [line["stage"] for line in lines] == ["story"]
    assert all(line["bytes"] > line["state_bytes"] > 4 * line["trained"] for line in lines)
    assert "story: " in capsys.readouterr().out and not list(tmp_path.iterdir())
    assert StageConfig().eval_every == 0
