"""The engine against the published way in PyTorch: same weights, same captions' length, same machine, both warm.

    python benchmarks/vs_torch.py [--sequences=12] [--layers=8] [--width=512]

The published way: transformers' LLaMA, one `generate` call a turn that prefills the window's text and images again and
then decodes 40 words and the 66 forced image tokens one at a time through its own KV cache, hidden states kept.
One JSON line; `speedup` is torch's seconds a turn over the engine's, once the window of eight images is full
(the median over the turns after that). `same_words` says whether both wrote the same first caption.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from benchmarks.middle import TEXT_TOKENS, middle_config, middle_model, prompt
from seedstory_jax.convert.llama import llama_config_to_published, llama_rules
from seedstory_jax.convert.rules import export_tensors
from seedstory_jax.generation.engine import StoryEngine
from seedstory_jax.generation.interface import GenerationConfig
from seedstory_jax.generation.policies import MultimodalSink

WINDOW = 8


class ImageTokens(LogitsProcessor):
    """After the caption `<img>`, its tokens and `</img>` by force, as published; none of them before."""

    def __init__(self, image: list[int], start: int):
        self.image, self.start, self.steps = image, start, 0

    def __call__(self, input_ids, scores):
        step, self.steps = self.steps, self.steps + 1
        if step < self.start:
            scores[:, self.image] = -torch.inf
        else:
            forced = self.image[step - self.start]
            scores[:] = -torch.inf
            scores[:, forced] = 0.0
        return scores


def torch_llama(model) -> LlamaForCausalLM:
    """transformers' LLaMA with the model's weights."""
    published = llama_config_to_published(model.config.llama)
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "vocab_size", "rms_norm_eps", "max_position_embeddings")  # fmt: skip
    llama = LlamaForCausalLM(LlamaConfig(**{key: published[key] for key in keys}, rope_theta=1e4)).eval()
    tensors = export_tensors(model.llama, llama_rules(model.config.llama, naming="plain"))
    missing, unexpected = llama.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in tensors.items()}, False)
    assert not unexpected and all("rotary" in name for name in missing), (missing, unexpected)
    return llama


@torch.no_grad()
def generate_in_torch(llama, embed_image, predict_image, tokens, features, caption, turns):
    """(seconds of each turn, first caption written), the window prefilled again every turn."""
    image = [tokens.boi, *tokens.image_ids, tokens.eoi]
    embed = llama.get_input_embeddings()
    history, seconds, first = [(caption, features)], [], None
    for number in range(turns):
        start = time.perf_counter()
        pieces = [embed(torch.tensor([tokens.bos]))] if number < WINDOW else []
        for ids, seen in history[-WINDOW:]:
            pieces += [embed(torch.tensor([*ids, tokens.boi])), embed_image(seen), embed(torch.tensor([tokens.eoi]))]
        given = torch.cat(pieces)[None]
        out = llama.generate(
            inputs_embeds=given,
            attention_mask=torch.ones(given.shape[:2], dtype=torch.long),
            max_new_tokens=TEXT_TOKENS + len(image),
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            logits_processor=LogitsProcessorList([ImageTokens(image, TEXT_TOKENS)]),
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
        # hidden_states[n] belongs to the n-th call, which reads generated token n - 1.
        hidden = torch.cat([step[-1][0, -1:] for step in out.hidden_states[1:]])[TEXT_TOKENS + 1 :][: len(image) - 2]
        history.append((out.sequences[0, :TEXT_TOKENS].tolist(), predict_image(hidden)))
        seconds.append(time.perf_counter() - start)
        first = first or history[-1][0]
        print("torch", number + 1, round(seconds[-1], 3), file=sys.stderr, flush=True)
    return np.array(seconds), first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=12, help="after the given one; more than the window's eight")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    flags = parser.parse_args()
    config = middle_config(flags.layers, flags.width)
    model, tokens = middle_model(config)
    features, caption = prompt(config)

    policy = MultimodalSink(window=WINDOW)
    settings = GenerationConfig(length=flags.sequences + 1, max_text_tokens=TEXT_TOKENS, allow_end=False)
    engine = StoryEngine(model, tokens, policy, settings)
    engine.start(features, caption).next()  # compiles
    story = engine.start(features, caption)
    turns = list(story)
    ours = np.array([one.seconds for one in turns])

    # The resamplers run in jax for both: they are no part of the comparison, and a hundredth of the time.
    embed_image = jax.jit(lambda x: model.embed_images(x[None, None])[0, 0])
    predict_image = jax.jit(lambda x: model.predict_image_features(x[None, None])[0, 0])
    embed_image(features), predict_image(np.zeros((config.num_image_tokens, flags.width), np.float32))
    theirs, first = generate_in_torch(
        torch_llama(model),
        lambda seen: torch.from_numpy(np.array(embed_image(seen))),
        lambda hidden: np.asarray(predict_image(hidden.numpy())),
        tokens,
        features,
        [int(word) for word in caption.split()],
        flags.sequences,
    )
    full = slice(WINDOW, None)
    result = {
        "benchmark": "vs_torch",
        "device": jax.devices()[0].device_kind,
        "torch_threads": torch.get_num_threads(),
        "sequences": flags.sequences,
        "engine_s_a_sequence": round(float(np.median(ours[full])), 4),
        "torch_s_a_sequence": round(float(np.median(theirs[full])), 4),
        "speedup": round(float(np.median(theirs[full]) / np.median(ours[full])), 2),
        "speedup_whole_story": round(float(theirs.sum() / ours.sum()), 2),
        "same_words": first == list(turns[0].tokens),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
