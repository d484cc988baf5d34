import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seedstory_jax.checkpoints.parts import part_shapes
from seedstory_jax.config import Config, OptimizerConfig
from seedstory_jax.training.optimizer import ADAMW_RMS, make_optimizer, weight_matrices

LEARNING_RATE, ADAM_SCALE = 0.5, 0.2
PLAIN = OptimizerConfig(learning_rate=LEARNING_RATE, weight_decay=0.0, warmup_steps=0, clip_norm=1e9)
SHAPES = {
    "story.llama.layers.self_attn.q_proj.kernel": (3, 16, 24),
    "story.input_resampler.attn.in_proj_weight": (48, 16),
    "detokenizer.unet.conv_in.kernel": (3, 3, 8, 16),
    "story.llama.embed_tokens.embedding": (40, 16),
    "story.llama.lm_head.kernel": (16, 40),
    "story.llama.layers.self_attn.q_proj.lora_a": (3, 16, 4),
    "story.llama.layers.input_layernorm.scale": (3, 16),
}


@pytest.fixture(scope="module")
def first_update():
    """What the first step of each optimizer adds, for one gradient."""
    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    grads = {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, SHAPES.items())}
    parameters = jax.tree.map(jnp.zeros_like, grads)

    def updates(optimizer):
        return optimizer.update(grads, optimizer.init(parameters), parameters)[0]

    muon = make_optimizer(dataclasses.replace(PLAIN, name="muon", adam_scale=ADAM_SCALE), 10)
    adamw = optax.adamw(ADAM_SCALE * LEARNING_RATE, b1=PLAIN.b1, b2=PLAIN.b2, eps=PLAIN.eps, nesterov=True)
    return updates(muon), updates(adamw)


@pytest.mark.parametrize("name", list(SHAPES)[:3])
def test_muon_gives_matrices_orthogonal_updates_as_large_as_adamws(first_update, name):
    update = np.asarray(first_update[0][name]) / -LEARNING_RATE
    rows = update.reshape(-1, update.shape[-1]) if update.ndim == 4 else update
    for matrix in rows if rows.ndim == 3 else [rows]:  # each layer of a stack is a matrix of its own
        values = np.linalg.svd(matrix, compute_uv=False) / (ADAMW_RMS * max(matrix.shape) ** 0.5)
        assert values.min() > 0.5 and values.max() < 1.3  # five Newton-Schulz steps leave them near 1
        assert np.sqrt(np.mean(matrix**2)) == pytest.approx(ADAMW_RMS, rel=0.3)


@pytest.mark.parametrize("name", list(SHAPES)[3:])
def test_muon_leaves_the_rest_to_adamw_at_its_own_rate(first_update, name):
    muon, adamw = first_update
    np.testing.assert_allclose(muon[name], adamw[name], rtol=1e-5)


def test_what_muon_leaves_alone_in_the_published_sizes():
    left = set()
    for part in ("vit", "story", "detokenizer", "vae"):
        shapes = part_shapes(Config().model, part)
        axes = weight_matrices(shapes)
        left |= {name.rpartition(".")[2] for name in shapes if axes[name] is None}
    tables = {"embedding", "pos_embed", "positional_embedding", "query", "latents", "proj"}
    assert left == tables | {
        "kernel",
        "scale",
        "bias",
        "in_proj_bias",
        "lora_a",
        "lora_b",
    }  # the one kernel is the head's
    story = weight_matrices(part_shapes(Config().model, "story"))
    assert [name for name, found in story.items() if found is None and name.endswith("kernel")] == [
        "story.llama.lm_head.kernel"
    ]
