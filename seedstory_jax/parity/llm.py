"""Parity of LLaMA with LoRA, and of the story model: losses, gradients, the published generate call."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seedstory_jax.convert.llama import LLAMA_IGNORE, llama_config_from_published, llama_rules
from seedstory_jax.convert.rules import export_tensors
from seedstory_jax.convert.story_mllm import STORY_IGNORE, story_config_from_published, story_rules
from seedstory_jax.errors import UserError
from seedstory_jax.models.llama import Llama, causal_mask
from seedstory_jax.models.story_mllm import UNSUPERVISED, StoryBatch, StoryMLLM, story_losses
from seedstory_jax.parity.fixture import Arrays, Fixture
from seedstory_jax.parity.modules import layer_of, loaded
from seedstory_jax.parity.released_generate import ReleasedOutput, released_generate, released_scores


def build_llama(fixture: Fixture) -> Llama:
    """The LLaMA that a fixture describes, with its weights."""
    config = llama_config_from_published(fixture.config["model"], fixture.config.get("peft_config"))
    return loaded(Llama, config, fixture, llama_rules(config), ignore=LLAMA_IGNORE)


def build_story(fixture: Fixture) -> StoryMLLM:
    """The story model that a fixture describes, with its weights."""
    config = story_config_from_published(fixture.config)
    return loaded(StoryMLLM, config, fixture, story_rules(config), ignore=STORY_IGNORE)


def llama_lora(fixture: Fixture) -> Arrays:
    """LLaMA under each kind of input."""
    llama, inputs = build_llama(fixture), fixture.inputs
    vocab = llama.config.vocab_size
    ids, real = jnp.asarray(inputs["input_ids"]), jnp.asarray(inputs["attention_mask"]) > 0
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    masked, causal = causal_mask(real), causal_mask(jnp.ones_like(real))
    embeddings = llama.embed(ids)
    given = jnp.asarray(inputs["inputs_embeds"])

    hidden = llama(embeddings, positions, masked)
    hidden_given = llama(given, positions, masked)
    hidden_moved = llama(embeddings, jnp.asarray(inputs["position_ids"]), masked)
    return {
        "logits": llama.logits(hidden)[..., :vocab],
        "last_hidden_state": hidden,
        "hidden_states_1": layer_of(llama.layers, 0)(embeddings, positions, masked),
        "logits_causal_only": llama.logits(llama(embeddings, positions, causal))[..., :vocab],
        "logits_from_embeds": llama.logits(hidden_given)[..., :vocab],
        "last_hidden_state_from_embeds": hidden_given,
        "logits_position_ids": llama.logits(hidden_moved)[..., :vocab],
    }


def lvlm_forward(fixture: Fixture) -> Arrays:
    """Both losses, what they are made from, and every parameter's gradient under its published name."""
    model, inputs = build_story(fixture), fixture.inputs
    batch = batch_from_published(inputs, model.config.num_image_tokens)
    graph, state = nnx.split(model)

    @jax.jit
    def losses(state, batch):
        return story_losses(nnx.merge(graph, state), batch)

    @jax.jit
    def losses_and_gradients(state, batch):
        return jax.value_and_grad(lambda state: story_losses(nnx.merge(graph, state), batch), has_aux=True)(state)

    (total, parts), gradient_state = losses_and_gradients(state, batch)
    nothing = jnp.full_like(batch.target_slot, -1)
    no_target = dataclasses.replace(batch, target_slot=nothing)
    no_images = dataclasses.replace(no_target, image_slot=nothing)
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
    squares = [np.sum(np.square(gradients[name], dtype=np.float64)) for name in fixture.config["trainable_params"]]
    arrays["grad_norm_total"] = np.sqrt(np.sum(squares))
    return arrays


def lvlm_generate(fixture: Fixture) -> Arrays:
    """The published generate call on every prompt, and its rule on image tokens by itself."""
    model, config, inputs = build_story(fixture), fixture.config, fixture.inputs
    names = [case["name"] for case in config["cases"]]
    chain = image_chain(inputs[f"{names[0]}:input_ids"][0], inputs[f"{names[0]}:ids_cmp_mask"][0], config)
    arrays: dict[str, Any] = {}
    for name in names:
        out = _generate(model, fixture, name, chain, config["max_new_tokens"])
        arrays |= {
            f"{name}:generate_ids": out.ids,
            f"{name}:has_img_output": np.asarray(out.has_image),
            f"{name}:num_gen_imgs": np.asarray(int(out.has_image), np.int32),
            f"{name}:step_margin": out.step_margin,
            f"{name}:first_hidden": out.hidden[:8],
        }
        if out.has_image:
            arrays |= {f"{name}:img_gen_feat": out.image_features, f"{name}:img_token_hidden": out.query_hidden}
    short = _generate(model, fixture, names[0], chain, config["max_new_tokens_short"])
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


def image_chain(ids: np.ndarray, mask: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """`<img>`, the image tokens that are generated, `</img>`: ids read off a prompt's first image.

    The fixture holds no tokenizer. Raises UserError if the config generates more image tokens than the prompt shows.
    """
    start = int(np.argmax(mask))
    shown = int(np.argmin(np.append(mask[start:], False)))
    count = config["num_img_gen_tokens"]
    if count > shown:
        raise UserError(f"num_img_gen_tokens is {count}, the prompt's images show the ids of {shown} image tokens only")
    return np.array([*ids[start - 1 : start + count], ids[start + shown]], np.int32)


def _generate(model: StoryMLLM, fixture: Fixture, name: str, chain: np.ndarray, limit: int) -> ReleasedOutput:
    inputs = fixture.inputs
    mask = inputs[f"{name}:ids_cmp_mask"][0]
    slot = np.full(mask.shape, -1, np.int32)
    slot[mask] = np.arange(mask.sum())
    return released_generate(
        model,
        inputs[f"{name}:input_ids"][0],
        slot,
        inputs[f"{name}:image_embeds"][inputs[f"{name}:embeds_cmp_mask"]],
        chain=chain.tolist(),
        eos=fixture.config["llm"]["model"]["eos_token_id"],
        max_new_tokens=limit,
    )


KINDS = {"llama_lora": llama_lora, "lvlm_forward": lvlm_forward, "lvlm_generate": lvlm_generate}
