"""Parity of LLaMA with LoRA, and of the story model: losses, gradients, the published generate call."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seedstory_jax.convert.llama import LLAMA_IGNORE, llama_config_from_published, llama_rules
from seedstory_jax.convert.rules import export_tensors, load_tensors
from seedstory_jax.convert.story_mllm import STORY_IGNORE, story_config_from_published, story_rules
from seedstory_jax.models.llama import Llama, causal_mask
from seedstory_jax.models.story_mllm import UNSUPERVISED, StoryBatch, StoryMLLM, story_losses
from seedstory_jax.parity.released_generate import released_generate, released_scores

Arrays = Mapping[str, np.ndarray]


def build_llama(config: Mapping[str, Any], weights: Arrays, what: str = "llama_lora") -> Llama:
    """The LLaMA that a fixture's config describes, with its weights."""
    ours = llama_config_from_published(config["model"], config.get("peft_config"))
    llama = Llama(ours, rngs=nnx.Rngs(0))
    load_tensors(llama, weights, llama_rules(ours), ignore=LLAMA_IGNORE, what=what)
    return llama


def build_story(config: Mapping[str, Any], weights: Arrays, what: str = "story model") -> StoryMLLM:
    """The story model that a fixture's config describes, with its weights."""
    ours = story_config_from_published(config)
    model = StoryMLLM(ours, rngs=nnx.Rngs(0))
    load_tensors(model, weights, story_rules(ours), ignore=STORY_IGNORE, what=what)
    return model


def llama_lora(folder: Path, config: Mapping[str, Any], inputs: Arrays, weights: Arrays) -> dict[str, np.ndarray]:
    """LLaMA under each kind of input."""
    llama = build_llama(config, weights)
    vocab = llama.config.vocab_size
    ids, real = jnp.asarray(inputs["input_ids"]), jnp.asarray(inputs["attention_mask"]) > 0
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    masked, causal = causal_mask(real), causal_mask(jnp.ones_like(real))
    embeddings = llama.embed(ids)
    given = jnp.asarray(inputs["inputs_embeds"])

    hidden = llama(embeddings, positions, masked)
    hidden_given = llama(given, positions, masked)
    hidden_moved = llama(embeddings, jnp.asarray(inputs["position_ids"]), masked)
    arrays = {
        "logits": llama.logits(hidden)[..., :vocab],
        "last_hidden_state": hidden,
        "hidden_states_1": llama.layer_outputs(embeddings, positions, masked)[0],
        "logits_causal_only": llama.logits(llama(embeddings, positions, causal))[..., :vocab],
        "logits_from_embeds": llama.logits(hidden_given)[..., :vocab],
        "last_hidden_state_from_embeds": hidden_given,
        "logits_position_ids": llama.logits(hidden_moved)[..., :vocab],
    }
    return {name: np.asarray(array) for name, array in arrays.items()}


def lvlm_forward(folder: Path, config: Mapping[str, Any], inputs: Arrays, weights: Arrays) -> dict[str, np.ndarray]:
    """Both losses, what they are made from, and every parameter's gradient under its published name."""
    model = build_story(config, weights)
    batch = batch_from_published(inputs, model.config.num_image_tokens)
    graph, state = nnx.split(model)

    @jax.jit
    def losses(state, batch):
        return story_losses(nnx.merge(graph, state), batch)

    @jax.jit
    def losses_and_gradients(state, batch):
        return jax.value_and_grad(lambda state: story_losses(nnx.merge(graph, state), batch), has_aux=True)(state)

    (total, parts), gradient_state = losses_and_gradients(state, batch)
    no_images = _replace(batch, image_slot=-1, target_slot=-1)
    no_target = _replace(batch, target_slot=-1)
    no_target_total, no_target_parts = losses(state, no_target)
    is_target = np.asarray(parts.is_target)
    hidden = np.asarray(jax.jit(lambda state, batch: nnx.merge(graph, state).hidden(batch))(state, batch))
    queries = hidden[np.asarray(batch.target_slot) >= 0]
    arrays = {
        "image_embeds_lm": model.embed_images(jnp.asarray(inputs["image_embeds"])[None])[0],
        "output_image_embeds": queries.reshape(-1, model.config.num_image_tokens, queries.shape[-1]),
        "total_loss": total,
        "lm_loss": parts.next_token_loss,
        "rec_loss": parts.feature_regression_loss,
        "recon_image_embeds": np.asarray(parts.predicted_image_features)[is_target],
        "lm_loss_no_images": losses(state, no_images)[1].next_token_loss,
        "lm_loss_no_gen": no_target_parts.next_token_loss,
        "rec_loss_no_gen": no_target_parts.feature_regression_loss,
        "total_loss_no_gen": no_target_total,
    }
    gradients = export_tensors(nnx.merge(graph, gradient_state), story_rules(model.config))
    rows = inputs["image_token_ids"]
    for name, gradient in gradients.items():
        arrays[f"grad:{name}"] = gradient
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            arrays[f"grad:{name}[image_token_ids]"] = gradient[rows]
    squares = [np.sum(np.square(gradients[name], dtype=np.float64)) for name in config["trainable_params"]]
    arrays["grad_norm_total"] = np.sqrt(np.sum(squares))
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


def lvlm_generate(folder: Path, config: Mapping[str, Any], inputs: Arrays, weights: Arrays) -> dict[str, np.ndarray]:
    """The published generate call on every prompt, and its rule on image tokens by itself."""
    model = build_story(config, weights)
    names = [case["name"] for case in config["cases"]]
    chain = _image_chain(inputs[f"{names[0]}:input_ids"][0], inputs[f"{names[0]}:ids_cmp_mask"][0])
    arrays: dict[str, Any] = {}
    for name in names:
        out = _generate(model, config, inputs, name, chain, config["max_new_tokens"])
        arrays |= {
            f"{name}:generate_ids": out.ids,
            f"{name}:has_img_output": np.asarray(out.has_image),
            f"{name}:num_gen_imgs": np.asarray(int(out.has_image), np.int32),
            f"{name}:step_margin": out.step_margin,
            f"{name}:first_hidden": out.hidden[:8],
        }
        if out.has_image:
            arrays |= {f"{name}:img_gen_feat": out.image_features, f"{name}:img_token_hidden": out.query_hidden}
    short = _generate(model, config, inputs, names[0], chain, config["max_new_tokens_short"])
    scores, last = jnp.asarray(inputs["processor:scores"]), jnp.asarray(inputs["processor:input_ids"][:, -1])
    return arrays | {
        "short:generate_ids": short.ids,
        "short:has_img_output": np.asarray(short.has_image),
        "processor:scores_out": np.asarray(released_scores(scores, last, jnp.asarray(chain))),
        "processor:img_ids_list": chain,
    }


def batch_from_published(inputs: Arrays, num_image_tokens: int) -> StoryBatch:
    """The published batch (flat images, masks, labels at their own token) as a `StoryBatch`.

    Masks over tokens and masks over images correspond in order: the i-th run of `num_image_tokens` tokens, row by row,
    is the i-th image picked. Each row gets its own images, padded with zeros to the largest number.
    """
    ids, real = inputs["input_ids"], inputs["attention_mask"]
    read, drawn = inputs["ids_cmp_mask"], inputs["ids_gen_mask"]
    per_row = (read.sum(1) + drawn.sum(1)) // num_image_tokens
    features = np.zeros((len(ids), per_row.max(initial=0), *inputs["image_embeds"].shape[1:]), np.float32)
    slots = {}
    first = np.zeros(len(ids), int)
    for kind, mask, picked in (("read", read, inputs["embeds_cmp_mask"]), ("drawn", drawn, inputs["embeds_gen_mask"])):
        images = iter(inputs["image_embeds"][picked])
        slots[kind] = np.full(ids.shape, -1, np.int32)
        for row, count in enumerate(mask.sum(1) // num_image_tokens):
            slots[kind][row, mask[row]] = np.arange(count * num_image_tokens) + first[row] * num_image_tokens
            for image in range(first[row], first[row] + count):
                features[row, image] = next(images)
            first[row] += count
    labels = np.full_like(ids, UNSUPERVISED)
    labels[:, :-1] = inputs["labels"][:, 1:]
    zeros = np.zeros_like(ids)
    return StoryBatch(
        ids=jnp.asarray(ids),
        labels=jnp.asarray(labels),
        position=jnp.asarray(zeros + np.arange(ids.shape[1], dtype=np.int32)),
        segment=jnp.asarray(real.astype(np.int32)),
        generated_block=jnp.asarray(zeros),
        image_slot=jnp.asarray(slots["read"]),
        target_slot=jnp.asarray(slots["drawn"]),
        image_features=jnp.asarray(features),
        image_valid=jnp.asarray(np.arange(features.shape[1])[None] < per_row[:, None]),
    )


def _generate(model, config, inputs, name, chain, limit):
    mask = inputs[f"{name}:ids_cmp_mask"][0]
    slot = np.full(mask.shape, -1, np.int32)
    slot[mask] = np.arange(mask.sum())
    return released_generate(
        model,
        inputs[f"{name}:input_ids"][0],
        slot,
        inputs[f"{name}:image_embeds"][inputs[f"{name}:embeds_cmp_mask"]],
        chain=chain.tolist(),
        eos=config["llm"]["model"]["eos_token_id"],
        max_new_tokens=limit,
    )


def _image_chain(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`<img>`, the image tokens, `</img>`, read off a prompt's first image (the fixture holds no tokenizer)."""
    start = int(np.argmax(mask))
    end = start + int(np.argmin(mask[start:]))
    return ids[start - 1 : end + 1].astype(np.int32)


def _replace(batch: StoryBatch, **constants: int) -> StoryBatch:
    values = {name: jnp.full_like(getattr(batch, name), value) for name, value in constants.items()}
    return StoryBatch(**{**vars(batch), **values})


KINDS = {"llama_lora": llama_lora, "lvlm_forward": lvlm_forward, "lvlm_generate": lvlm_generate}
