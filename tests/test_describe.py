import json
import time
from pathlib import Path

import pytest

from seedstory_jax import describe
from seedstory_jax.config import MeshConfig
from seedstory_jax.errors import UserError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@pytest.fixture(scope="module")
def full_size():
    from seedstory_jax.config import load_config

    return describe.describe(load_config(CONFIGS / "seedstory_7b.py"), (1, 8, 1))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("unet", 2_567_463_684),
        ("vae", 83_653_863),
        ("llama", 6_738_956_288),
        ("lora", 39_976_960),
        ("vit", 1_935_610_624),
        ("input_resampler", 67_665_920),
        ("output_resampler", 69_238_784),
        ("perceiver", 61_245_696),
    ],
)
def test_published_parameter_counts(full_size, name, count):
    assert full_size[name] == count


def test_kv_slots(full_size):
    rows = {(row["policy"], row["length"]): row for row in full_size["policies"]}
    assert rows["dense", 100]["slots"] == 100 * (128 + 66) + 56  # and <s>, rounded up to 128
    assert rows["window", 10]["slots"] == rows["window", 100]["slots"]
    assert rows["multimodal_sink", 50]["bytes"] == rows["multimodal_sink", 50]["slots"] * 2 * 32 * 4096 * 2


def test_eight_devices_share_the_weights(full_size):
    from seedstory_jax.config import load_config

    alone = describe.describe(load_config(CONFIGS / "seedstory_7b.py"), (1, 1, 1))["per_device"]
    for stage in ("detokenizer", "story", "adapt"):
        assert full_size["per_device"][stage]["total"] < alone[stage]["total"] / 7
    assert full_size["per_device"]["sampling"] == alone["sampling"]
    # LoRA, norms, embedding, head and both resamplers train in float32 with two moments.
    assert alone["story"]["trained"] / 16 == pytest.approx(439.7e6, rel=1e-2)


def test_the_paper_trains_the_whole_unet(full_size):
    from seedstory_jax.config import load_config

    paper = describe.describe(load_config(f"{CONFIGS / 'seedstory_7b.py'}:paper"), (1, 8, 1))
    assert paper["lora"] * 16 == full_size["lora"] * 6
    assert paper["per_device"]["adapt"]["trained"] > 8 * full_size["per_device"]["adapt"]["trained"] / 2


def test_the_command(capsys):
    started = time.monotonic()
    assert describe.main([f"--config={CONFIGS / 'toy.py'}", "--mesh=2,2,2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}
    assert facts["lora"] == 0
    assert describe.main([f"--config={CONFIGS / 'toy.py'}"]) == 0
    assert "multimodal_sink" in capsys.readouterr().out
    assert time.monotonic() - started < 300


@pytest.mark.parametrize("text", ["8", "1,2", "1,x,2", "0,1,1"])
def test_a_mesh_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="three sizes are wanted"):
        describe.parse_mesh(text, MeshConfig())


def test_the_configs_mesh_stands_in():
    assert describe.parse_mesh("", MeshConfig(data=-1, fsdp=4, tensor=2)) == (1, 4, 2)


def test_a_tied_table_is_counted_once():
    from seedstory_jax.config import load_config

    facts = describe.describe(load_config(CONFIGS / "small.py"), (1, 1, 1))
    assert facts["llama"] == 134_515_008 + 66 * 576  # SmolLM2-135M and the image tokens' rows
