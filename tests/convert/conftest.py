"""Tiny random models in the published classes' own formats, of several geometries."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from seedstory_jax.checkpoints.parts import module_shapes
from seedstory_jax.config import ModelConfig
from seedstory_jax.convert.llama import llama_config_from_published
from seedstory_jax.convert.qwen_vit import qwen_vit_rules
from seedstory_jax.convert.resampler import resampler_rules
from seedstory_jax.convert.rules import export_names, prefixed
from seedstory_jax.convert.sdxl import (
    perceiver_rules,
    scheduler_config_from_published,
    unet_config_from_published,
    vae_config_from_published,
)
from seedstory_jax.models.qwen_vit import QwenViTConfig
from seedstory_jax.models.resampler import ResamplerConfig
from seedstory_jax.models.sdxl.detokenizer import DetokenizerConfig
from seedstory_jax.models.sdxl.perceiver import PerceiverConfig
from seedstory_jax.models.story_mllm import StoryMLLMConfig

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SAVED = ["input_layernorm", "post_attention_layernorm", "norm"]


@dataclass(frozen=True)
class Geometry:
    """What differs between the tiny models."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    base_rows: int  # vocabulary of the base model
    rows: int  # with the image tokens
    rank: int
    channels: tuple[int, ...]
    unet_heads: tuple[int, ...]
    depths: tuple[int, ...]
    grid: int
    vit_layers: int


GEOMETRIES = {
    "square": Geometry(32, 2, 4, 4, 48, 50, 59, 4, (8, 16), (2, 4), (1, 2), 2, 2),
    "grouped": Geometry(48, 3, 6, 2, 40, 140, 149, 3, (16, 16, 32), (2, 2, 4), (1, 1, 3), 3, 3),
}


@dataclass(frozen=True)
class Published:
    """A folder of downloads and what made it."""

    root: Path
    config: ModelConfig
    agent: object  # the peft-wrapped torch model
    unet: object
    vae: object


def random_tensors(config, module, rules, keep=lambda path: True, seed=0):
    """Random published tensors under a table's names, as torch tensors."""
    import torch

    shapes = {path: shape for path, shape in module_shapes(config, module).items() if keep(path)}
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, at in export_names(shapes, rules, partial=True).items():
        ours = shapes[at.path] if at.layer is None else shapes[at.path][1:]
        values = at.rule.transform.inverse(rng.normal(size=ours).astype(np.float32))
        tensors[name] = torch.from_numpy(np.ascontiguousarray(values))
    return tensors


def published_naming(state):
    """Names as peft 0.4 gave them."""
    return {name.replace(".base_layer.", "."): value for name, value in state.items()}


@pytest.fixture(scope="session", params=list(GEOMETRIES))
def published(request, tmp_path_factory):
    """All downloads of one geometry: LLaMA in shards, agent as .bin, SD-XL as diffusers, ViT as .pt."""
    torch = pytest.importorskip("torch")
    return make_published(torch, tmp_path_factory.mktemp(request.param), GEOMETRIES[request.param])


def make_published(torch, root, g):
    import warnings

    import diffusers
    import peft
    import transformers

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        llama_config = transformers.LlamaConfig(
            vocab_size=g.base_rows,
            hidden_size=g.width,
            intermediate_size=g.mlp,
            num_hidden_layers=g.layers,
            num_attention_heads=g.heads,
            num_key_value_heads=g.kv_heads,
            tie_word_embeddings=False,
        )
        llama = transformers.LlamaForCausalLM(llama_config)
        llama.save_pretrained(root / "Llama-2-7b-hf", max_shard_size="20KB")
        llama.resize_token_embeddings(g.rows)
        lora = peft.LoraConfig(
            r=g.rank,
            lora_alpha=8,
            lora_dropout=0.0,
            target_modules=TARGETS,
            modules_to_save=SAVED,
            task_type="CAUSAL_LM",
        )
        agent = peft.get_peft_model(llama, lora).eval()
        with torch.no_grad():
            for name, parameter in agent.named_parameters():
                if "lora_B" in name or "norm" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        unet = diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=g.channels,
            down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * (len(g.channels) - 1)),
            up_block_types=(*["CrossAttnUpBlock2D"] * (len(g.channels) - 1), "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=24,
            transformer_layers_per_block=g.depths,
            attention_head_dim=g.unet_heads,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=16 + 24,
        ).eval()
        vae = diffusers.AutoencoderKL(
            block_out_channels=g.channels,
            down_block_types=["DownEncoderBlock2D"] * len(g.channels),
            up_block_types=["UpDecoderBlock2D"] * len(g.channels),
            layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=0.13025,
            latent_channels=4,
        ).eval()
        scheduler = diffusers.EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        )
        pipeline = root / "stable-diffusion-xl-base-1.0"
        for part, name in ((unet, "unet"), (vae, "vae"), (scheduler, "scheduler")):
            part.save_pretrained(pipeline / name)
        (pipeline / "model_index.json").write_text("{}")

    read = json.loads((root / "Llama-2-7b-hf" / "config.json").read_text())
    llama_config = dataclasses.replace(
        llama_config_from_published(read, {**lora.to_dict(), "lora_dropout": 0.0}), vocab_size=g.rows
    )
    features = 16
    config = ModelConfig(
        vit=QwenViTConfig(16, 4, 24, g.vit_layers, 2, 2.0, g.grid**2, features, pool_heads=2),
        story=StoryMLLMConfig(
            llama=llama_config,
            input_resampler=ResamplerConfig(g.grid, g.width, 4, features),
            output_resampler=ResamplerConfig(g.grid, features, 2, g.width),
        ),
        detokenizer=DetokenizerConfig(
            unet=unet_config_from_published(json.loads((pipeline / "unet" / "config.json").read_text())),
            perceiver=PerceiverConfig(16, 2, 8, 2, 4, features, 8, 16, 2),
        ),
        vae=vae_config_from_published(json.loads((pipeline / "vae" / "config.json").read_text())),
        scheduler=scheduler_config_from_published(
            json.loads((pipeline / "scheduler" / "scheduler_config.json").read_text())
        ),
    )
    story = config.story
    resamplers = random_tensors(
        config,
        "story",
        (
            *prefixed(resampler_rules(story.input_resampler), "input_resampler.", "input_resampler."),
            *prefixed(resampler_rules(story.output_resampler), "output_resampler.", "output_resampler."),
        ),
    )
    state = {f"llm.{name}": value for name, value in published_naming(agent.state_dict()).items()}
    (root / "agent").mkdir()
    torch.save({**state, **resamplers}, root / "agent" / "pytorch_model.bin")
    (root / "detokenizer").mkdir()
    perceiver = random_tensors(
        config, "detokenizer", prefixed(perceiver_rules(), "resampler.", "perceiver."), lambda p: p[:4] != "unet"
    )
    keys = {f"unet.{name}": value + 1 for name, value in unet.state_dict().items() if ".to_k." in name}
    torch.save({**perceiver, **keys}, root / "detokenizer" / "pytorch_model.bin")
    (root / "QwenViT").mkdir()
    torch.save(random_tensors(config, "vit", qwen_vit_rules(config.vit)), root / "QwenViT" / "qwen_vit_G.pt")
    return Published(root, config, agent, unet, vae)
