"""LLaMA (Touvron et al. 2023) with LoRA: RMSNorm, rotary positions, SwiGLU, optional grouped key/value heads.

Layers are stacked and scanned, as training wants them; `llama_inference` extends a KV buffer.

Axis letters: b batch, t query, s key slot, n query heads, k kv heads, h head dim, d model, f mlp, v vocab, l layer.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from seedstory_jax.limits import AboveZero, Floating, Positive, Remat
from seedstory_jax.models.attention import MASKED_LOGIT, attend
from seedstory_jax.models.layer_stack import constrain, scan_layers, stack_layers
from seedstory_jax.models.lora import LoRAConfig, LoRALinear
from seedstory_jax.models.rope import rotate

VOCAB_MULTIPLE = 128  # 32066 divides by no mesh; 32128 does


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes; the defaults are LLaMA-2-7B with SEED-Story's 66 image tokens and the released adapter.

    Attributes:
        vocab_size: ids a user may see; the tables are padded to `padded_vocab_size`, and the rest is masked.
        hidden_size: width.
        intermediate_size: hidden width of the MLPs.
        num_layers: layers.
        num_heads: query heads.
        num_kv_heads: fewer than num_heads groups the query heads.
        rms_norm_eps: added to mean squares in norms.
        rope_theta: base of the rotary positions' wavelengths.
        tie_word_embeddings: the head is the embedding table; the model has no `lm_head` then.
        lora: None gives a model without adapters.
        remat: what the backward pass recomputes, see `layer_stack.scan_layers`.
        unroll: layers written out per scan step; True for all.
        dtype: compute dtype. Norms, softmax and logits stay float32.
    """

    vocab_size: Positive = 32066
    hidden_size: Positive = 4096
    intermediate_size: Positive = 11008
    num_layers: Positive = 32
    num_heads: Positive = 32
    num_kv_heads: Positive = 32
    rms_norm_eps: AboveZero = 1e-5
    rope_theta: AboveZero = 1e4
    tie_word_embeddings: bool = False
    lora: LoRAConfig | None = dataclasses.field(default_factory=LoRAConfig)
    remat: Remat = "none"
    unroll: bool | Positive = 1
    dtype: Floating = "float32"

    def __post_init__(self):
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} does not divide into num_heads {self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is no multiple of num_kv_heads {self.num_kv_heads}")

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.hidden_size // self.num_heads

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table and columns of the head."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


class RMSNorm(nnx.Module):
    """Root mean square norm (Zhang & Sennrich 2019), computed in float32, returned in `dtype`."""

    def __init__(self, features: int, eps: float, dtype: str):
        self.eps = eps
        self.dtype = jnp.dtype(dtype)
        self.scale = nnx.Param(jnp.ones((features,)))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """x / rms(x) · scale."""
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        return (x * self.scale[...].astype(jnp.float32)).astype(self.dtype)


class LlamaAttention(nnx.Module):
    """Projections around attention; what the queries may read is the caller's business."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        d, n, k, h = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
        self.head_dim = h
        self.rope_theta = config.rope_theta
        self.q_proj = LoRALinear(d, n * h, config.lora, dtype=config.dtype, rngs=rngs)
        self.k_proj = LoRALinear(d, k * h, config.lora, dtype=config.dtype, rngs=rngs)
        self.v_proj = LoRALinear(d, k * h, config.lora, dtype=config.dtype, rngs=rngs)
        self.o_proj = LoRALinear(n * h, d, config.lora, dtype=config.dtype, rngs=rngs)

    def project(self, x, positions, dropout_key=None):
        """x [b t d] -> q [b t n h], k [b t k h], v [b t k h], q and k turned to their positions."""
        q = self._heads(self.q_proj(x, _branch(dropout_key, 0)), "btnh")
        k = self._heads(self.k_proj(x, _branch(dropout_key, 1)), "btkh")
        v = self._heads(self.v_proj(x, _branch(dropout_key, 2)), "btkh")
        return rotate(q, positions, self.rope_theta), rotate(k, positions, self.rope_theta), v

    def output(self, attended, dropout_key=None):
        """[b t n h] -> [b t d]."""
        return self.o_proj(attended.reshape(*attended.shape[:2], -1), _branch(dropout_key, 3))

    def _heads(self, x, letters):
        return constrain(x.reshape(*x.shape[:2], -1, self.head_dim), letters)


class LlamaMLP(nnx.Module):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        d, f = config.hidden_size, config.intermediate_size
        self.gate_proj = LoRALinear(d, f, config.lora, dtype=config.dtype, rngs=rngs)
        self.up_proj = LoRALinear(d, f, config.lora, dtype=config.dtype, rngs=rngs)
        self.down_proj = LoRALinear(f, d, config.lora, dtype=config.dtype, rngs=rngs)

    def __call__(self, x, dropout_key=None):
        """[b t d] -> [b t d]."""
        gate = self.gate_proj(x, _branch(dropout_key, 4))
        hidden = constrain(jax.nn.silu(gate) * self.up_proj(x, _branch(dropout_key, 5)), "btf")
        return self.down_proj(hidden, _branch(dropout_key, 6))


class LlamaLayer(nnx.Module):
    """One pre-norm block, cut in two where attention reads: `project`, then `finish`."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.dtype)
        self.self_attn = LlamaAttention(config, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.dtype)
        self.mlp = LlamaMLP(config, rngs=rngs)

    def __call__(self, x, positions, mask, dropout_key=None):
        """[b t d] -> [b t d], every token reading those of its own rows that `mask` [b t s] lets it."""
        q, k, v = self.project(x, positions, dropout_key)
        return self.finish(x, attend(q, k, v, mask, causal=True), dropout_key)

    def project(self, x, positions, dropout_key=None):
        """x [b t d] -> q, k, v of its normed self."""
        return self.self_attn.project(self.input_layernorm(x), positions, dropout_key)

    def finish(self, x, attended, dropout_key=None):
        """Adds what was attended to, then the feed-forward: [b t d], [b t n h] -> [b t d]."""
        x = constrain(x + self.self_attn.output(attended, dropout_key), "btd")
        return constrain(x + self.mlp(self.post_attention_layernorm(x), dropout_key), "btd")


class Llama(nnx.Module):
    """Embedding table, stacked layers, final norm, output head (a table of its own, unless the config ties them)."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        self.config = config
        d, v = config.hidden_size, config.padded_vocab_size
        table = nnx.initializers.normal(d**-0.5)
        self.embed_tokens = nnx.Embed(
            v, d, dtype=jnp.dtype(config.dtype), param_dtype=jnp.float32, embedding_init=table, rngs=rngs
        )
        self.layers = stack_layers(lambda rngs: LlamaLayer(config, rngs=rngs), config.num_layers, rngs)
        self.norm = RMSNorm(d, config.rms_norm_eps, config.dtype)
        if not config.tie_word_embeddings:
            self.lm_head = nnx.Linear(
                d, v, use_bias=False, dtype=jnp.dtype(config.dtype), param_dtype=jnp.float32, rngs=rngs
            )

    def embed(self, ids: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Token embeddings in the compute dtype."""
        return constrain(self.embed_tokens(ids), "btd")

    def __call__(
        self,
        embeddings: Float[Array, "b t d"],
        positions: Int[Array, "b t"],
        mask: Bool[Array, "b t t"],
        *,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b t d"]:
        """Hidden states after the final norm; `mask[b, t, s]` says whether token t reads token s, itself or earlier.

        LoRA dropout is on where `dropout_key` is given, with its own key in each layer and each projection.
        """
        keys = None if dropout_key is None else jax.random.split(dropout_key, self.config.num_layers)

        def step(layer: LlamaLayer, x, key):
            return layer(x, positions, mask, key), None

        x = constrain(embeddings.astype(self.norm.dtype), "btd")
        x, _ = scan_layers(self.layers, step, x, keys, remat=self.config.remat, unroll=self.config.unroll)
        return self.norm(x)

    def logits(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """Float32 scores over the padded vocabulary; ids from `vocab_size` on are masked with a large negative."""
        tied = self.config.tie_word_embeddings
        kernel = (self.embed_tokens.embedding if tied else self.lm_head.kernel)[...].astype(self.norm.dtype)
        product = "btd,vd->btv" if tied else "btd,dv->btv"
        scores = jnp.einsum(product, hidden, kernel, preferred_element_type=jnp.float32)
        real = jnp.arange(self.config.padded_vocab_size) < self.config.vocab_size
        return constrain(jnp.where(real, scores, MASKED_LOGIT), "btv")


def causal_mask(attention_mask: Bool[Array, "b t"]) -> Bool[Array, "b t t"]:
    """Token t reads the real tokens s <= t. Rows of padding read what is real before them, or nothing."""
    length = attention_mask.shape[1]
    return jnp.tril(jnp.ones((length, length), bool))[None] & attention_mask[:, None, :]


def _branch(key, number):
    return None if key is None else jax.random.fold_in(key, number)
