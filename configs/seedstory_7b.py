"""SEED-Story at its published size (Yang et al. 2024): Qwen-VL's ViT-G, LLaMA-2-7B with LoRA, SD-XL. Copy me.

    --config=configs/seedstory_7b.py             as the code was released: LoRA rank 16; of the UNet to_k and to_v train
    --config=configs/seedstory_7b.py:paper       as the paper says: LoRA rank 6; the whole UNet trains

Sizes that are not written here are the models' defaults, which are the published ones.
docs/weights.md tells how to get and convert the weights, and what to fill in for `model.base` and `data`.
"""

from ml_collections import ConfigDict

from seedstory_jax.errors import UserError

VARIANTS = ("released", "paper")


def get_config(variant: str = "released") -> ConfigDict:
    """Published sizes and schedules; `variant` is "released" or "paper"."""
    if variant not in VARIANTS:
        raise UserError(f"unknown variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    paper = variant == "paper"
    config = ConfigDict()
    config.seed = 42
    config.stages = ("detokenizer", "story", "adapt")

    # bfloat16 arithmetic everywhere but in the VAE, which overflows in half precision (the released pipeline lifts it).
    half = {"dtype": "bfloat16"}
    config.model = {
        "base": "",  # the folder that `python -m seedstory_jax.convert import` wrote
        "image_size": 1024,
        "frozen_dtype": "bfloat16",  # of weights that a stage does not train; those it trains are float32
        "vit": half,
        "story": {
            # Recomputing the layers in the backward pass keeps one layer's activations instead of 32.
            "llama": {**half, "remat": "full", "lora": {"rank": 6 if paper else 16, "alpha": 32.0, "dropout": 0.05}},
            "input_resampler": {**half, "grid_size": 8},
            "output_resampler": {**half, "grid_size": 16},
            "logits_chunk": 256,  # a row's logits whole would be 164 MB, and as much again for their gradient
        },
        "detokenizer": {"unet": {**half, "remat": "full"}, "perceiver": half},
    }

    config.data = {
        "folder": "",  # StoryStream's JSONL files, stories cut to ten pictures, with their images
        "tokenizer": "",  # LLaMA's tokenizer with the 66 image tokens
    }

    # Every device holds its part of the weights and works on its part of the batch.
    config.mesh = {"data": 1, "fsdp": -1, "tensor": 1}

    trainable = "paper" if paper else "released"
    # The schedule of stage 1 was not published; it takes stage 3's.
    draws = {
        "learning_rate": 1e-4,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.03,
        "warmup_steps": 500,
        "final_fraction": 0.01,
        "clip_norm": 1.0,
        "accumulation": 4,
    }
    config.detokenizer = {"steps": 1600, "batch_size": 32, "trainable": trainable, "optimizer": draws}
    config.story = {
        "steps": 6000,
        "batch_size": 128,  # rows over all devices; the released script says 16 on each of 8
        "trainable": trainable,
        "supervise": "last",  # "all" trains every turn of a row at once, several times the signal for a step
        "max_length": 1280,
        "max_turns": 10,
        "optimizer": {},  # OptimizerConfig's defaults are this stage's
    }
    config.adapt = {"steps": 1600, "batch_size": 32, "trainable": trainable, "optimizer": draws}

    config.sample = {"steps": 50, "guidance": 7.5, "batch_size": 4, "max_text_tokens": 128, "window": 8}
    return config
