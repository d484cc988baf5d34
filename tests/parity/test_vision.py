import numpy as np
import pytest

from seedstory_jax.parity.runner import run_fixture, table_row
from seedstory_jax.parity.vision import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_published_numbers_come_out(fixtures_dir, kind):
    result = run_fixture(fixtures_dir / kind)
    assert result.ok, table_row(result)


@pytest.mark.parametrize(
    ("kind", "sizes", "tokens"),
    [
        ("resampler_in", {"grid_size": 3, "embed_dim": 24, "num_heads": 2, "kv_dim": 24}, 49),
        ("resampler_in_kvproj", {"grid_size": 4, "embed_dim": 32, "num_heads": 8, "kv_dim": 20}, 16),
        ("resampler_out", {"grid_size": 5, "embed_dim": 16, "num_heads": 1, "kv_dim": 16}, 4),
    ],
)
def test_resamplers_of_other_sizes(original, write_fixture, kind, sizes, tokens):
    import torch

    module = original.randomise(original.Resampler(**sizes))
    x = torch.randn(3, tokens, sizes["kv_dim"], generator=torch.Generator().manual_seed(1))
    outputs = {
        "pos_embed_kv": original.resized(module.pos_embed, tokens),
        "kv_after_ln": module.keys(x),
        "q_after_ln": module.ln_q(module.query),
        "output": module(x),
    }
    result = run_fixture(write_fixture(kind, outputs, sizes, {"x": x}, weights=module.state_dict()))
    assert result.ok, table_row(result)


@pytest.mark.parametrize(
    ("image_size", "patch_size", "width", "layers", "heads", "n_queries", "output_dim"),
    [(48, 8, 24, 1, 3, 9, 128), (30, 5, 20, 4, 1, 4, 256)],
)
def test_encoders_of_other_sizes(
    original, write_fixture, image_size, patch_size, width, layers, heads, n_queries, output_dim
):
    import torch

    config = {"image_size": image_size, "patch_size": patch_size, "width": width, "layers": layers, "heads": heads}
    config |= {"mlp_ratio": 2.7, "n_queries": n_queries, "output_dim": output_dim}
    vit = original.randomise(original.ViT(**config))
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))
    outputs = vit.steps(images)
    assert outputs["output"].shape == (2, n_queries, output_dim)
    result = run_fixture(write_fixture("qwen_vit", outputs, config, {"images": images}, weights=vit.state_dict()))
    assert result.ok, table_row(result)


def test_tables_of_other_sizes(original, write_fixture):
    import torch

    table = torch.from_numpy(np.random.default_rng(0).normal(size=(36, 5)).astype(np.float32))
    outputs = {"interp_6_to_9": original.resized(table, 81), "interp_6_to_4": original.resized(table, 16)}
    config = {"cases": [[6, 9], [6, 4]], "sincos": []}
    result = run_fixture(write_fixture("pos_embed_interp", outputs, config, {"table_6": table}))
    assert result.ok, table_row(result)


def test_a_wrong_weight_shows(original, write_fixture):
    import torch

    sizes = {"grid_size": 3, "embed_dim": 24, "num_heads": 2, "kv_dim": 24}
    module = original.randomise(original.Resampler(**sizes))
    x = torch.randn(1, 9, 24, generator=torch.Generator().manual_seed(1))
    weights = dict(module.state_dict())
    weights["attn.out_proj.weight"] = 1.001 * weights["attn.out_proj.weight"]
    result = run_fixture(write_fixture("resampler_in", {"output": module(x)}, sizes, {"x": x}, weights=weights))
    assert not result.ok and not result.error
