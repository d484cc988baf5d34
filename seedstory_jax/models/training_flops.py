"""Floating point operations of training steps: forward, backward, and what rematerialisation computes again.

Conventions of `flops`. A product y = x W costs as much again for the gradient of x, and once more for that of W where W
trains; frozen weights get none. Attention has two operands that both get gradients, and the LLaMA's computes its
logits again. `remat=False` leaves out what is computed again: the operations that count for model FLOPs utilisation.
All functions count one row, or one picture.
"""

from seedstory_jax.models.flops import (
    attention,
    causal_attention,
    conv,
    linear,
    llama_forward,
    perceiver,
    resampler,
    unet,
)
from seedstory_jax.models.llama import LlamaConfig
from seedstory_jax.models.resampler import ResamplerConfig
from seedstory_jax.models.sdxl.detokenizer import DetokenizerConfig
from seedstory_jax.models.sdxl.transformer_2d import FEED_FORWARD_FACTOR
from seedstory_jax.models.sdxl.unet import ATTENTION_DOWN, ATTENTION_UP, UNetConfig
from seedstory_jax.models.story_mllm import StoryMLLMConfig


def llama_training(
    config: LlamaConfig, length: int, *, scored: int = 0, trains_base: bool = False, remat: bool = True
) -> int:
    """Forward and backward over `length` tokens, `scored` of them with logits; adapters, tables and norms train.

    `trains_base`: the projections' own weights train too, not their adapters alone.
    """
    d, f = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    mixing = config.num_layers * causal_attention(length, queries)
    layers = llama_forward(config, length) - mixing
    projections = 2 * queries + 2 * keys
    base = config.num_layers * (linear(length, d, projections) + 3 * linear(length, d, f))
    adapters = layers - base
    total = 3 * (mixing + adapters) + (3 if trains_base else 2) * base + 3 * linear(scored, d, config.padded_vocab_size)
    total += mixing // 2 if remat else 0
    if remat and config.remat == "full":
        # The last product's result is what the next layer keeps anyway.
        down = linear(length, f, d) + (linear(length, config.lora.rank, d) if config.lora else 0)
        total += layers + mixing - config.num_layers * down
    elif remat and config.remat == "dots" and config.lora is not None:
        total += config.num_layers * (6 * linear(length, d, config.lora.rank) + linear(length, f, config.lora.rank))
    return total


def resampler_training(config: ResamplerConfig, tokens: int, *, trains_input: bool) -> int:
    """All of a resampler's weights; `trains_input`: what it reads gets a gradient, too."""
    total = 3 * resampler(config, tokens)
    if config.kv_dim != config.embed_dim and not trains_input:
        total -= linear(tokens, config.kv_dim, config.embed_dim)
    return total


def story_training(
    config: StoryMLLMConfig,
    length: int,
    images: int,
    features: int,
    *,
    scored: int | None = None,
    trains_base: bool = False,
    remat: bool = True,
) -> int:
    """A row of `length` tokens whose `images` of `features` tokens are all read and drawn."""
    scored = length if scored is None else scored
    llama = llama_training(config.llama, length, scored=scored, trains_base=trains_base, remat=remat)
    if remat and config.logits_chunk:
        llama += linear(scored, config.llama.hidden_size, config.llama.padded_vocab_size)
    read = resampler_training(config.input_resampler, features, trains_input=False)
    drawn = resampler_training(config.output_resampler, config.num_image_tokens, trains_input=True)
    return llama + images * (read + drawn)


def detokenizer_training(
    config: DetokenizerConfig, height: int, width: int, features: int, *, trains_unet: bool, remat: bool = True
) -> int:
    """One picture of `height` x `width` latents under the condition of `features` tokens.

    The perceiver trains; of the UNet everything, or (released) the projections to keys and values.
    """
    tokens = config.perceiver.num_queries
    perceived = 3 * perceiver(config.perceiver, features)
    perceived -= linear(features, config.perceiver.embedding_dim, config.perceiver.dim)  # features are given
    return perceived + unet_training(config.unet, height, width, tokens, trains_all=trains_unet, remat=remat)


def unet_training(
    config: UNetConfig, height: int, width: int, condition_tokens: int, *, trains_all: bool, remat: bool = True
) -> int:
    """One denoising call and its backward pass; the condition gets a gradient, the latents do not."""
    forward = unet(config, height, width, condition_tokens)
    mixing = keys_values = inside = last_products = 0
    for level, count in _transformers(config).items():
        c, t = config.block_out_channels[level], (height >> level) * (width >> level)
        blocks = count * config.transformer_layers_per_block[level]
        block_mixing = attention(t, t, c) + attention(t, condition_tokens, c)
        block_keys = 2 * linear(t, c, c) + 2 * linear(condition_tokens, config.cross_attention_dim, c)
        last = linear(t, FEED_FORWARD_FACTOR * c, c)
        block = block_mixing + block_keys + 4 * linear(t, c, c) + linear(t, c, 2 * FEED_FORWARD_FACTOR * c) + last
        mixing += blocks * block_mixing
        keys_values += blocks * block_keys
        inside += blocks * block
        last_products += blocks * last
    first = conv(height, width, config.in_channels, config.block_out_channels[0])
    total = 3 * forward - first if trains_all else 2 * forward - first + mixing + keys_values
    if remat and config.remat == "full":
        total += inside - last_products + _resnets_again(config, height, width)
    elif remat and config.remat == "dots":
        total += mixing
    return total


def _transformers(config: UNetConfig) -> dict[int, int]:
    """How many transformers each level has, on the way down, in the middle and on the way up."""
    last = len(config.block_out_channels) - 1
    counts = {
        level: config.layers_per_block * (down == ATTENTION_DOWN)
        + (config.layers_per_block + 1) * (config.up_block_types[last - level] == ATTENTION_UP)
        for level, down in enumerate(config.down_block_types)
    }
    counts[last] += 1
    return counts


def _resnets_again(config: UNetConfig, height: int, width: int) -> int:
    """First convolutions of all resnets: the result of the second one is kept by what comes next."""
    channels, last = config.block_out_channels, len(config.block_out_channels) - 1
    total, kept = 0, [channels[0]]
    for level, c in enumerate(channels):
        for number in range(config.layers_per_block):
            total += conv(height >> level, width >> level, channels[max(level - 1, 0)] if number == 0 else c, c)
            kept.append(c)
        if level < last:
            kept.append(c)
    total += 2 * conv(height >> last, width >> last, channels[-1], channels[-1])
    below = channels[-1]
    for level in range(last, -1, -1):
        for _ in range(config.layers_per_block + 1):
            total += conv(height >> level, width >> level, below + kept.pop(), channels[level])
            below = channels[level]
    return total
