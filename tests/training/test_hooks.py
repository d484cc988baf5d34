"""Each hook by itself, on steps that did nothing."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from seedstory_jax.checkpoints.stage import Checkpoints
from seedstory_jax.config import OptimizerConfig, StageConfig
from seedstory_jax.errors import UserError
from seedstory_jax.training import hooks
from seedstory_jax.training.hooks import Log, Preview, Save, StepResult, UnreadableCounter
from seedstory_jax.training.metrics import MetricsWriter
from seedstory_jax.training.stage import Stage


class Written(MetricsWriter):
    """A writer that keeps what it is told."""

    def __init__(self):
        self.said, self.throughput = [], self

    def step(self, step, numbers, seconds):
        self.said.append((step, seconds))

    def images(self, folder, step):
        self.said.append(("images", step))

    def pause(self):
        self.said.append("pause")


class Saved(Checkpoints):
    def __init__(self):
        self.steps = []

    def save(self, step, trained, state, facts):
        self.steps.append((step, facts))


def stage(**settings) -> Stage:
    config = StageConfig(**{"steps": 8, "save_every": 4, "optimizer": OptimizerConfig(warmup_steps=0), **settings})
    return Stage("story", config, {}, lambda name: True, lambda *_: None, lambda *_: None, 1, facts={"base": "b"})


def step(done, started=0.0, last=False, stopping=False, **metrics) -> StepResult:
    numbers = {"loss": jnp.ones(()), "grad_norm": jnp.ones(()), **metrics}
    return StepResult(done, {}, None, {}, numbers, started, last, stopping)


def run(calls, *results):
    for result in results:
        for call in calls:
            call(result)


def test_seconds_of_steps_add_up_to_the_runs(monkeypatch):
    """A step is begun before the one before is done: the seconds that they share are the earlier one's."""
    clock = iter([12.0, 13.0, 20.0, 22.0])
    monkeypatch.setattr(hooks.time, "perf_counter", lambda: next(clock))
    writer = Written()
    log = Log(stage(), Save(Saved(), stage(), 0), writer)
    run([log.previous, log], step(1, 10.0), step(2, 11.0), step(3, 18.0), step(4, 19.0))
    assert writer.said == [(1, 2.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_a_step_is_logged_with_the_next_one_or_before_it_is_saved():
    writer, saved = Written(), Saved()
    save = Save(saved, stage(), 0)
    log = Log(stage(), save, writer)
    seen = []
    for done in range(1, 6):
        run([log.previous, log, save], step(done))
        seen.append((len(writer.said), [at for at, _ in saved.steps]))
    assert seen == [(0, []), (1, []), (2, []), (4, [4]), (4, [4])]


@pytest.mark.parametrize(("result", "is_saved"), [(step(3), False), (step(4), True), (step(3, last=True), True)])
def test_what_is_saved(result, is_saved):
    saved = Saved()
    Save(saved, stage(), 0)(result)
    assert saved.steps == ([(result.done, {"stage": "story", "step": result.done, "base": "b"})] if is_saved else [])
    stopped = Saved()
    Save(stopped, stage(), 0)(dataclasses.replace(result, stopping=True))
    assert stopped.steps


def test_a_loss_that_is_not_finite_stops_before_it_is_saved():
    saved = Saved()
    save = Save(saved, stage(), 0)
    log = Log(stage(), save, None)
    with pytest.raises(UserError, match=r"step 4: loss nan.*last good checkpoint: none.*on_nonfinite=skip"):
        run([log.previous, log, save], step(4, loss=jnp.float32(jnp.nan)))
    assert not saved.steps
    skipping = stage(on_nonfinite="skip")
    log = Log(skipping, save, None)
    run([log.previous, log, save], step(4, loss=jnp.float32(jnp.nan)))
    assert len(saved.steps) == 1


def test_steps_are_not_skipped_for_ever():
    """At the limit in a row the run stops, before a checkpoint; a good step in between begins the count again."""
    saved = Saved()
    skipping = stage(on_nonfinite="skip", max_skipped=3)
    save = Save(saved, skipping, 0)
    log = Log(skipping, save, None)
    bad = {"loss": jnp.float32(jnp.inf)}
    for done, values in enumerate([bad, bad, {}, bad, bad], 1):
        run([log.previous, log, save], step(done, **values))
    with pytest.raises(UserError, match=r"step 6: loss inf.* 3 steps in a row.*story\.max_skipped.*learning rate"):
        run([log.previous, log, save], step(6, **bad), step(7, **bad))
    assert [at for at, _ in saved.steps] == [4]


def test_images_are_written_now_and_then_and_at_the_end(tmp_path):
    calls = []
    shown = dataclasses.replace(stage(preview_every=2), preview=lambda parameters, done, folder: calls.append(done))
    writer = Written()
    run([Preview(shown, tmp_path, writer)], step(1), step(2), step(3, last=True), step(4, stopping=True))
    assert calls == [2, 3]
    assert writer.said == [("images", 2), "pause", ("images", 3), "pause"]


def test_unreadable_stories_are_counted_once_over_all_batches():
    counter = UnreadableCounter(max_bad=1)
    notes = np.array(["", "a.png: torn", "a.png: torn"])
    assert counter.count({}) == {}
    assert counter.count({"unreadable": notes, "over_length": np.array([1, 2])}) == {
        "replaced_rows": 2.0,
        "over_length_rows": 3.0,
    }
    with pytest.raises(UserError, match=r"2 stories or pictures cannot be read, data.max_bad 1.*the last: b.png"):
        counter.count({"unreadable": np.array(["b.png: torn"])})
