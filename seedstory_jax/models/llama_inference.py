"""LLaMA for inference: one array a layer, fused projections, and a KV buffer that it extends.

Training stacks its layers, and a scan cuts each layer's weights out of the stack: when decoding, a copy of every weight
for every token. Here every layer has arrays of its own, read where they are; q, k, v are one product, gate and up
another.

Axis letters: b story, t new token, s slot, k kv head, g query heads of one of those, h head dim, d model, f mlp,
c gate and up.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from seedstory_jax.models.attention import attend, attend_buffer
from seedstory_jax.models.kv_buffer import (
    EMPTY,
    KVBuffer,
    TokenChunk,
    append_metadata,
    slot_targets,
    visible,
    write_keys,
    write_values,
)
from seedstory_jax.models.layer_stack import constrain
from seedstory_jax.models.llama import Llama, LlamaConfig, LlamaLayer
from seedstory_jax.models.rope import rotate


class FusedLinear(nnx.Module):
    """Linear layer without bias; its `kernel [in *out]` may have several output axes."""

    def __init__(self, kernel: Float[Array, "in *out"], dtype: str):
        self.kernel = nnx.Param(kernel)
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x: Float[Array, "*b in"]) -> Float[Array, "..."]:
        """[*b in] -> [*b *out] in the compute dtype."""
        return jnp.tensordot(x.astype(self.dtype), self.kernel[...].astype(self.dtype), 1)


class InferenceLayer(nnx.Module):
    """One pre-norm block with its adapters merged and its projections fused."""

    def __init__(self, config: LlamaConfig, layer: LlamaLayer):
        d, h, k = config.hidden_size, config.head_dim, config.num_kv_heads
        attention, mlp = layer.self_attn, layer.mlp
        q, key, value = (
            part.merged_kernel().reshape(d, k, -1) for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        gate, up = mlp.gate_proj.merged_kernel(), mlp.up_proj.merged_kernel()
        self.head_dim, self.rope_theta = h, config.rope_theta
        self.input_layernorm = layer.input_layernorm
        # A kv head with its own query heads side by side: split over devices, each finds all it needs at home.
        self.qkv_proj = FusedLinear(jnp.concatenate([q, key, value], axis=-1), config.dtype)
        self.o_proj = FusedLinear(attention.o_proj.merged_kernel(), config.dtype)
        self.post_attention_layernorm = layer.post_attention_layernorm
        self.gate_up_proj = FusedLinear(jnp.stack([gate, up], axis=1), config.dtype)
        self.down_proj = FusedLinear(mlp.down_proj.merged_kernel(), config.dtype)

    def project(self, x, positions):
        """x [b t d] -> q [b t n h], k [b t k h], v [b t k h] of its normed self, q and k turned to their positions."""
        rows, length = x.shape[:2]
        heads = constrain(self.qkv_proj(self.input_layernorm(x)), "btk_")
        heads = heads.reshape(rows, length, heads.shape[2], -1, self.head_dim)  # [b t k g+2 h]
        unturned = heads[..., :-1, :].reshape(rows, length, -1, self.head_dim)
        turned = rotate(unturned, positions, self.rope_theta).reshape(*heads.shape[:3], -1, self.head_dim)
        return turned[..., :-1, :].reshape(rows, length, -1, self.head_dim), turned[..., -1, :], heads[..., -1, :]

    def finish(self, x, attended):
        """Adds what was attended to, then the feed-forward: [b t d], [b t n h] -> [b t d]."""
        x = constrain(x + self.o_proj(attended.reshape(*attended.shape[:2], -1)), "btd")
        gate_up = constrain(self.gate_up_proj(self.post_attention_layernorm(x)), "btcf")
        return constrain(x + self.down_proj(jax.nn.silu(gate_up[..., 0, :]) * gate_up[..., 1, :]), "btd")


class InferenceLlama(nnx.Module):
    """The function of a `Llama` that extends a KV buffer; shares its embedding table, norm and head."""

    def __init__(self, llama: Llama):
        self.config = dataclasses.replace(llama.config, lora=None)
        self.embed_tokens = llama.embed_tokens
        self.layers = nnx.List(inference_layers(llama))
        self.norm = llama.norm
        if not llama.config.tie_word_embeddings:
            self.lm_head = llama.lm_head

    embed = Llama.embed
    logits = Llama.logits

    def __call__(
        self,
        embeddings: Float[Array, "b t d"],
        positions: Int[Array, "b t"],
        mask: Bool[Array, "b t t"],
        *,
        dropout_key: None = None,
    ) -> Float[Array, "b t d"]:
        """Hidden states of whole rows without a buffer, as `Llama` computes them (there is nothing to drop out)."""
        x = constrain(embeddings.astype(self.norm.dtype), "btd")
        for layer in self.layers:
            x = layer.finish(x, attend(*layer.project(x, positions), mask, causal=True))
        return self.norm(x)

    def extend(
        self, embeddings: Float[Array, "b t d"], chunk: TokenChunk, buffer: KVBuffer
    ) -> tuple[Float[Array, "b t d"], KVBuffer]:
        """Appends a chunk to the buffer: its tokens read all slots at or before their own position, and themselves.

        A layer attends to its slots as they were and to the chunk itself, and writes afterwards: so XLA updates a
        donated buffer in place, and the loop over tokens copies none of it. Hidden states of padding (beyond
        `chunk.count`) are meaningless. The new tokens must fit: the host reserves slots.
        """
        targets = slot_targets(buffer, chunk)
        is_real = jnp.arange(chunk.position.shape[1]) < chunk.count[:, None]
        seen = visible(buffer.position, chunk.position)
        seen_new = visible(jnp.where(is_real, chunk.position, EMPTY), chunk.position)
        buffer = append_metadata(buffer, chunk)
        x = constrain(embeddings.astype(self.norm.dtype), "btd")
        keys, values = [], []
        for layer, old_keys, old_values in zip(self.layers, buffer.k, buffer.v, strict=True):
            layer, x, old_keys, old_values = _behind_barrier(layer, x, old_keys, old_values)
            q, k, v = layer.project(x, chunk.position)
            k, v = k.astype(old_keys.dtype), v.astype(old_values.dtype)
            attended = attend_buffer(q, old_keys, old_values, seen, k, v, seen_new)
            x = layer.finish(x, attended)
            k, v = _written_after(attended, k), _written_after(attended, v)
            keys.append(write_keys(old_keys, k, targets))
            values.append(write_values(old_values, v, targets))
        return self.norm(x), dataclasses.replace(buffer, k=tuple(keys), v=tuple(values))


def _behind_barrier(layer: InferenceLayer, *arrays: Array) -> tuple[InferenceLayer, *tuple[Array, ...]]:
    """The same layer and arrays, none of them touched before all of them are there.

    Else XLA converts what is stored in fewer bits all at once, even before a loop: a float32 copy of the whole model.
    """
    graph, state = nnx.split(layer)
    state, *arrays = jax.lax.optimization_barrier((state, *arrays))
    return nnx.merge(graph, state), *arrays


def _written_after(attended: Float[Array, "b t n h"], new: Float[Array, "b t k h"]) -> Float[Array, "b t k h"]:
    """`new`, known only once a query head of each kv head has attended (and NaN where that gave NaN).

    XLA overwrites an array in place if it sees that nobody reads it any more; a barrier does not tell all its versions.
    """
    first = attended.reshape(*new.shape[:3], -1, new.shape[3])[..., 0, :1]
    return jnp.where(jnp.isnan(first), first.astype(new.dtype), new)


def inference_layers(llama: Llama) -> Iterator[InferenceLayer]:
    """Each layer of the stack for inference, one at a time: no second stack is held meanwhile."""
    graph, state = nnx.split(llama.layers)
    layer_graph = nnx.split(nnx.eval_shape(lambda state: _layer(llama.config, graph, state, 0), state))[0]
    for number in range(llama.config.num_layers):
        yield nnx.merge(layer_graph, _layer_weights(llama.config, graph, state, number))


def _layer(config, graph, state, number) -> InferenceLayer:
    return InferenceLayer(config, nnx.merge(graph, jax.tree.map(lambda stack: stack[number], state)))


@partial(jax.jit, static_argnums=(0, 1))
def _layer_weights(config, graph, state, number):
    return nnx.state(_layer(config, graph, state, number))
