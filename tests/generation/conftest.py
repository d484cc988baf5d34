"""A tiny story model, a tokenizer of its own, and the slow reference that the engine is held against."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seedstory_jax.models.kv_buffer import Kind
from seedstory_jax.models.llama import LlamaConfig
from seedstory_jax.models.parameters import abstract_parameters, initial_parameters
from seedstory_jax.models.resampler import ResamplerConfig
from seedstory_jax.models.story_mllm import StoryMLLM, StoryMLLMConfig

WORDS = 20  # the first letter's id
_FIRST = 0x4E00  # characters for all ids that are no letter
CONFIG = StoryMLLMConfig(
    llama=LlamaConfig(
        vocab_size=70, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2, lora=None
    ),
    input_resampler=ResamplerConfig(grid_size=2, embed_dim=32, num_heads=2, kv_dim=32),
    output_resampler=ResamplerConfig(grid_size=4, embed_dim=32, num_heads=2, kv_dim=32),
)


class LetterTokenizer:
    """One id a character and back; `[INST]` is 13; eight image tokens, of which the model uses four."""

    bos, eos, boi, eoi, inst = 1, 2, 3, 4, 13
    image_ids = tuple(range(5, 13))

    def first_turn(self, caption):
        words = caption.replace("[INST]", chr(_FIRST + self.inst))
        return [WORDS + ord(one) - ord("a") if one in "abcdefgh" else ord(one) - _FIRST for one in words]

    def next_turn(self, caption):
        return [self.inst, *self.first_turn(caption)]

    def decode(self, ids, skip_special=False):
        letters = {WORDS + number: letter for number, letter in enumerate("abcdefgh")} | {self.inst: "[INST]"}
        return "".join(letters.get(number, chr(_FIRST + number)) for number in ids)

    def refuse_markup(self, text):
        pass


@pytest.fixture(scope="session")
def tokenizer():
    return LetterTokenizer()


@pytest.fixture(scope="session")
def story_model():
    """Random, with enough weight on <img> that texts have different lengths."""

    def make(rngs):
        return StoryMLLM(CONFIG, rngs=rngs)

    model = abstract_parameters(make)[0].build(initial_parameters(make, jax.random.key(0)))
    kernel = model.llama.lm_head.kernel
    kernel[...] = kernel[...].at[:, LetterTokenizer.boi].multiply(2.5)
    return model


@pytest.fixture(scope="session")
def image_features():
    return np.random.default_rng(0).normal(size=(4, 16, 32)).astype(np.float32)


class Reference:
    """All tokens ever appended, in order; which token saw which, and at which positions. No cache.

    `kept` is the story's memory as a plain list of [token number, index in the story, kind, turn, position, sink].
    """

    def __init__(self, model, positions="slot", window=2):
        self.model, self.positions, self.window = model, positions, window
        self.embeddings, self.sees, self.kept = [], [], []  # sees[t]: {token number: its position relative to t}
        self.index = 0

    def read(self, embedding, kind, turn):
        number, position = len(self.embeddings), self.kept[-1][4] + 1 if self.kept else 0
        self.kept.append([number, self.index, kind, turn, position, False])
        self.embeddings.append(np.asarray(embedding, np.float64))
        self.sees.append({other[0]: other[4] - position for other in self.kept})
        self.index += 1
        return number

    def read_ids(self, ids, kinds, turn):
        table = self.model.llama.embed_tokens.embedding[...]
        return [self.read(table[number], kind, turn) for number, kind in zip(ids, kinds)]

    def query(self, tokens, turn):
        """<img> and its queries, rewound; their token numbers."""
        ids = [tokens.boi, *tokens.image_ids[:4]]
        numbers = self.read_ids(ids, [Kind.BOI] + [Kind.QUERY] * 4, turn)
        del self.kept[-5:]
        self.index -= 5
        return numbers[1:]

    def append_image(self, tokens, features, turn):
        """<img>, the embedded image, </img>; the number of the last."""
        image = np.asarray(self.model.embed_images(jnp.asarray(features)[None, None]))[0, 0]
        self.read_ids([tokens.boi], [Kind.BOI], turn)
        for row in image:
            self.read(row, Kind.QUERY, turn)
        return self.read_ids([tokens.eoi], [Kind.EOI], turn)[0]

    def evict(self, stays):
        """Keeps the tokens for which stays(index, kind, turn, all that is kept) and renumbers them."""
        self.kept = [one for one in self.kept if stays(*one[1:4], self.kept)]
        oldest = self.kept[-1][3] - self.window + 1
        sinks = [one for one in self.kept if one[3] < oldest]
        for slot, one in enumerate(self.kept):
            if self.positions == "slot":
                one[4] = slot
            elif self.positions == "recent" and slot < len(sinks):
                one[4] = one[1]
            elif self.positions == "recent":  # the window follows the last sink
                one[4] = one[1] - self.kept[len(sinks)][1] + (sinks[-1][1] + 1 if sinks else 0)

    def forward(self):
        """Final hidden states [T d] of one forward over everything that was read.

        `weights` [n T T] and the keys [T k h] before rotation are left behind, a layer each.
        """
        self.weights, self.keys = [], []
        llama, config = self.model.llama, self.model.config.llama
        total, h = len(self.embeddings), config.head_dim
        mask, relative = np.zeros((total, total), bool), np.zeros((total, total))
        for t, seen in enumerate(self.sees):
            for s, distance in seen.items():
                mask[t, s], relative[t, s] = True, distance
        angle = relative[..., None] * config.rope_theta ** (-np.arange(0, h, 2) / h)  # [T T h/2]
        turn = np.exp(1j * angle)

        layers = {"/".join(map(str, path)): np.asarray(leaf, np.float64) for path, leaf in _flat(llama.layers)}
        x = np.stack(self.embeddings)
        for number in range(config.num_layers):
            w = {name: value[number] for name, value in layers.items()}
            y = _norm(x, w["input_layernorm/scale"], config.rms_norm_eps)
            q = (y @ w["self_attn/q_proj/kernel"]).reshape(total, -1, h)
            k = (y @ w["self_attn/k_proj/kernel"]).reshape(total, -1, h)
            v = (y @ w["self_attn/v_proj/kernel"]).reshape(total, -1, h)
            self.keys.append(k)
            groups = q.shape[1] // k.shape[1]
            k, v = np.repeat(k, groups, axis=1), np.repeat(v, groups, axis=1)
            pairs_q, pairs_k = (z[..., : h // 2] + 1j * z[..., h // 2 :] for z in (q, k))
            logits = np.einsum("tnh,snh,tsh->nts", pairs_q.conj(), pairs_k, turn).real / np.sqrt(h)
            logits = np.where(mask, logits, -np.inf)
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            self.weights.append(weights)
            x = x + np.einsum("nts,snh->tnh", weights, v).reshape(total, -1) @ w["self_attn/o_proj/kernel"]
            y = _norm(x, w["post_attention_layernorm/scale"], config.rms_norm_eps)
            gate = y @ w["mlp/gate_proj/kernel"]
            x = x + (gate / (1 + np.exp(-gate)) * (y @ w["mlp/up_proj/kernel"])) @ w["mlp/down_proj/kernel"]
        return _norm(x, np.asarray(llama.norm.scale[...], np.float64), config.rms_norm_eps)


def _flat(module):
    return [(path, leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(module))]


def _norm(x, scale, eps):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * scale


def stays_dense(index, kind, turn, kept):
    return True


def stays_window(index, kind, turn, kept, window=2):
    return turn > max(one[3] for one in kept) - window


def stays_sink(index, kind, turn, kept, window=2):
    return index < 4 or stays_window(index, kind, turn, kept, window)


def stays_multimodal_sink(index, kind, turn, kept, window=2, head=(4, 8), tail=(8, 4), cap=None):
    if stays_sink(index, kind, turn, kept, window):
        return True
    newest = max(one[3] for one in kept)
    for _, mark, mark_kind, mark_frame, *_ in kept:
        evicted = mark_frame <= newest - window and (cap is None or mark_frame > newest - window - cap)
        if evicted and mark_kind == Kind.BOI and mark - head[0] <= index < mark + head[1]:
            return True
        if evicted and mark_kind == Kind.EOI and mark - tail[0] <= index < mark + tail[1]:
            return True
    return False


def stays_text_sink(index, kind, turn, kept, window=2):
    return kind in (Kind.BOS, Kind.TEXT) or stays_window(index, kind, turn, kept, window)


def stays_story_sink(*token, **settings):
    return token[1] in (Kind.BOS, Kind.TEXT) or stays_multimodal_sink(*token, **settings)


def stays_stride(index, kind, turn, kept, window=2, every=3):
    return turn % every == 0 or stays_window(index, kind, turn, kept, window)


@pytest.fixture(scope="session")
def new_reference():
    return Reference


@pytest.fixture(scope="session")
def stays():
    return {
        "dense": stays_dense,
        "window": stays_window,
        "sink": stays_sink,
        "multimodal_sink": stays_multimodal_sink,
        "narrow": partial(stays_multimodal_sink, head=(1, 1), tail=(1, 1)),
        "text_sink": stays_text_sink,
        "story_sink": partial(stays_story_sink, head=(1, 1), tail=(1, 1)),
        "stride": stays_stride,
        "capped": partial(stays_multimodal_sink, head=(1, 2), tail=(1, 2), cap=3),
    }
