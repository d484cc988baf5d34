"""Low-rank adapters (Hu et al. 2021) as peft trains them: y = W x + (alpha / rank) · B A dropout(x)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Key

from seedstory_jax.limits import AboveZero, BelowOne, Positive
from seedstory_jax.models.dense import PROJECTED, dense

LoRAParam = nnx.LoRAParam  # a subclass of nnx.Param: filter for it before filtering for Param


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Adapter size; the defaults are the released ones (the paper's text says rank 6)."""

    rank: Positive = 16  # of the product of the two adapter matrices; for no adapter set lora=none
    alpha: AboveZero = 32.0  # the adapter's output is scaled by alpha / rank
    dropout: BelowOne = 0.05  # share of an adapter's inputs that training sets to zero

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"LoRA rank {self.rank}: at least 1 is needed; for no adapter set lora=None")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"LoRA dropout {self.dropout} is outside [0, 1)")

    @property
    def scale(self) -> float:
        """Factor on B A x."""
        return self.alpha / self.rank


class LoRALinear(nnx.Module):
    """Linear layer without bias, `kernel [in out]`, with an optional adapter `lora_a [in r]`, `lora_b [r out]`."""

    def __init__(
        self, in_features: int, out_features: int, lora: LoRAConfig | None, *, dtype: str = "float32", rngs: nnx.Rngs
    ):
        self.lora = lora
        self.dtype = jnp.dtype(dtype)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (in_features, out_features)))
        if lora is not None:
            # peft's start: A uniform in +-1/sqrt(in), B zero, so that the adapter begins as nothing.
            uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
            self.lora_a = LoRAParam(uniform(rngs.params(), (in_features, lora.rank)))
            self.lora_b = LoRAParam(jnp.zeros((lora.rank, out_features)))

    def __call__(self, x: Float[Array, "*b in"], dropout_key: Key[Array, ""] | None = None) -> Float[Array, "*b out"]:
        """Dropout acts on the adapter's input alone, and only where a key is given."""
        x = x.astype(self.dtype)
        y = dense(x, self.kernel[...].astype(self.dtype))
        if self.lora is None:
            return checkpoint_name(y, PROJECTED)
        if dropout_key is not None and self.lora.dropout > 0:
            keep = jax.random.bernoulli(dropout_key, 1.0 - self.lora.dropout, x.shape)
            x = jnp.where(keep, x / (1.0 - self.lora.dropout), 0).astype(self.dtype)
        low = self.lora.scale * dense(x, self.lora_a[...].astype(self.dtype))
        return checkpoint_name(y + dense(low, self.lora_b[...].astype(self.dtype)), PROJECTED)

    def merged_kernel(self) -> Float[Array, "in out"]:
        """W + (alpha / rank) · A B, summed in float32 and returned in the kernel's dtype."""
        kernel = self.kernel[...]
        if self.lora is None:
            return kernel
        delta = self.lora.scale * (self.lora_a[...].astype(jnp.float32) @ self.lora_b[...].astype(jnp.float32))
        return (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)
