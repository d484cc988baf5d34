"""Benchmarks at sizes too small to measure anything: they run, and what they compare is the same work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.walk
ROOT = Path(__file__).resolve().parents[1]


def test_our_training_step_has_torchs_loss():
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    command = [sys.executable, "benchmarks/train_step.py", "--layers=1", "--width=64", "--rows=1", "--rounds=1"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-2000:]
    versus_torch, versus_published = map(json.loads, run.stdout.splitlines())
    assert versus_torch["loss_difference"] < 1e-4
    assert versus_published["supervised_images"] == {"as_published": 1, "cached_all_turns": 9}
    assert versus_published["flops_ratio_full_size"] > 8
