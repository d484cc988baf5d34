"""The story stage's training step: beside PyTorch with peft, and with this house's two savings against as published.

    python benchmarks/train_step.py [--rounds=5] [--layers=8] [--width=512] [--rows=2]
    python benchmarks/train_step.py --gpu [--config=configs/seedstory_7b.py] [--rows=8]

On a CPU at a middle size, float32, two JSON lines:

* `train_step_vs_torch`: one step on the same rows (last turn supervised), from the same weights by our conversion
  tables, LoRA, norms, tables and resamplers training: ours, and transformers + peft. `ratio` is torch's seconds over
  ours; `loss_difference` the largest relative one between the two over all steps.
* `train_step_vs_published`: seconds a supervised image. As published: the last turn of ten alone, with a frozen ViT of
  the published share of the FLOPs in the step. Ours: features from the cache, and all turns at once. `flops_ratio` is
  what the analytic counter says of these sizes, and `flops_ratio_full_size` of the published ones.

With --gpu, full size and random weights, a JSON line each: the story stage (cached features, rows of 1,280 tokens), the
de-tokenizer stage as released, and the whole UNet. Contestants take turns; figures are medians.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.middle import TEXT_TOKENS, Tokens, middle_config
from seedstory_jax.checkpoints.parts import PARTS, build
from seedstory_jax.config import Config, ModelConfig, OptimizerConfig, load_config
from seedstory_jax.data.token_rows import SequenceConfig, story_row
from seedstory_jax.models import flops
from seedstory_jax.models.lora import LoRAConfig
from seedstory_jax.models.parameters import Parameters, abstract_parameters, initial_parameters, with_prefix
from seedstory_jax.models.qwen_vit import QwenViTConfig
from seedstory_jax.models.sdxl.detokenizer import denoising_loss, training_time_ids
from seedstory_jax.models.story_mllm import StoryBatch, StoryMLLMConfig, story_losses
from seedstory_jax.models.training_flops import detokenizer_training, story_training
from seedstory_jax.training.metrics import peak_flops
from seedstory_jax.training.optimizer import make_optimizer
from seedstory_jax.training.step import train_step
from seedstory_jax.training.trainable import trainable_names

TURNS = 10
CAPTION = TEXT_TOKENS
PUBLISHED_VIT_SHARE = 0.53  # of the FLOPs of a row as published
OPTIMIZER = OptimizerConfig(warmup_steps=0, final_fraction=1.0)
ROOT = Path(__file__).resolve().parent.parent


class PaddedTokens(Tokens):
    pad = 0


def token_batch(config: StoryMLLMConfig, rows: int, supervise: str, turns: int = TURNS) -> dict[str, np.ndarray]:
    """Rows of `turns` captions of 40 random words, and no image features yet."""
    tokens = PaddedTokens(config.llama.vocab_size, config.num_image_tokens)
    length = row_tokens(config, supervise, turns)
    layout = SequenceConfig(
        num_image_tokens=config.num_image_tokens, max_tokens=length, max_images=turns, supervise=supervise
    )
    rng = np.random.default_rng(0)
    limit = min(2000, config.llama.vocab_size - 70)
    captions = rng.integers(5, limit, (rows, turns, CAPTION)).tolist()
    made = [story_row(tokens, row[0], row[1:], layout) for row in captions]
    return {name: np.stack([row[name] for row in made]) for name in made[0]}


def row_tokens(config: StoryMLLMConfig, supervise: str, turns: int = TURNS) -> int:
    """Tokens of such a row, rounded up to 64."""
    length = 2 + turns * (CAPTION + config.num_image_tokens + 2)
    length += (turns - 1) * config.num_image_tokens if supervise == "all" else 0
    return -(-length // 64) * 64


class OurStep:
    """Our step under jit; `images` makes features of what the batch carries (the ViT, or nothing)."""

    def __init__(self, model: ModelConfig, parameters: Parameters, batch: dict[str, np.ndarray], images: Callable):
        trains = trainable_names("story", "released")
        # Copies: the step donates what it trains.
        self.trained = {name: jnp.array(value) for name, value in parameters.items() if trains(name)}
        self.frozen = {name: value for name, value in parameters.items() if not trains(name)}
        self.batch = jax.device_put(batch)
        optimizer = make_optimizer(OPTIMIZER, 10**6)
        self.state = optimizer.init(self.trained)

        def loss(parameters, batch, key):
            features = images(parameters, batch["image_features"])
            rows = StoryBatch(**{**batch, "image_features": features})
            total, losses = story_losses(build(model, "story", parameters), rows)
            return total, {"images": losses.target_images}

        self._step = jax.jit(partial(train_step, loss, optimizer, 1), donate_argnums=(0, 1))

    def __call__(self) -> float:
        """One step; its loss."""
        key = jax.random.key(0)
        self.trained, self.state, metrics = self._step(self.trained, self.state, self.frozen, self.batch, key)
        self.images = int(metrics["images"])
        return float(metrics["loss"])


def given(parameters: Parameters, features: jax.Array) -> jax.Array:
    return features


class TorchStep:
    """The published step: transformers' LLaMA under peft, two resamplers, AdamW, clipping."""

    def __init__(self, config: StoryMLLMConfig, parameters: Parameters, batch: dict[str, np.ndarray]):
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import LlamaConfig, LlamaForCausalLM

        from seedstory_jax.convert.llama import llama_config_to_published, llama_rules
        from seedstory_jax.convert.resampler import resampler_rules
        from seedstory_jax.convert.rules import export_tensors

        self.torch, self.config = torch, config
        llama, lora = config.llama, config.llama.lora
        published = llama_config_to_published(llama)
        keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                "vocab_size", "rms_norm_eps", "max_position_embeddings")  # fmt: skip
        base = LlamaForCausalLM(LlamaConfig(**{key: published[key] for key in keys}, rope_theta=1e4))
        adapted = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=0.0,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            modules_to_save=["input_layernorm", "post_attention_layernorm", "norm"],
        )
        self.llama = get_peft_model(base, adapted)
        for name, value in self.llama.named_parameters():
            if "embed_tokens" in name or "lm_head" in name:
                value.requires_grad_(True)
        model = build(ModelConfig(story=config), "story", parameters)

        def load(module, tensors):
            found = module.load_state_dict({name: torch.tensor(np.array(v)) for name, v in tensors.items()}, False)
            left = [name for name in found.missing_keys if "original_module" not in name and "rotary" not in name]
            assert not left and not found.unexpected_keys, (left[:3], found.unexpected_keys[:3])

        load(self.llama, export_tensors(model.llama, llama_rules(llama, naming="peft")))
        self.resamplers = []
        for part, sizes in ((model.input_resampler, config.input_resampler),
                            (model.output_resampler, config.output_resampler)):  # fmt: skip
            resampler = torch_resampler(sizes)
            load(resampler, export_tensors(part, resampler_rules(sizes)))
            self.resamplers.append(resampler)
        self.trained = [p for m in (self.llama, *self.resamplers) for p in m.parameters() if p.requires_grad]
        o = OPTIMIZER
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=o.learning_rate, betas=(o.b1, o.b2), eps=o.eps, weight_decay=o.weight_decay
        )
        self.batch = {name: torch.tensor(value) for name, value in batch.items()}

    def __call__(self) -> float:
        """One step; its loss."""
        torch, batch = self.torch, self.batch
        read, draw = self.resamplers
        features = batch["image_features"]
        embeddings = self.llama.get_input_embeddings()(batch["ids"].long())
        images = read(features.flatten(0, 1)).reshape(features.shape[0], -1, embeddings.shape[-1])
        slot, target = batch["image_slot"].long(), batch["target_slot"].long()
        seen = torch.gather(images, 1, slot.clamp(min=0)[..., None].expand(-1, -1, images.shape[-1]))
        embeddings = torch.where(slot[..., None] >= 0, seen, embeddings)
        out = self.llama(
            inputs_embeds=embeddings, attention_mask=(batch["segment"] > 0).long(), output_hidden_states=True
        )
        labels = batch["labels"].long()
        token_loss = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        queries = out.hidden_states[-1][target >= 0].reshape(len(labels), -1, embeddings.shape[-1])
        regressed = draw(queries)
        true = features[:, -1]
        distance = 1 - torch.nn.functional.cosine_similarity(regressed, true, dim=-1).mean()
        loss = token_loss + distance
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, OPTIMIZER.clip_norm)
        self.optimizer.step()
        return float(loss.detach())


def torch_resampler(config):
    """Qwen's resampler as published, its weights under the published names."""
    import torch

    class Resampler(torch.nn.Module):
        def __init__(self):
            super().__init__()
            d, queries = config.embed_dim, config.grid_size**2
            self.query = torch.nn.Parameter(torch.zeros(queries, d))
            self.pos_embed = torch.nn.Parameter(torch.zeros(queries, d), requires_grad=False)
            if config.kv_dim != d:
                self.kv_proj = torch.nn.Linear(config.kv_dim, d, bias=False)
            self.ln_q, self.ln_kv = (torch.nn.LayerNorm(d, eps=config.layer_norm_eps) for _ in range(2))
            self.attn = torch.nn.MultiheadAttention(d, config.num_heads, batch_first=True)

        def forward(self, x):
            side, length = config.grid_size, round(x.shape[1] ** 0.5)
            grid = self.pos_embed.reshape(1, side, side, -1).permute(0, 3, 1, 2)
            if length != side:
                grid = torch.nn.functional.interpolate(grid, size=(length, length), mode="bicubic", align_corners=False)
            positions = grid.permute(0, 2, 3, 1).flatten(1, 2)
            x = self.ln_kv(self.kv_proj(x) if hasattr(self, "kv_proj") else x)
            queries = (self.ln_q(self.query) + self.pos_embed).expand(len(x), -1, -1)
            return self.attn(queries, x + positions, x, need_weights=False)[0]

    return Resampler()


def take_turns(contestants: dict[str, Callable[[], float]], rounds: int) -> tuple[dict[str, float], dict[str, list]]:
    """Median seconds of each after a warm step, and every loss."""
    losses = {name: [run()] for name, run in contestants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, run in contestants.items():
            started = time.perf_counter()
            losses[name].append(run())
            seconds[name].append(time.perf_counter() - started)
            print(number + 1, name, round(seconds[name][-1], 3), file=sys.stderr, flush=True)
    return {name: statistics.median(times) for name, times in seconds.items()}, losses


def middle_model(layers: int, width: int) -> ModelConfig:
    """The middle LLaMA with LoRA, and a ViT whose share of a published row's FLOPs is the published one."""
    story = middle_config(layers, width)
    lora = LoRAConfig(dropout=0.0)
    story = dataclasses.replace(story, llama=dataclasses.replace(story.llama, lora=lora, remat="dots"))
    features = story.output_resampler.grid_size**2
    row = story_training(story, row_tokens(story, "last"), TURNS, features, remat=False)
    wanted = PUBLISHED_VIT_SHARE / (1 - PUBLISHED_VIT_SHARE) * row / TURNS
    vits = [vit_of(width, depth, features) for depth in range(1, 65)]
    return ModelConfig(story=story, vit=min(vits, key=lambda vit: abs(flops.vit(vit) - wanted)))


def vit_of(width: int, depth: int, features: int) -> QwenViTConfig:
    side = round(features**0.5)
    return QwenViTConfig(
        image_size=16 * side,
        patch_size=16,
        width=width,
        layers=depth,
        heads=width // 64,
        n_queries=features,
        output_dim=width,
        position_grid=side,
        pool_heads=width // 64,
    )


def flops_ratio(model: ModelConfig) -> float:
    """FLOPs a supervised image: the last of ten turns with the ViT, over all nine from a cache."""
    story, features = model.story, model.vit.n_queries
    last = story_training(story, row_tokens(story, "last"), TURNS, features) + TURNS * flops.vit(model.vit)
    together = story_training(story, row_tokens(story, "all"), TURNS, features)
    return last / (together / (TURNS - 1))


def random_part(model: ModelConfig, part: str) -> Parameters:
    return with_prefix(part, initial_parameters(PARTS[part](model), jax.random.key(1)))


def on_cpu(layers: int, width: int, rows: int, rounds: int) -> list[dict]:
    """Both comparisons."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    model = middle_model(layers, width)
    story, size = model.story, model.vit.image_size
    rng = np.random.default_rng(2)
    parameters = random_part(model, "story")
    # Adapters begin at B = 0, which would hide a mistake in them.
    parameters = {
        name: jnp.asarray(rng.normal(size=value.shape) * 0.02, jnp.float32) if name.endswith("lora_b") else value
        for name, value in parameters.items()
    }
    features = rng.normal(size=(rows, TURNS, model.vit.n_queries, model.vit.output_dim)).astype(np.float32)
    last, together = (token_batch(story, rows, supervise) for supervise in ("last", "all"))
    common = {"device": "cpu", "cores": os.cpu_count(), "layers": layers, "width": width, "rows": rows}

    contestants = {
        "ours": OurStep(model, parameters, {**last, "image_features": features}, given),
        "torch": TorchStep(story, parameters, {**last, "image_features": features}),
    }
    seconds, losses = take_turns(contestants, rounds)
    difference = max(abs(a - b) / abs(b) for a, b in zip(losses["ours"], losses["torch"], strict=True))
    versus_torch = {
        "benchmark": "train_step_vs_torch",
        **common,
        "tokens": int(last["ids"].shape[1]),
        "torch_threads": torch.get_num_threads(),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "ratio": round(seconds["torch"] / seconds["ours"], 3),
        "loss": [round(losses[name][-1], 5) for name in ("ours", "torch")],
        "loss_difference": float(f"{difference:.1e}"),
    }
    del contestants

    vit = random_part(model, "vit")

    def encode(parameters, pictures):
        made = build(model, "vit", parameters)(pictures.reshape(-1, *pictures.shape[2:]))
        return made.reshape(*pictures.shape[:2], *made.shape[1:])

    pictures = rng.normal(size=(rows, TURNS, size, size, 3)).astype(np.float32)
    contestants = {
        "as_published": OurStep(model, {**parameters, **vit}, {**last, "image_features": pictures}, encode),
        "cached_all_turns": OurStep(model, parameters, {**together, "image_features": features}, given),
    }
    seconds, _ = take_turns(contestants, rounds)
    each = {name: seconds[name] / step.images for name, step in contestants.items()}
    share = TURNS * flops.vit(model.vit)
    share /= share + story_training(story, row_tokens(story, "last"), TURNS, model.vit.n_queries, remat=False)
    versus_published = {
        "benchmark": "train_step_vs_published",
        **common,
        "vit_share_of_flops": round(share, 3),
        "supervised_images": {name: step.images for name, step in contestants.items()},
        "seconds_an_image": {name: round(value, 4) for name, value in each.items()},
        "ratio": round(each["as_published"] / each["cached_all_turns"], 2),
        "flops_ratio": round(flops_ratio(model), 2),
        "flops_ratio_full_size": round(flops_ratio(load_config(ROOT / "configs" / "seedstory_7b.py").model), 2),
    }
    return [versus_torch, versus_published]


def random_weights(model: ModelConfig, part: str, trains: Callable[[str], bool], dtype: str) -> Parameters:
    """Small random numbers where they are stored: float32 if they train; nothing of the initialisers' care."""

    @partial(jax.jit, static_argnums=(1, 2))
    def draw(key, shape, dtype):
        return 0.02 * jax.random.normal(key, shape, dtype)

    shapes = with_prefix(part, abstract_parameters(PARTS[part](model))[1])
    made = {}
    for number, (name, leaf) in enumerate(shapes.items()):
        kept = jnp.float32 if trains(name) else jnp.dtype(dtype)
        if name.endswith("scale"):
            made[name] = jnp.ones(leaf.shape, kept)
        else:
            made[name] = draw(jax.random.key(number), leaf.shape, kept)
    return made


def timed_step(name: str, config: Config, part: str, trainable: str, loss, batch, operations: int, rounds: int) -> dict:
    """One stage's step: seconds, MFU where the device's peak is known, peak bytes where the device tells."""
    trains = trainable_names(part, trainable)
    parameters = random_weights(config.model, part, trains, config.model.frozen_dtype)
    trained = {name: value for name, value in parameters.items() if trains(name)}
    frozen = {name: value for name, value in parameters.items() if not trains(name)}
    optimizer = make_optimizer(OPTIMIZER, 10**6)
    state = jax.jit(optimizer.init)(trained)
    step = jax.jit(partial(train_step, loss, optimizer, 1), donate_argnums=(0, 1))
    batch, key, seconds = jax.device_put(batch), jax.random.key(0), []
    for number in range(rounds + 1):
        started = time.perf_counter()
        trained, state, metrics = step(trained, state, frozen, batch, key)
        value = float(metrics["loss"])
        seconds.append(time.perf_counter() - started)
        print(name, number, round(seconds[-1], 3), value, file=sys.stderr, flush=True)
    device, median = jax.devices()[0], statistics.median(seconds[1:])
    peak, memory = peak_flops(device.device_kind), device.memory_stats() or {}
    return {
        "benchmark": name,
        "device": device.device_kind,
        "rows": len(jax.tree.leaves(batch)[0]),
        "seconds": round(median, 4),
        "images_per_second": round(len(jax.tree.leaves(batch)[0]) / median, 2),
        "tflop": round(operations / 1e12, 2),
        "mfu": round(operations / median / peak, 4) if peak else None,
        "peak_bytes": memory.get("peak_bytes_in_use"),
        "loss_is_finite": bool(np.isfinite(value)),
    }


def on_gpu(config: Config, rows: int, rounds: int) -> list[dict]:
    """The story stage, the de-tokenizer stage as released, and the whole UNet."""
    model = config.model
    story, features, width = model.story, model.vit.n_queries, model.vit.output_dim
    side = model.image_size // model.vae.downscale
    turns = min(TURNS, config.story.max_turns)
    rng = np.random.default_rng(0)

    batch = token_batch(story, rows, "last", turns)
    length = config.story.max_length if batch["ids"].shape[1] <= config.story.max_length else batch["ids"].shape[1]
    padding = {"labels": -100, "image_slot": -1, "target_slot": -1}
    batch = {
        name: np.pad(value, ((0, 0), (0, length - value.shape[1])), constant_values=padding.get(name, 0))
        if value.ndim == 2 and name != "image_valid"
        else value
        for name, value in batch.items()
    }
    half = jnp.dtype("bfloat16")
    batch["image_features"] = rng.standard_normal((rows, turns, features, width), np.float32).astype(half)

    def story_loss(parameters, batch, key):
        total, _ = story_losses(build(model, "story", parameters), StoryBatch(**batch), dropout_key=key)
        return total, {}

    def drawing_loss(parameters, batch, key):
        sizes = jnp.tile(
            jnp.asarray(training_time_ids(model.image_size, model.image_size, 0, 0, model.image_size)),
            (len(batch["latents"]), 1),
        )
        detokenizer = build(model, "detokenizer", parameters)
        return denoising_loss(detokenizer, batch["latents"], batch["features"], sizes, key, model.scheduler), {}

    drawn = {
        "latents": rng.standard_normal((rows, side, side, model.vae.latent_channels), np.float32),
        "features": rng.standard_normal((rows, features, width), np.float32).astype(half),
    }
    lines = []
    operations = rows * story_training(story, length, turns, features, remat=False)
    lines.append(
        timed_step("story_step", config, "story", "released", story_loss, batch, operations, rounds)
        | {"tokens": length, "tokens_per_second": None}
    )
    lines[-1]["tokens_per_second"] = round(rows * length / lines[-1]["seconds"])
    for name, trainable in (("detokenizer_step", "released"), ("unet_full_step", "paper")):
        operations = rows * detokenizer_training(
            model.detokenizer, side, side, features, trains_unet=trainable == "paper", remat=False
        )
        lines.append(timed_step(name, config, "detokenizer", trainable, drawing_loss, drawn, operations, rounds))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rows", type=int, help="2 on a CPU, 8 with --gpu")
    parser.add_argument("--gpu", action="store_true", help="full size, random weights, on whatever device jax finds")
    parser.add_argument("--config", default=str(ROOT / "configs" / "seedstory_7b.py"), help="sizes for --gpu")
    flags = parser.parse_args()
    if flags.gpu:
        lines = on_gpu(load_config(flags.config), flags.rows or 8, flags.rounds)
    else:
        jax.config.update("jax_platforms", "cpu")
        lines = on_cpu(flags.layers, flags.width, flags.rows or 2, flags.rounds)
    for line in lines:
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    from seedstory_jax import cli

    if "--gpu" not in sys.argv:
        cli.tune_allocator()
    main()
