"""Your own stories on top of SEED-Story's weights (or SEED-X's), at the published size. Copy me.

    --config=configs/finetune.py              eight GPUs of 80 GB, LoRA and the resamplers
    --config=configs/finetune.py:v5e-16       a TPU slice of sixteen v5e
    --config=configs/finetune.py:one-gpu      one GPU of 80 GB

`model.base` is the folder that `python -m seedstory_jax.convert import` wrote: of SEED-Story's checkpoints to go on
from them, or of SEED-X's (the same modules) to begin where SEED-Story began. Then set `data.folder` to your stories,
or to several folders with commas between, and `data.weights` to the share of rows that each shall have:

    --config.model.base=weights --config.data.folder=own,storystream --config.data.weights=3,1
    --config.data.features=own-features,storystream-features --config.data.tokenizer=pretrained/cvlm_llama2_tokenizer

What a variant needs is said by `python train.py --config=configs/finetune.py --workdir=none --dry_run`, where it shall
run, and by `python -m seedstory_jax.describe --config=configs/finetune.py` anywhere.
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

from seedstory_jax.errors import UserError

# Rows of the story stage and pictures of the de-tokenizer's over all devices, and micro-batches a step.
SIZES = {
    "8x80gb": {"mesh": {"data": 1, "fsdp": 8, "tensor": 1}, "rows": 16, "pictures": 16, "accumulation": 2},
    "v5e-16": {"mesh": {"data": 1, "fsdp": 16, "tensor": 1}, "rows": 16, "pictures": 16, "accumulation": 1},
    "one-gpu": {"mesh": {"data": 1, "fsdp": 1, "tensor": 1}, "rows": 8, "pictures": 8, "accumulation": 8},
}


def get_config(variant: str = "8x80gb") -> ConfigDict:
    """The published model and losses, a short schedule, all turns supervised."""
    if variant not in SIZES:
        raise UserError(f"unknown variant {variant!r}; choose one of {', '.join(SIZES)}")
    size = SIZES[variant]
    config = _published()
    config.stages = ("story", "adapt")
    config.mesh = size["mesh"]
    config.data = {
        "folder": "",
        "tokenizer": "",
        "features": "workdir",  # better: made once by `python -m seedstory_jax.storystream features`
        "features_dtype": "bfloat16",
        "workers": 4,
    }
    gentle = {"learning_rate": 5e-5, "warmup_steps": 50, "final_fraction": 0.05, "accumulation": size["accumulation"]}
    config.story.update(
        {
            "steps": 1000,
            "batch_size": size["rows"] * size["accumulation"],
            "supervise": "all",
            "max_length": 1792,  # ten turns of 40 words, their images read and drawn
            "turns": "prefix",
            "save_every": 100,
            "eval_every": 100,
            "optimizer": gentle,
        }
    )
    config.adapt.update(
        {
            "steps": 500,
            "batch_size": size["pictures"] * size["accumulation"],
            "save_every": 100,
            "eval_every": 100,
            "preview_every": 100,
        }
    )
    config.adapt.optimizer.update({"learning_rate": 5e-5, "warmup_steps": 50, "accumulation": size["accumulation"]})
    return config


def _published() -> ConfigDict:
    """The config of the published model, from the file beside this one."""
    file = Path(__file__).with_name("seedstory_7b.py")
    spec = importlib.util.spec_from_file_location("seedstory_7b", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()
