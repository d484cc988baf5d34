"""XLA's TPU compiler on this machine; `make walk` says in TPU_COMPILER where it lies."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

COMPILER = os.environ.get("TPU_COMPILER", "")
MISSING = not COMPILER and importlib.util.find_spec("libtpu") is None
pytestmark = [pytest.mark.walk, pytest.mark.skipif(MISSING, reason="libtpu (extra tpu) is not installed")]


@pytest.mark.parametrize(("config", "program"), [("seedstory_7b.py", "compact"), ("toy.py", "story_step")])
def test_a_program_compiles_for_a_slice_of_eight(config, program):
    command = [sys.executable, "benchmarks/compile_tpu.py", "--topology=v5e:2x4", f"--program={program}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([COMPILER, str(ROOT), *sys.path])}
    run = subprocess.run(
        [*command, f"--config=configs/{config}"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    assert run.returncode == 0, run.stderr[-2000:]
    row = json.loads(run.stdout)
    assert (row["program"], row["topology"], row["devices"], row["fits"]) == (program, "v5e:2x4", 8, True)
    assert row["temp_bytes"] > 0
    if program == "compact":
        # Eight stories, their heads over eight devices: keys and values and little else.
        assert 2 * 32 * 8 * 4 * 128 * 2 * 1000 < row["argument_bytes"] < 2 << 30
        assert row["collectives"].get("all-gather", 0) == row["collectives"].get("all-to-all", 0) == 0
    else:
        assert row["collectives"]["all-reduce"] > 0
