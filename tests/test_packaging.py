"""Wheel and sdist are built, and the wheel works in an environment that knows nothing of this folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seedstory_jax.config import to_dict

pytestmark = pytest.mark.walk
ROOT = Path(__file__).resolve().parents[1]
PARTS = ("seedstory_jax", "configs", "docs", "requirements")


def run(*command, cwd: Path) -> str:
    """What a command prints, run in `cwd` with nothing of this folder on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist and the wheel that was built from it."""
    source = tmp_path_factory.mktemp("source")
    for part in PARTS:
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.suffix in (".py", ".toml", ".md", ".in") or path.name == "LICENSE":
            shutil.copy(path, source)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir=dist", ".", cwd=source)
    return source / "dist"


@pytest.fixture(scope="module")
def python(built, tmp_path_factory) -> Path:
    """The Python of a fresh environment with the wheel in it; its dependencies are those of the running one."""
    home = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home)
    (wheel,) = built.glob("*.whl")
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=home)
    (packages,) = home.glob("lib/python*/site-packages")
    # A path in a .pth file is looked in last, and .pth files in there, as of editable installations, are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def files_of(folder: Path, name: str) -> set[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {f"{name}/{path.relative_to(folder)}" for path in paths}


def test_the_wheel_holds_the_package_and_the_configs_alone(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
        licences = [name for name in file.namelist() if name.endswith("LICENSE")]
    expected = files_of(ROOT / "seedstory_jax", "seedstory_jax") | files_of(ROOT / "configs", "seedstory_jax/configs")
    assert names == expected and "seedstory_jax/py.typed" in names and licences
    assert wheel.stat().st_size < 2**20


def test_the_sdist_holds_what_builds_the_wheel(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"pyproject.toml", "setup.py", "train.py", "sample.py", "LICENSE", "README.md", "configs/toy.py"} <= names
    assert files_of(ROOT / "docs", "docs") <= names and not any(name.startswith("tests") for name in names)


def test_what_was_installed_trains_and_samples(python, micro, tmp_path):
    place = run(python, "-c", "import seedstory_jax; print(seedstory_jax.__file__)", cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(python.parents[1])
    values = to_dict(micro)
    values["story"] |= {"steps": 2}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "tiny.py").write_text(
        "import json\nfrom pathlib import Path\n\n\ndef get_config():\n"
        '    return json.loads((Path(__file__).parent / "config.json").read_text())\n'
    )
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    seedstory = python.parent / "seedstory"

    assert json.loads(run(seedstory, "describe", "--config=toy", "--json", cwd=tmp_path))
    run(seedstory, "train", "--config=tiny.py", "--workdir=run", cwd=tmp_path)
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if row["stage"] == "story"] == [1, 2]
    story = ["--image=a.png", "--text=The monkey waves.", "--length=2", "--exact_length", "--out=out"]
    run(seedstory, "sample", "--workdir=run", *story, cwd=tmp_path)
    assert len(json.loads((tmp_path / "out" / "story.json").read_text())["frames"]) == 2
    assert (tmp_path / "out" / "index.html").is_file()
