import json

import numpy as np
import pytest

from seedstory_jax.checkpoints import load, parts
from seedstory_jax.config import load_config, to_dict
from seedstory_jax.data.array_cache import open_array
from seedstory_jax.errors import UserError
from seedstory_jax.storystream.__main__ import main
from seedstory_jax.toy.world import build_toy_world


@pytest.fixture
def workdir(tmp_path, monkeypatch, request):
    """A workdir whose ViT is small and random."""
    overrides = {"model.vit.width": "16", "model.vit.layers": "1"}
    config = load_config(request.config.rootpath / "configs" / "toy.py", overrides)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(to_dict(config)))
    random = parts.random_parameters(config.model, "vit", 0)
    monkeypatch.setattr(load, "load_parameters", lambda *args, **options: random)
    return tmp_path / "run"


def test_features(workdir, tmp_path, capsys):
    world = build_toy_world(tmp_path / "toy", series="sunny", num_train=3, num_val=0, seed=0, processes=1)
    flags = ["features", str(world / "train.jsonl"), f"--workdir={workdir}", f"--out={tmp_path / 'out'}"]
    assert main(flags) == 0
    index = json.loads((tmp_path / "out" / "squash.json").read_text())
    features = open_array(tmp_path / "out" / index["file"], "bfloat16").astype(np.float32)
    assert features.shape == (90, 16, 128) and np.isfinite(features).all() and features.std() > 0
    assert len(set(index["images"])) == 90
    assert main(flags) == 0  # it is there: read, not made again
    assert main([*flags, "--kinds=crop", "--dtype=float32"]) == 0
    assert len(list((tmp_path / "out").glob("*.npy"))) == 2
    with pytest.raises(UserError, match="unknown kind of features 'corp'"):
        main([*flags, "--kinds=corp"])


def test_features_need_a_workdir(tmp_path):
    with pytest.raises(UserError, match=r"no workdir of train.py"):
        main(["features", str(tmp_path), f"--workdir={tmp_path}", f"--out={tmp_path}"])


def test_tokenizer(tmp_path, capsys):
    world = build_toy_world(tmp_path / "toy", series="moony", num_train=2, num_val=0, seed=0, processes=1)
    flags = ["tokenizer", str(world / "train.jsonl"), f"--out={tmp_path / 'tokenizer'}"]
    assert main(flags) == 0
    assert "--config.model.story.llama.vocab_size=" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists: name a new folder"):
        main(flags)
