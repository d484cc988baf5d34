"""What bfloat16 and int8 weights cost in quality: losses on stories that no stage saw, and the drawn features' error.

    python benchmarks/weights.py --workdir=runs/toy [--batches=4]

One JSON line. On the trained workdir, teacher-forced on held-out rows: both losses in float32, bfloat16 and int8 (int8
weights, bfloat16 arithmetic), and how often the likeliest next word is float32's. On random models of the parity
fixtures' size, the same agreement and the relative error of the final hidden states, over a few seeds.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seedstory_jax.checkpoints.load import load_parameters
from seedstory_jax.checkpoints.parts import build
from seedstory_jax.generation.build import for_sampling
from seedstory_jax.models.llama import Llama, LlamaConfig, causal_mask
from seedstory_jax.models.lora import LoRAConfig
from seedstory_jax.models.resampler import ResamplerConfig
from seedstory_jax.models.story_mllm import StoryBatch, StoryMLLM, StoryMLLMConfig, story_losses
from seedstory_jax.pipeline import load
from seedstory_jax.training.batches import ExampleBatches
from seedstory_jax.training.stages.story import FIELDS

STORED = {"float32": ("float32", ""), "bfloat16": ("bfloat16", ""), "int8": ("bfloat16", "int8")}


def variants(model: StoryMLLM) -> dict[str, StoryMLLM]:
    """The model as it would be sampled from, by how it is stored."""
    return {name: for_sampling(model, dtype=dtype, weights=weights) for name, (dtype, weights) in STORED.items()}


@nnx.jit
def losses(model: StoryMLLM, batch: StoryBatch):
    """(next-token loss, feature loss, likeliest next tokens [b t]) of one batch."""
    _, found = story_losses(model, batch)
    words = jnp.argmax(model.llama.logits(model.hidden(batch)), axis=-1)
    return found.next_token_loss, found.feature_regression_loss, words


def on_workdir(workdir: Path, batches: int) -> dict:
    """Losses of a trained story model on held-out rows."""
    system = load(workdir)
    config, run_data = system.config, system.run_data
    parameters = load_parameters(config.model, ("vit", "story"), workdir, seed=config.seed)
    features = run_data.encodings("squash", parameters, run_data.held_out)
    rows = ExampleBatches(
        config,
        run_data.tokenizer,
        run_data.held_out,
        {"image_features": features},
        seed=config.seed,
        batch_size=config.story.batch_size,
    )
    given = [rows(step) for step in range(batches)]
    result, reference = {}, None
    for name, model in variants(build(config.model, "story", parameters)).items():
        found = [losses(model, StoryBatch(**{key: batch[key] for key in FIELDS})) for batch in given]
        words = np.stack([np.asarray(one[2]) for one in found])
        reference = words if reference is None else reference
        said = np.stack([batch["segment"] for batch in given]) > 0
        result[name] = {
            "next_token_loss": round(float(np.mean([one[0] for one in found])), 5),
            "feature_loss": round(float(np.mean([one[1] for one in found])), 5),
            "same_next_word": round(float((words == reference)[said].mean()), 5),
        }
    return result


def on_random_models(seeds: int = 5) -> dict:
    """Agreement of random models, whose weights have no structure that rounding could spare."""
    llama = LlamaConfig(
        vocab_size=386,
        hidden_size=128,
        intermediate_size=344,
        num_layers=3,
        num_heads=4,
        num_kv_heads=4,
        lora=LoRAConfig(rank=16),
    )
    read = ResamplerConfig(grid_size=8, embed_dim=128, num_heads=4, kv_dim=128)
    config = StoryMLLMConfig(
        llama=llama, input_resampler=read, output_resampler=dataclasses.replace(read, grid_size=16)
    )
    ids = jnp.asarray(np.random.default_rng(0).integers(3, 320, (4, 96)))
    mask = causal_mask(jnp.ones(ids.shape, bool))

    @nnx.jit
    def run(llama: Llama):
        hidden = llama(llama.embed(ids), jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape), mask)
        return hidden.astype(jnp.float32), jnp.argmax(llama.logits(hidden), axis=-1)

    rows: dict[str, list] = {name: [] for name in STORED}
    for seed in range(seeds):
        found = {name: run(model.llama) for name, model in variants(StoryMLLM(config, rngs=nnx.Rngs(seed))).items()}
        hidden, words = found["float32"]
        for name, (other, said) in found.items():
            error = jnp.linalg.norm(other - hidden) / jnp.linalg.norm(hidden)
            rows[name].append((float(error), float((said == words).mean())))
    means = {name: np.mean(pairs, axis=0) for name, pairs in rows.items()}
    return {name: {"error": round(error, 5), "same_next_word": round(same, 5)} for name, (error, same) in means.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--batches", type=int, default=4)
    flags = parser.parse_args()
    result = {"held_out": on_workdir(flags.workdir, flags.batches), "random": on_random_models()}
    print(json.dumps({"benchmark": "weights", "device": jax.devices()[0].device_kind, **result}))


if __name__ == "__main__":
    main()
