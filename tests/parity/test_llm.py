import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from seedstory_jax.errors import UserError
from seedstory_jax.parity import llm
from seedstory_jax.parity.fixture import WEIGHTS
from seedstory_jax.parity.runner import run_fixture, table_row

BOS, EOS, BOI, EOI = 1, 2, 50, 70
TARGETS = ["q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "down_proj", "up_proj"]
SAVED = ["input_layernorm", "post_attention_layernorm", "norm"]
LLAMA = {
    "vocab_size": 77,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
}
peft_warnings = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
PEFT = {"r": 3, "lora_alpha": 12, "task_type": "CAUSAL_LM", "modules_to_save": SAVED, "target_modules": TARGETS}


@pytest.mark.parametrize("kind", ["lvlm_forward", "lvlm_generate"])
def test_published_numbers_come_out(fixtures_dir, kind):
    result = run_fixture(fixtures_dir / kind)
    assert result.ok, table_row(result)


def test_llama_under_both_namings_of_peft(fixtures_dir, tmp_path):
    """Newer peft puts a base matrix under `base_layer` and stores no `inv_freq`; the numbers stay the same."""
    folder = shutil.copytree(fixtures_dir / "llama_lora", tmp_path / "llama_lora")
    newer = {
        name.replace("_proj.weight", "_proj.base_layer.weight"): tensor
        for name, tensor in load_file(folder / WEIGHTS).items()
        if not name.endswith("inv_freq")
    }
    assert sum("base_layer" in name for name in newer) == 3 * 7
    save_file(newer, folder / "weights_peft_new.safetensors")
    result = run_fixture(folder)
    assert result.ok, table_row(result)
    assert len(result.arrays) == 14
    for name, array in result.arrays.items():
        assert array == result.arrays[name.removesuffix("@weights_peft_new")]


def story_config(grid, output_grid, feature_dim):
    """A story model of grid * grid image tokens."""
    width = LLAMA["hidden_size"]
    return {
        "llm": {"model": LLAMA, "peft_config": PEFT},
        "input_resampler": {"grid_size": grid, "embed_dim": width, "num_heads": 3, "kv_dim": feature_dim},
        "output_resampler": {"grid_size": output_grid, "embed_dim": feature_dim, "num_heads": 2, "kv_dim": width},
        "lm_loss_scale": 0.5,
        "rec_loss_scale": 3.0,
    }


def image(tokens):
    return [BOI, *range(BOI + 1, BOI + 1 + tokens), EOI]


@peft_warnings
@pytest.mark.parametrize(("grid", "output_grid", "feature_dim"), [(2, 3, 16), (3, 2, 20)])
def test_losses_and_gradients_of_other_sizes(original, write_fixture, grid, output_grid, feature_dim):
    import torch
    import torch.nn.functional as F

    config, tokens = story_config(grid, output_grid, feature_dim), grid**2
    model = original.randomise(original.Story(config))
    config["trainable_params"] = [name for name, value in model.named_parameters() if value.requires_grad]
    read, target = image(tokens), image(tokens)
    rows = [[BOS, 5, 6, *read, 7, *read, 8, 9, *target, EOS], [BOS, 5, *read, 8, 9, 10, *target, EOS]]
    length, last = max(map(len, rows)) + 2, tokens + 3
    ids = torch.tensor([row + [EOS] * (length - len(row)) for row in rows])
    real = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows])
    query = (ids > BOI) & (ids < EOI)
    behind = torch.tensor([[place >= len(row) - last for place in range(length)] for row in rows])
    ids_gen, ids_cmp = query & behind, query & ~behind
    labels = torch.full_like(ids, -100)
    for number, row in enumerate(rows):
        labels[number, len(row) - last - 2 : len(row) - last + 1] = ids[
            number, len(row) - last - 2 : len(row) - last + 1
        ]
        labels[number, len(row) - 1] = EOS
    embeds_gen = torch.tensor([False, False, True, False, True])
    images = torch.randn(5, output_grid**2, feature_dim, generator=torch.Generator().manual_seed(1))

    def losses(ids_cmp, embeds_cmp, ids_gen, embeds_gen):
        embeddings, read = model.interleave(ids, ids_cmp, images, embeds_cmp)
        hidden, logits = model.hidden(embeddings, real.long())
        lm = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        queries = hidden[ids_gen].unflatten(0, (-1, tokens))
        rebuilt = model.output_resampler(queries)
        rec = (1 - F.cosine_similarity(rebuilt, images[embeds_gen], dim=-1)).mean() if len(rebuilt) else 0 * lm
        return 0.5 * lm + 3.0 * rec, lm, rec, rebuilt, queries, read

    none, no_token = torch.zeros_like(embeds_gen), torch.zeros_like(ids_gen)
    total, lm, rec, rebuilt, queries, read = losses(ids_cmp, ~embeds_gen, ids_gen, embeds_gen)
    no_gen = losses(ids_cmp, ~embeds_gen, no_token, none)
    outputs = {
        "image_embeds_lm": read,
        "output_image_embeds": queries,
        "total_loss": total,
        "lm_loss": lm,
        "rec_loss": rec,
        "recon_image_embeds": rebuilt,
        "lm_loss_no_images": losses(no_token, none, no_token, none)[1],
        **dict(zip(("total_loss_no_gen", "lm_loss_no_gen", "rec_loss_no_gen"), no_gen[:3])),
    }
    total.backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    listed = torch.tensor([*range(BOI, BOI + tokens + 1), EOI])
    for name, gradient in gradients.items():
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            outputs[f"grad:{name}[image_token_ids]"] = gradient[listed]
        else:
            outputs[f"grad:{name}"] = gradient
    outputs["grad_norm_total"] = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
    inputs = {"input_ids": ids, "attention_mask": real.long(), "labels": labels, "image_embeds": images}
    inputs |= {"ids_cmp_mask": ids_cmp, "ids_gen_mask": ids_gen, "image_token_ids": listed}
    inputs |= {"embeds_cmp_mask": ~embeds_gen, "embeds_gen_mask": embeds_gen}
    result = run_fixture(write_fixture("lvlm_forward", outputs, config, inputs, weights=model.state_dict()))
    # Gradients of random weights this small stray further than those of the published numbers.
    assert all(array.max_rel < 3e-4 for array in result.arrays.values()), table_row(result)
    assert len(result.arrays) > 40


@peft_warnings
@pytest.mark.parametrize(("grid", "generated"), [(2, 4), (3, 4)])
def test_generation_of_other_sizes(original, write_fixture, grid, generated):
    """Greedy without a cache; the number of generated image tokens may be less than what is read."""
    import torch

    config = story_config(grid, 3, 16) | {"num_img_gen_tokens": generated, "cases": [{"name": "one"}]}
    config |= {"max_new_tokens": generated + 6, "max_new_tokens_short": 3}
    model = original.randomise(original.Story(config))
    read, chain = image(grid**2), image(generated)
    prompt = torch.tensor([[BOS, 5, 6, *read]])
    mask = (prompt > BOI) & (prompt < EOI)
    images = torch.randn(1, 9, 16, generator=torch.Generator().manual_seed(1))
    here = torch.tensor([True])

    def rule(scores, last):
        scores = scores.clone()
        if last in chain[:-1]:
            scores[chain[chain.index(last) + 1]] = scores.max() + 10
        else:
            scores[chain[1:]] = 0.0
        return scores

    @torch.no_grad()
    def continued(limit):
        embeddings, _ = model.interleave(prompt, mask, images, here)
        ids, margins, last = [], [], prompt[0, -1].item()
        while len(ids) < limit and last != EOS:
            hidden, logits = model.hidden(embeddings)
            scores = rule(logits[0, -1], last)
            best = scores.topk(2).values
            margins.append(best[0] - best[1])
            last = scores.argmax().item()
            ids.append(last)
            embeddings = torch.cat([embeddings, model.llm.get_input_embeddings()(torch.tensor([[last]]))], 1)
        hidden = model.hidden(embeddings)[0][0, prompt.shape[1] :]
        return torch.tensor(ids), hidden, torch.stack(margins)

    with torch.no_grad():  # the second word opens an image
        start = model.hidden(model.interleave(prompt, mask, images, here)[0])[0][0, -1]
        head = model.llm.get_output_embeddings().weight
        head[7] = 9 * start / start.norm() ** 2
        ids, hidden, _ = continued(1)
        assert ids.tolist() == [7]
        head[BOI] = 12 * hidden[0] / hidden[0].norm() ** 2 - 6 * start / start.norm() ** 2
    ids, hidden, margins = continued(config["max_new_tokens"])
    assert ids.tolist()[: generated + 3] == [7, *chain] and margins.min() > 1e-2
    end = generated + 2
    queries = hidden[end - generated : end]
    with torch.no_grad():
        features = model.output_resampler(queries[None])
    scores = torch.randn(4, LLAMA["vocab_size"], generator=torch.Generator().manual_seed(2))
    lasts = [5, BOI, BOI + 2, EOI]
    outputs = {
        "one:generate_ids": ids,
        "one:has_img_output": np.array(True),
        "one:num_gen_imgs": np.array(1),
        "one:step_margin": margins,
        "one:first_hidden": hidden[: min(8, len(ids) - 1)],
        "one:img_token_hidden": queries,
        "one:img_gen_feat": features,
        "short:generate_ids": continued(3)[0],
        "short:has_img_output": np.array(False),
        "processor:scores_out": torch.stack([rule(row, last) for row, last in zip(scores, lasts)]),
        "processor:img_ids_list": np.array(chain),
    }
    inputs = {"one:input_ids": prompt, "one:ids_cmp_mask": mask, "one:image_embeds": images}
    inputs |= {"one:embeds_cmp_mask": here, "processor:scores": scores}
    inputs["processor:input_ids"] = np.array([[3, last] for last in lasts])
    folder = write_fixture("lvlm_generate", outputs, config, inputs, weights=model.state_dict())
    result = run_fixture(folder)
    assert result.ok, table_row(result)


@pytest.mark.parametrize(("count", "expected"), [(3, [9, 4, 5, 6, 8]), (1, [9, 4, 8])])
def test_the_chain_of_image_tokens(count, expected):
    ids, mask = np.array([1, 9, 4, 5, 6, 8, 9, 4]), np.array([0, 0, 1, 1, 1, 0, 0, 1], bool)
    assert llm.image_chain(ids, mask, {"num_img_gen_tokens": count}).tolist() == expected
    with pytest.raises(UserError, match="is 4, the prompt's images show the ids of 3"):
        llm.image_chain(ids, mask, {"num_img_gen_tokens": 4})


def test_published_masks_become_rows():
    """Two rows: one reads an image and predicts one, the other only predicts."""
    read = np.zeros((2, 6), bool)
    predicted = np.zeros((2, 6), bool)
    read[0, 1:3], predicted[0, 4:6], predicted[1, 2:4] = True, True, True
    images = np.arange(3, dtype=np.float32).reshape(3, 1, 1)
    batch = llm.batch_from_published(
        {
            "input_ids": np.arange(12, dtype=np.int32).reshape(2, 6),
            "attention_mask": np.ones((2, 6), np.int32),
            "labels": np.asarray([[-100, -100, 7, 8, -100, -100]] * 2, np.int32),
            "ids_cmp_mask": read,
            "ids_gen_mask": predicted,
            "embeds_cmp_mask": np.asarray([True, False, False]),
            "embeds_gen_mask": np.asarray([False, True, True]),
            "image_embeds": images,
        },
        num_image_tokens=2,
    )
    assert batch.image_slot.tolist() == [[-1, 0, 1, -1, -1, -1], [-1] * 6]
    assert batch.target_slot.tolist() == [[-1, -1, -1, -1, 2, 3], [-1, -1, 0, 1, -1, -1]]
    assert batch.image_features[..., 0, 0].tolist() == [[0, 1], [2, 0]]
    assert batch.image_valid.tolist() == [[True, True], [True, False]]
    assert batch.labels[0].tolist() == [-100, 7, 8, -100, -100, -100]
