"""The published modules in torch, written from their description: oracles for fixtures of sizes that nobody published.

Parameter names are the published ones, so that a `state_dict` is a fixture's weights.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def resized(table, length):
    """A square position table at another resolution."""
    side, target = math.isqrt(len(table)), math.isqrt(length)
    if side == target:
        return table
    grid = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(target, target), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(length, -1)


class Resampler(nn.Module):
    def __init__(self, grid_size, embed_dim, num_heads, kv_dim=None, eps=1e-5):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(grid_size**2, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(grid_size**2, embed_dim), requires_grad=False)
        if kv_dim not in (None, embed_dim):
            self.kv_proj = nn.Linear(kv_dim, embed_dim, bias=False)
        self.ln_q = nn.LayerNorm(embed_dim, eps=eps)
        self.ln_kv = nn.LayerNorm(embed_dim, eps=eps)
        self.attn = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)

    def keys(self, x):
        return self.ln_kv(self.kv_proj(x) if hasattr(self, "kv_proj") else x)

    def forward(self, x):
        values = self.keys(x)
        queries = (self.ln_q(self.query) + self.pos_embed).expand(len(x), -1, -1)
        return self.attn(queries, values + resized(self.pos_embed, x.shape[1]), values, need_weights=False)[0]


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x):
        batch, length, _ = x.shape
        by_head = self.in_proj(x).reshape(batch, length, self.heads, -1).transpose(1, 2)
        return self.out_proj(F.scaled_dot_product_attention(*by_head.chunk(3, -1)).transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    def __init__(self, width, heads, mlp):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, mlp), "c_proj": nn.Linear(mlp, width)})

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class ViT(nn.Module):
    def __init__(self, image_size, patch_size, width, layers, heads, mlp_ratio, n_queries, output_dim):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        self.positional_embedding = nn.Parameter(torch.zeros(256, width))
        self.ln_pre = nn.LayerNorm(width, eps=1e-6)
        blocks = [Block(width, heads, int(width * mlp_ratio)) for _ in range(layers)]
        self.transformer = nn.ModuleDict({"resblocks": nn.Sequential(*blocks)})
        self.attn_pool = Resampler(math.isqrt(n_queries), output_dim, output_dim // 128, width, eps=1e-6)
        self.ln_post = nn.LayerNorm(output_dim, eps=1e-6)
        self.proj = nn.Parameter(torch.zeros(output_dim, output_dim))

    def steps(self, images):
        """Outputs of the fixture's names."""
        x = self.conv1(images).flatten(2).transpose(1, 2)
        start = self.ln_pre(x + resized(self.positional_embedding, x.shape[1]))
        blocks = self.transformer["resblocks"]
        end = blocks(start)
        pooled = self.attn_pool(end)
        return {
            "after_ln_pre": start,
            "after_block0_first16": blocks[0](start)[:, :16],
            "after_transformer": end,
            "after_attn_pool": pooled,
            "output": self.ln_post(pooled) @ self.proj,
        }


class PerceiverAttention(nn.Module):
    def __init__(self, dim, dim_head, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim_head * heads, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim_head * heads, bias=False)
        self.to_out = nn.Linear(dim_head * heads, dim, bias=False)

    def forward(self, x, latents):
        x, latents = self.norm1(x), self.norm2(latents)
        k, v = self.to_kv(torch.cat([x, latents], 1)).chunk(2, -1)
        return self.to_out(attend(self.to_q(latents), k, v, self.heads))


def attend(q, k, v, heads):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class AttentionPool(nn.Module):
    def __init__(self, dim, heads, queries, out):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.zeros(queries + 1, dim))
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.c_proj = nn.Linear(dim, out)

    def forward(self, x):
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
        return self.c_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads))


class Perceiver(nn.Module):
    def __init__(self, dim, depth, dim_head, heads, num_queries, embedding_dim, output1_dim, output2_dim, ff_mult):
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(1, num_queries, dim))
        self.proj_in = nn.Linear(embedding_dim, dim)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(dim, dim_head, heads),
                    nn.Sequential(
                        nn.LayerNorm(dim),
                        nn.Linear(dim, ff_mult * dim, bias=False),
                        nn.GELU(),
                        nn.Linear(ff_mult * dim, dim, bias=False),
                    ),
                ]
            )
            for _ in range(depth)
        )
        self.norm_out = nn.LayerNorm(dim)
        self.unet_proj_1, self.unet_proj_2 = nn.Linear(dim, output1_dim), nn.Linear(dim, output2_dim)
        self.unet_attnpool = AttentionPool(dim, heads, num_queries, output2_dim)

    def forward(self, x):
        steps = self.steps(x)
        return steps["prompt_embeds"], steps["pooled_prompt_embeds"]

    def steps(self, x):
        """Outputs of the fixture's names."""
        found = {"x_normalized": F.normalize(x, dim=1)}
        source = found["after_proj_in"] = self.proj_in(found["x_normalized"])
        latents = self.latents.expand(len(x), -1, -1)
        for number, (attention, feed) in enumerate(self.layers):
            found[f"layer{number}_attn_out"] = attention(source, latents)
            latents = latents + found[f"layer{number}_attn_out"]
            found[f"layer{number}_ff_out"] = feed(latents)
            latents = latents + found[f"layer{number}_ff_out"]
        hidden = self.norm_out(latents)
        pool = self.unet_attnpool(hidden)
        return found | {
            "latents_last": latents,
            "hidden_embeds": hidden,
            "prompt_embeds": torch.cat([self.unet_proj_1(hidden), self.unet_proj_2(hidden)], -1),
            "pooled_prompt_embeds": pool[:, 0],
            "attnpool_all_tokens": pool,
        }


class Story(nn.Module):
    """LLaMA with LoRA between two resamplers."""

    def __init__(self, config):
        import peft
        import transformers

        super().__init__()
        settings = {name: value for name, value in config["llm"]["model"].items() if name != "rope_theta"}
        base = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**settings, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
        )
        self.llm = peft.get_peft_model(base, peft.LoraConfig(**config["llm"]["peft_config"]))
        for name, parameter in self.llm.named_parameters():  # switched on after wrapping, as published
            if "embed_tokens" in name or "lm_head" in name:
                parameter.requires_grad_(True)
        self.input_resampler = Resampler(**config["input_resampler"])
        self.output_resampler = Resampler(**config["output_resampler"])

    def hidden(self, embeddings, mask=None):
        out = self.llm(inputs_embeds=embeddings, attention_mask=mask, output_hidden_states=True)
        return out.hidden_states[-1], out.logits

    def interleave(self, ids, ids_cmp_mask, image_embeds, embeds_cmp_mask):
        embeddings = self.llm.get_input_embeddings()(ids).clone()
        read = self.input_resampler(image_embeds)
        embeddings[ids_cmp_mask] = read[embeds_cmp_mask].flatten(0, 1)
        return embeddings, read


def randomise(module, seed=0):
    """Numbers everywhere: weights of the size that keeps activations near 1, norms near 1, small biases."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(0.1 * noise + ("norm" in name or "ln_" in name) * name.endswith("weight"))
    return module.eval()
