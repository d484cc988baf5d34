"""The toy: the whole system small, trained from nothing on two CPU cores in some fifteen minutes. Copy me."""

from ml_collections import ConfigDict

FEATURES = 128  # width of image features
WIDTH = 192  # of the language model
LATENTS = 64  # channels; 8 x 8 of them make a picture


def get_config() -> ConfigDict:
    """Sizes and schedules of the toy."""
    config = ConfigDict()
    config.seed = 0
    config.stages = ("vae", "vit", "detokenizer", "story", "adapt")

    config.data = {
        "toy_world": {"stories": 700, "validation_stories": 60, "series": 0},
        "resample": "box",  # the world's pictures are stored enlarged
    }

    config.model = {
        "image_size": 64,
        "frozen_dtype": "float32",  # CPUs gain nothing from bfloat16
        "vit": {
            "image_size": 64,
            "patch_size": 16,
            "width": FEATURES,
            "layers": 3,
            "heads": 4,
            "mlp_ratio": 3.0,
            "n_queries": 16,
            "output_dim": FEATURES,
            "position_grid": 4,
            "pool_heads": 4,
        },
        "vae": {
            "block_out_channels": (8, 16, 32, 64),
            "layers_per_block": 1,
            "latent_channels": LATENTS,
            "norm_num_groups": 4,
            "scaling_factor": 1.0,
            "linear_skip": True,
        },
        "story": {
            "llama": {
                "vocab_size": 384,
                "hidden_size": WIDTH,
                "intermediate_size": 496,  # rows of a power of two bytes thrash the cache when transposed
                "num_layers": 4,
                "num_heads": 4,
                "num_kv_heads": 4,
                "unroll": True,  # saves the backward pass from stacking what every layer remembers
                "lora": None,
            },
            "input_resampler": {"grid_size": 3, "embed_dim": WIDTH, "num_heads": 6, "kv_dim": FEATURES},
            "output_resampler": {"grid_size": 4, "embed_dim": FEATURES, "num_heads": 4, "kv_dim": WIDTH},
            "feature_loss_scale": 5.0,
        },
        "detokenizer": {
            "unet": {
                "in_channels": LATENTS,
                "out_channels": LATENTS,
                "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
                "block_out_channels": (96, 128),
                "layers_per_block": 1,
                "norm_num_groups": 8,
                "transformer_layers_per_block": (1, 1),
                "num_attention_heads": (4, 4),
                "cross_attention_dim": 128,
                "addition_time_embed_dim": 16,
                "projection_class_embeddings_input_dim": 6 * 16 + 64,
            },
            "perceiver": {
                "dim": 128,
                "depth": 2,
                "dim_head": 32,
                "heads": 4,
                "num_queries": 16,
                "embedding_dim": FEATURES,
                "output1_dim": 64,
                "output2_dim": 64,
                "ff_mult": 3,
            },
        },
        # Small models learn to predict the picture itself much sooner than its noise.
        "scheduler": {"prediction_type": "sample"},
    }

    fast = {"name": "muon", "b2": 0.98, "eps": 1e-8, "weight_decay": 0.01, "warmup_steps": 30, "learning_rate": 1e-2}
    config.vae = {
        "steps": 100,
        "batch_size": 32,
        # Of dozens of small kernels Muon would compile for longer than it saves.
        "optimizer": {**fast, "name": "adamw", "learning_rate": 3e-3, "weight_decay": 0.0},
        "save_every": 175,
    }
    config.vit = {
        "steps": 350,
        "batch_size": 64,
        "optimizer": fast,
        "save_every": 175,
    }
    config.detokenizer = {
        "steps": 108,
        "batch_size": 64,
        "trainable": "all",
        "optimizer": fast,
        "preview_every": 54,
        "save_every": 54,
    }
    config.story = {
        "steps": 400,
        "batch_size": 6,
        "trainable": "all",
        "supervise": "all",
        "max_turns": 10,
        "max_length": 464,
        "turns": "window+opening",
        "feature_noise": 0.3,
        "position_offset": 256,
        # Words stay inexact where their table and head learn as fast as the matrices.
        "optimizer": {**fast, "adam_scale": 0.2},
        "save_every": 200,
    }
    config.adapt = {
        "steps": 10,
        "batch_size": 64,
        "images_per_row": 8,
        "trainable": "all",
        "optimizer": {**fast, "name": "adamw", "learning_rate": 1e-3},
        "preview_every": 10,
        "save_every": 10,
    }
    config.sample = {
        "steps": 5,
        "guidance": 1.0,  # nothing was trained without its condition
        "batch_size": 30,
        "max_text_tokens": 40,
        "window": 8,
        "temperature": 0.8,  # the plot has many ways to go on; the likeliest one is that nothing happens
        "top_p": 0.95,
    }
    return config
