"""SEED-Story in JAX: write and draw long multimodal stories (Yang et al., 2024, arXiv 2407.08683)."""

__version__ = "0.1.0"
