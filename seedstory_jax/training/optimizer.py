"""AdamW with warm-up, cosine decay and clipping, as published for stages 2 and 3 (design, section 1); or Muon."""

from collections.abc import Mapping
from typing import Any

import optax
from optax.contrib import MuonDimensionNumbers

from seedstory_jax.config import OptimizerConfig

ADAMW_RMS = 0.2  # root mean square of AdamW's updates, by which one learning rate does for both
MATRIX_AXES = {
    2: MuonDimensionNumbers(0, 1),
    3: MuonDimensionNumbers(1, 2),
    4: MuonDimensionNumbers((0, 1, 2), 3),
}


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, then a cosine down to `final_fraction` of it at step `steps`."""
    warmup = min(config.warmup_steps, max(steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(steps, 1),
        end_value=config.learning_rate * config.final_fraction,
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by the global norm, then the optimizer of that name, with decoupled weight decay on all it trains.

    "muon" orthogonalises the momentum of weight matrices (Jordan et al., 2024), with updates scaled to be as large as
    AdamW's (Liu et al., 2025), and leaves the rest to AdamW at `adam_scale` of the learning rate: far fewer steps for
    models that begin with nothing.
    """
    schedule = learning_rate(config, steps)
    if config.name == "muon":
        update = optax.contrib.muon(
            schedule,
            eps=config.eps,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_weight_decay=config.weight_decay,
            adam_learning_rate=lambda step: config.adam_scale * schedule(step),
            muon_weight_dimension_numbers=weight_matrices,
            consistent_rms=ADAMW_RMS,
        )
    else:
        update = optax.adamw(schedule, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def weight_matrices(parameters: Mapping[str, Any]) -> dict[str, MuonDimensionNumbers | None]:
    """Which axes of each parameter are a matrix's input and output; None for what is no hidden layer's matrix.

    Kernels are [in out], a stack of layers' [layers in out], a convolution's [height width in out].
    """
    return {name: MATRIX_AXES.get(_kernel_axes(name, value)) for name, value in parameters.items()}


def _kernel_axes(name: str, value: Any) -> int:
    """How many axes a kernel has; 0 for embeddings, heads, norms, biases, adapters, and for what optax has masked."""
    is_matrix = name.endswith((".kernel", ".in_proj_weight")) and not name.endswith("lm_head.kernel")
    return getattr(value, "ndim", 0) if is_matrix else 0
