"""Floating point operations of every model, counted from its config alone.

A multiply-add is two operations. What is counted are matrix products and convolutions, as the code computes them:
attention over all slots that are read, masked ones included (a causal row's in blocks); convolutions without their
padding. Norms, activations, softmax and rotations, a few percent in small models and nothing in large ones, are not.
All functions count one row of a batch, forward.

XLA's own cost analysis counts the body of a scan once, however often it runs; so this counter is what throughput, MFU
and the cost of a story are computed from, tested against that analysis on unrolled models.
"""

from seedstory_jax.models.attention import query_blocks
from seedstory_jax.models.llama import LlamaConfig
from seedstory_jax.models.qwen_vit import QwenViTConfig
from seedstory_jax.models.resampler import ResamplerConfig
from seedstory_jax.models.sdxl.perceiver import PerceiverConfig
from seedstory_jax.models.sdxl.transformer_2d import FEED_FORWARD_FACTOR
from seedstory_jax.models.sdxl.unet import ATTENTION_DOWN, ATTENTION_UP, UNetConfig
from seedstory_jax.models.sdxl.vae import VAEConfig
from seedstory_jax.models.story_mllm import StoryMLLMConfig


def llama_forward(config: LlamaConfig, length: int, *, scored: int = 0) -> int:
    """One plain forward over `length` tokens, with logits for `scored` of them."""
    width = config.num_heads * config.head_dim
    spared = config.num_layers * (attention(length, length, width) - causal_attention(length, width))
    return llama_extend(config, length, 0, scored=scored) - spared


def llama_extend(config: LlamaConfig, tokens: int, slots: int, *, scored: int = 0) -> int:
    """`tokens` new ones that read a buffer of `slots` (all, empty ones masked) and each other, `scored` with logits."""
    d, f, h = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_heads * h, config.num_kv_heads * h
    projections = [(d, queries), (d, keys), (d, keys), (queries, d), (d, f), (d, f), (f, d)]
    layer = sum(linear(tokens, a, b) for a, b in projections) + attention(tokens, slots + tokens, queries)
    if config.lora is not None:
        rank = config.lora.rank
        layer += sum(linear(tokens, a, rank) + linear(tokens, rank, b) for a, b in projections)
    return config.num_layers * layer + linear(scored, d, config.padded_vocab_size)


def resampler(config: ResamplerConfig, tokens: int) -> int:
    """One image of `tokens` features."""
    d, queries = config.embed_dim, config.grid_size**2
    keys = linear(tokens, config.kv_dim, d) if config.kv_dim != d else 0
    keys += _table_resize(queries, tokens, d)
    return keys + linear(queries, d, d) * 2 + linear(tokens, d, d) * 2 + attention(queries, tokens, d)


def story_forward(
    config: StoryMLLMConfig, length: int, images: int, features: int, *, scored: int | None = None
) -> int:
    """A training row's forward: `images` of `features` tokens each read and drawn, logits for `scored` (all) tokens."""
    llama = llama_forward(config.llama, length, scored=length if scored is None else scored)
    drawn = resampler(config.output_resampler, config.num_image_tokens)
    return llama + images * (resampler(config.input_resampler, features) + drawn)


def vit(config: QwenViTConfig) -> int:
    """One image through the encoder and its attention pool."""
    w, d, patches = config.width, config.output_dim, (config.image_size // config.patch_size) ** 2
    block = linear(patches, w, 3 * w) + attention(patches, patches, w) + linear(patches, w, w)
    block += 2 * linear(patches, w, config.mlp_width)
    embed = linear(patches, 3 * config.patch_size**2, w) + _table_resize(config.position_grid**2, patches, w)
    return embed + config.layers * block + resampler(config.pool, patches) + linear(config.n_queries, d, d)


def perceiver(config: PerceiverConfig, tokens: int) -> int:
    """One image of `tokens` features to the UNet's condition."""
    d, q, inner = config.dim, config.num_queries, config.dim_head * config.heads
    layer = linear(q, d, inner) + linear(tokens + q, d, 2 * inner) + attention(q, tokens + q, inner)
    layer += linear(q, inner, d) + 2 * linear(q, d, config.ff_mult * d)
    pool = linear(1, d, d) + 2 * linear(q + 1, d, d) + attention(1, q + 1, d) + linear(1, d, config.output2_dim)
    ends = linear(tokens, config.embedding_dim, d) + linear(q, d, config.token_dim)
    return ends + config.depth * layer + pool


def unet(config: UNetConfig, height: int, width: int, condition_tokens: int) -> int:
    """One denoising call on `height` x `width` latents (guidance makes two)."""
    channels, embed, last = config.block_out_channels, config.time_embed_dim, len(config.block_out_channels) - 1
    total = linear(1, channels[0], embed) + linear(1, config.projection_class_embeddings_input_dim, embed)
    total += 2 * linear(1, embed, embed) + conv(height, width, config.in_channels, channels[0])

    def resnet(level: int, a: int) -> int:
        return _resnet(height >> level, width >> level, a, channels[level]) + linear(1, embed, channels[level])

    def transformer(level: int) -> int:
        c, t = channels[level], (height >> level) * (width >> level)
        mixed = attention(t, t, c) + attention(t, condition_tokens, c)
        projected = 6 * linear(t, c, c) + 2 * linear(condition_tokens, config.cross_attention_dim, c)
        fed = linear(t, c, 2 * FEED_FORWARD_FACTOR * c) + linear(t, FEED_FORWARD_FACTOR * c, c)
        return 2 * linear(t, c, c) + config.transformer_layers_per_block[level] * (mixed + projected + fed)

    kept = [channels[0]]  # channels of the images that the way up reads
    for level, c in enumerate(channels):
        for _ in range(config.layers_per_block):
            total += resnet(level, channels[max(level - 1, 0)] if len(kept) % (config.layers_per_block + 1) == 1 else c)
            total += transformer(level) if config.down_block_types[level] == ATTENTION_DOWN else 0
            kept.append(c)
        if level < last:
            total += conv(height >> level, width >> level, c, c, stride=2)
            kept.append(c)
    total += 2 * resnet(last, channels[-1]) + transformer(last)
    below = channels[-1]
    for level in range(last, -1, -1):
        for _ in range(config.layers_per_block + 1):
            total += resnet(level, below + kept.pop())
            total += transformer(level) if config.up_block_types[last - level] == ATTENTION_UP else 0
            below = channels[level]
        if level > 0:
            total += conv(height >> (level - 1), width >> (level - 1), below, below)
    return total + conv(height, width, channels[0], config.out_channels)


def vae_encode(config: VAEConfig, height: int, width: int) -> int:
    """One picture of `height` x `width` pixels to moments."""
    channels, moments, last = config.block_out_channels, 2 * config.latent_channels, len(config.block_out_channels) - 1
    total = conv(height, width, config.in_channels, channels[0])
    for level, c in enumerate(channels):
        h, w, a = height >> level, width >> level, channels[max(level - 1, 0)]
        total += _resnet(h, w, a, c) + (config.layers_per_block - 1) * _resnet(h, w, c, c)
        total += conv(h, w, c, c, stride=2, pad=(0, 1)) if level < last else 0
    h, w = height >> last, width >> last
    total += _vae_middle(h, w, channels[-1]) + conv(h, w, channels[-1], moments) + linear(h * w, moments, moments)
    return total + _vae_skip(config, h * w)


def vae_decode(config: VAEConfig, height: int, width: int) -> int:
    """`height` x `width` latents to one picture."""
    channels, last = config.block_out_channels[::-1], len(config.block_out_channels) - 1
    total = linear(height * width, config.latent_channels, config.latent_channels)
    total += conv(height, width, config.latent_channels, channels[0]) + _vae_middle(height, width, channels[0])
    for level, c in enumerate(channels):
        h, w = height << level, width << level
        total += _resnet(h, w, channels[max(level - 1, 0)], c) + config.layers_per_block * _resnet(h, w, c, c)
        total += conv(2 * h, 2 * w, c, c) if level < last else 0
    total += conv(height << last, width << last, channels[-1], config.out_channels)
    return total + _vae_skip(config, height * width)


def linear(tokens: int, inputs: int, outputs: int) -> int:
    """A matrix product."""
    return 2 * tokens * inputs * outputs


def attention(queries: int, keys: int, width: int) -> int:
    """Scores and their mixture over all heads together (`width` = heads · head size)."""
    return 4 * queries * keys * width


def causal_attention(length: int, width: int) -> int:
    """`attention` of a row to itself, in the blocks of `attend`."""
    blocks = query_blocks(length, length, causal=True)
    return sum(attention(rows.stop - rows.start, read.stop, width) for rows, read in blocks)


def conv(
    height: int,
    width: int,
    inputs: int,
    outputs: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    pad: tuple[int, int] = (1, 1),
) -> int:
    """A convolution of a `height` x `width` image; taps that fall into the padding do no work."""
    return 2 * _taps(height, kernel, stride, pad) * _taps(width, kernel, stride, pad) * inputs * outputs


def _taps(length: int, kernel: int, stride: int, pad: tuple[int, int]) -> int:
    starts = range(-pad[0], length + pad[1] - kernel + 1, stride)
    return sum(0 <= start + tap < length for start in starts for tap in range(kernel))


def _resnet(height: int, width: int, inputs: int, outputs: int) -> int:
    shortcut = linear(height * width, inputs, outputs) if inputs != outputs else 0
    return conv(height, width, inputs, outputs) + conv(height, width, outputs, outputs) + shortcut


def _vae_middle(height: int, width: int, channels: int) -> int:
    tokens = height * width
    mixing = 4 * linear(tokens, channels, channels) + attention(tokens, tokens, channels)
    return 2 * _resnet(height, width, channels, channels) + mixing


def _vae_skip(config: VAEConfig, latents: int) -> int:
    return linear(latents, config.downscale**2 * config.in_channels, config.latent_channels) * config.linear_skip


def _table_resize(source: int, target: int, width: int) -> int:
    """A position table's rows resized, then its columns (shared by a batch, so a little less for many rows)."""
    if source == target:
        return 0
    a, b = round(source**0.5), round(target**0.5)
    return 2 * width * min(b * a * a + b * b * a, b * b * a * a)
