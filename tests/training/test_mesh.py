"""Stages on meshes of eight pretended devices, in a process of its own; and two real processes on one machine."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.walk
ROOT = Path(__file__).resolve().parents[2]
ALONE = (1, 1, 1)
MESHES = ((8, 1, 1), (1, 8, 1), (2, 2, 2))
MIXED = MESHES[-1]
STAGES = ("story", "vae", "vit", "detokenizer", "adapt")
# All stages run in one loop and by one table of rules, and compiling for eight devices takes long: the story stage on
# every mesh and one other stage on the mixed one. `pytest -m every_mesh tests/training/test_mesh.py` takes the rest.
ALWAYS = {"story": MESHES, "vae": (MIXED,)}
CASES = [
    pytest.param(stage, mesh, marks=() if mesh in ALWAYS.get(stage, ()) else pytest.mark.every_mesh)
    for stage in STAGES
    for mesh in MESHES
]

CONFIG = """
import sys
sys.path.insert(0, {tests!r})
from conftest import micro_config
from seedstory_jax.config import to_dict

def get_config():
    two = {{"steps": 2, "batch_size": 8, "save_every": 100}}
    return to_dict(micro_config(
        vae=two,
        vit=two,
        detokenizer=two,
        story={{"steps": 4, "batch_size": 8, "init_from": "none"}},
        adapt={{**two, "images_per_row": 1}},
    ))
"""

EVERY_MESH = """
import dataclasses, json, shutil, sys
from pathlib import Path
import jax
from seedstory_jax.config import MeshConfig, load_config
from seedstory_jax.sharding import make_mesh
from seedstory_jax.training import train
from seedstory_jax.training.loop import run_stage
from seedstory_jax.training.stages import STAGES
from seedstory_jax.features.run_data import RunData

config, source, out = load_config(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
run_data = RunData(config, source)

def make(name, mesh):
    section = dataclasses.replace(getattr(config, name), init_from="previous")
    changed = dataclasses.replace(config, **{name: section})
    return STAGES[name].make(config, run_data, train.stage_parameters(changed, STAGES[name], source, mesh))

for sizes, names in json.loads(sys.argv[4]):
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: sizes[0] * sizes[1] * sizes[2]])
    workdir = out / "-".join(map(str, sizes))
    workdir.mkdir()
    for name in names:
        stage = make(name, mesh)
        trained = run_stage(dataclasses.replace(stage, preview=None), workdir, seed=0, mesh=mesh)
        if stage.name == "story" and mesh.shape["fsdp"] == 8:
            weight = trained["story.llama.layers.mlp.down_proj.kernel"]
            assert weight.addressable_shards[0].data.size * 8 == weight.size, weight.sharding
# Half of the story stage on one mesh, the rest on another.
moved = out / "moved"
shutil.copytree(workdir, moved)
shutil.rmtree(moved / "story" / "checkpoints" / "4")
mesh = make_mesh(MeshConfig(8, 1, 1))
run_stage(make("story", mesh), moved, seed=0, mesh=mesh)
"""

STEPS = 30  # of two processes: so many that a signal reaches both before the last
ONE_OF_TWO = """
import json, os, signal, sys, time
from pathlib import Path
from seedstory_jax.data.pipeline import ExampleSource
from seedstory_jax.training.hooks import Log
import train

read, places = ExampleSource.__getitem__, []
def recorded(self, place):
    places.append(place)
    return read(self, place)
ExampleSource.__getitem__ = recorded

write, signalled = Log._write, int(sys.argv[2])
def written(self, step):
    write(self, step)
    if step.done == signalled:
        os.kill(os.getpid(), signal.SIGTERM)
    if signalled and step.done >= signalled:
        time.sleep(0.3)  # the others hear of it through the coordinator
Log._write = written

code = train.main(sys.argv[3:])
Path(sys.argv[1]).write_text(json.dumps(sorted(set(places))))
sys.exit(code)
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "micro.py"
    path.write_text(CONFIG.format(tests=str(ROOT / "tests")))
    return path


def environment(devices: int) -> dict[str, str]:
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    return os.environ | flags | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def meshes(request, config_file, trained_workdir, tmp_path_factory) -> Path:
    """Metrics of every stage on every mesh that the selected tests ask for, in a folder a mesh."""
    wanted = test_a_mesh_gives_one_devices_losses.__name__
    items = [item for item in request.session.items if getattr(item, "originalname", None) == wanted]
    asked = [item.callspec.params for item in items]
    plan = {ALONE: {"story"}, MIXED: {"story"}}
    for case in asked:
        for mesh in (ALONE, case["mesh"]):
            plan.setdefault(mesh, set()).add(case["stage"])
    plan[MIXED] = plan.pop(MIXED)  # the last one is what is moved to another mesh
    out = tmp_path_factory.mktemp("meshes")
    command = [sys.executable, "-c", EVERY_MESH, str(config_file), str(trained_workdir), str(out)]
    command += [json.dumps([(mesh, [stage for stage in STAGES if stage in plan[mesh]]) for mesh in plan])]
    run = subprocess.run(command, env=environment(8), capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, run.stderr[-3000:]
    return out


@pytest.mark.parametrize(("stage", "mesh"), CASES)
def test_a_mesh_gives_one_devices_losses(meshes, rows_of, stage, mesh):
    alone = rows_of(meshes / "1-1-1", stage)
    spread = rows_of(meshes / "-".join(map(str, mesh)), stage)
    assert len(alone) == len(spread) >= 2
    for one, other in zip(alone, spread):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-2)


def test_a_run_goes_on_on_another_mesh(meshes, rows_of):
    alone, moved = rows_of(meshes / "1-1-1", "story"), rows_of(meshes / "moved", "story")
    assert [row["step"] for row in moved] == [1, 2, 3, 4]
    for one, other in zip(alone, moved):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


def train_together(folder: Path, config_file: Path, *, name: str, signalled: int = 0) -> list[str]:
    """Two processes of two devices each train the story stage in folder/run; what each printed.

    After step `signalled` the second one gets SIGTERM. Which rows each read goes to folder/<name>_<process>.json.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = [f"--config={config_file}", f"--workdir={folder / 'run'}", "--config.stages=story", "--config.mesh.fsdp=2"]
    flags += [
        f"--config.story.steps={STEPS}",
        "--config.story.save_every=100",
        f"--coordinator=localhost:{port}",
        "--num_processes=2",
    ]
    processes = []
    for i in range(2):
        own = [str(folder / f"{name}_{i}.json"), str(signalled * i), *flags, f"--process_id={i}"]
        command = [sys.executable, "-c", ONE_OF_TWO, *own]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, env=environment(2), stdout=pipe, stderr=pipe, text=True))
    try:
        said = [process.communicate(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, error) in zip(processes, said):
        assert process.returncode == (75 if signalled else 0), error[-3000:]
    return [error for _, error in said]


@pytest.fixture(scope="module")
def stopped(config_file, tmp_path_factory) -> tuple[Path, list[str], int]:
    """A workdir that two processes trained in until one of them got SIGTERM; what they said; the step they saved."""
    from seedstory_jax.checkpoints.layout import latest_step

    folder = tmp_path_factory.mktemp("two")
    said = train_together(folder, config_file, name="before", signalled=2)
    return folder, said, latest_step(folder / "run" / "story")


@pytest.fixture(scope="module")
def two_processes(stopped, config_file) -> Path:
    """The same, trained to its end by two more."""
    train_together(stopped[0], config_file, name="after")
    return stopped[0]


def test_a_signal_to_one_process_stops_both_at_one_step(stopped):
    _, said, step = stopped
    assert 2 < step < STEPS
    assert all(f"story saved at step {step}; the same command goes on from there" in out for out in said)


def test_two_processes_give_one_processes_losses(two_processes, config_file, rows_of, tmp_path):
    from seedstory_jax.config import load_config
    from seedstory_jax.training.train import train

    train(load_config(config_file, {"stages": "story", "story.steps": str(STEPS)}), tmp_path)
    alone, together = rows_of(tmp_path), rows_of(two_processes / "run")
    assert [row["step"] for row in together] == list(range(1, STEPS + 1))  # process 0 alone wrote them
    for one, other in zip(alone, together):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


def test_each_process_reads_its_share_alone(two_processes, stopped):
    step = stopped[2]
    shares = [set(json.loads((two_processes / f"after_{i}.json").read_text())) for i in range(2)]
    assert not shares[0] & shares[1]
    assert shares[0] | shares[1] == set(range(step * 8, STEPS * 8))


def test_what_two_processes_saved_one_can_read(two_processes):
    from seedstory_jax.checkpoints.layout import latest_step, read_config
    from seedstory_jax.checkpoints.load import load_parameters
    from seedstory_jax.checkpoints.parts import part_shapes

    workdir = two_processes / "run"
    assert latest_step(workdir / "story") == STEPS
    config = read_config(workdir)
    shapes = part_shapes(config.model, "story")
    trained = load_parameters(config.model, ("story",), workdir, seed=0)
    assert trained["story.llama.lm_head.kernel"].shape == shapes["story.llama.lm_head.kernel"].shape
