import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seedstory_jax.evaluation.attention_statistics import (
    BINS,
    AttentionSums,
    _Tally,
    attention_statistics,
    attention_sums,
    kept_share,
    story_tokens,
    suggest_counts,
)
from seedstory_jax.models.kv_buffer import Kind
from seedstory_jax.models.llama import LlamaConfig
from seedstory_jax.models.parameters import abstract_parameters
from seedstory_jax.models.resampler import ResamplerConfig
from seedstory_jax.models.rope import rotate
from seedstory_jax.models.story_mllm import StoryMLLM, StoryMLLMConfig

CONFIG = StoryMLLMConfig(
    llama=LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_layers=2, num_heads=4, num_kv_heads=2, lora=None
    ),
    input_resampler=ResamplerConfig(grid_size=2, embed_dim=16, num_heads=2, kv_dim=8),
    output_resampler=ResamplerConfig(grid_size=2, embed_dim=8, num_heads=2, kv_dim=16),
)


class Tokenizer:
    bos, eos, boi, eoi = 1, 2, 3, 4
    image_ids = tuple(range(5, 9))

    def first_turn(self, caption):
        return [10 + ord(letter) - ord("a") if letter != "." else 40 for letter in caption]

    def next_turn(self, caption):
        return [9, *self.first_turn(caption)]

    def decode(self, ids, skip_special=False):
        return "".join("." if i == 40 else "[INST]" if i == 9 else chr(i - 10 + ord("a")) for i in ids)


@pytest.fixture(scope="module")
def model():
    make = lambda rngs: StoryMLLM(CONFIG, rngs=rngs)  # noqa: E731
    module_def, shapes = abstract_parameters(make)
    rng = np.random.default_rng(1)
    drawn = {name: rng.normal(size=one.shape, scale=one.shape[-1] ** -0.5) for name, one in shapes.items()}
    return module_def.build({name: jnp.asarray(value, jnp.float32) for name, value in drawn.items()})


def test_the_row_of_a_story():
    row = story_tokens(Tokenizer(), ["ab.", "c"], 4)
    names = ["BOS", "text", "text", "punctuation", "BOI", "IMG00", "IMG01", "IMG02", "IMG03", "EOI"]
    assert list(row.names) == [*names, "text", "text", *names[4:]]
    assert row.frame.tolist() == [0] * 10 + [1] * 8
    assert row.image_token.tolist() == [-1] * 5 + [0, 1, 2, 3] + [-1] * 4 + [0, 1, 2, 3, -1]
    assert row.ids.tolist()[:10] == [1, 10, 11, 40, 3, 5, 6, 7, 8, 4]


def whole_maps(llama, embeddings) -> np.ndarray:
    """[l n t s] by the plain definition, layer by layer with the model's own layers."""
    length = embeddings.shape[0]
    positions, causal = jnp.arange(length)[None], jnp.tril(jnp.ones((1, length, length), bool))
    hidden, maps = embeddings[None], []
    for number in range(CONFIG.llama.num_layers):
        layer = jax.tree.map(lambda x, n=number: x[n], llama.layers)
        x = layer.input_layernorm(hidden)
        q = (x @ layer.self_attn.q_proj.kernel[...]).reshape(1, length, 4, 4)
        k = (x @ layer.self_attn.k_proj.kernel[...]).reshape(1, length, 2, 4)
        q, k = rotate(q, positions, 1e4), rotate(k, positions, 1e4)
        logits = np.einsum("tnh,snh->nts", q[0], np.repeat(k[0], 2, axis=1)) / 2
        logits[:, ~np.asarray(causal[0])] = -np.inf
        maps.append(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
        hidden = layer(hidden, positions, causal)
    return np.stack(maps)


def test_sums_are_those_of_whole_maps(model):
    length, real = 24, 19
    embeddings = jax.random.normal(jax.random.key(2), (length, 16))
    frame = jnp.asarray(np.arange(length) // 4)
    bins = jnp.asarray(np.arange(length) // 6)
    sums, hidden = attention_sums(
        model.for_inference().llama,
        embeddings,
        jnp.arange(length) < real,
        frame,
        bins,
        window=2,
        number_of_bins=4,
        queries=8,
    )
    maps = whole_maps(model.llama, embeddings[:real])
    np.testing.assert_allclose(sums.by_key[..., :real], maps.sum(2), atol=1e-5)
    assert not np.asarray(sums.by_key[..., real:]).any()
    frames = np.arange(real) // 4
    old = frames[:, None] - frames[None] >= 2
    np.testing.assert_allclose(sums.by_old_key[..., :real], (maps * old).sum(2), atol=1e-5)
    mean, heat = maps.mean((0, 1)), np.zeros((4, 4))
    for t in range(real):
        for s in range(real):
            heat[t // 6, s // 6] += mean[t, s]
    np.testing.assert_allclose(sums.heat, heat, atol=1e-4)
    causal = jnp.tril(jnp.ones((1, real, real), bool))
    expected = model.llama(embeddings[None, :real], jnp.arange(real)[None], causal)
    np.testing.assert_allclose(hidden[:real], expected[0], atol=1e-4)


def test_slices_do_not_matter_and_must_fit(model):
    embeddings = jax.random.normal(jax.random.key(3), (24, 16))
    arguments = (model.for_inference().llama, embeddings, jnp.ones(24, bool), jnp.zeros(24, int), jnp.zeros(24, int))
    one, _ = attention_sums(*arguments, window=2, queries=24)
    many, _ = attention_sums(*arguments, window=2, queries=4)
    np.testing.assert_allclose(one.by_key, many.by_key, atol=1e-5)
    with pytest.raises(ValueError, match="multiple"):
        attention_sums(*arguments, window=2, queries=5)


def test_statistics_of_stories(model):
    rng = np.random.default_rng(0)
    stories = [(["ab.", *["cd"] * 5], rng.normal(size=(6, 4, 8)).astype(np.float32)), (["a"] * 3, np.zeros((3, 4, 8)))]
    found = attention_statistics(model, Tokenizer(), stories, window=2, queries=16)
    assert (found.stories, found.maps) == (2, 16)
    assert set(found.mean_attention) == {"BOS", "BOI", "EOI", "text", "punctuation", "IMG00", "IMG01", "IMG02", "IMG03"}
    assert all(0 < share <= 1 for share in found.occurrences.values())
    assert found.heat.shape == (BINS, BINS) and not np.triu(found.heat, 1).any()
    rows = found.heat.sum(1)
    np.testing.assert_allclose(rows[rows > 0], 1, atol=1e-4)  # every query's attention is one
    assert sum(found.head_mass.values()) + sum(found.tail_mass.values()) == pytest.approx(1)
    assert set(found.head_mass) == {-3, -2, -1, 0, 1, 2} and set(found.tail_mass) == {-2, -1, 0}
    assert 0 < found.old_share < 1
    with pytest.raises(ValueError, match="one story"):
        attention_statistics(model, Tokenizer(), [])


def test_a_key_that_takes_all_is_found():
    row = story_tokens(Tokenizer(), ["ab"] * 12, 4)
    length, bins = len(row), np.arange(len(row)) * BINS // len(row)
    by_key = np.zeros((2, 3, length), np.float32)
    by_key[..., row.kind == Kind.BOI] = 5.0
    old = np.where(row.frame < 4, by_key, 0)
    sums = AttentionSums(jnp.asarray(by_key), jnp.asarray(old), jnp.zeros((BINS, BINS)))
    tally = _Tally()
    tally.add(row, sums, bins, text_sink=2)
    found = tally.statistics()
    assert found.maps == 6 and next(iter(found.mean_attention)) == "BOI"
    assert found.occurrences["BOI"] == 1.0 and found.head_mass[0] == 1.0 and sum(found.tail_mass.values()) == 0
    assert found.old_share == pytest.approx(4 / 12)
    assert suggest_counts(found.head_mass, found.tail_mass)[:2] == ((0, 1), (0, 0))


def test_suggested_counts_by_hand():
    head = {-2: 0.0, -1: 0.1, 0: 0.4, 1: 0.1, 2: 0.0}
    tail = {-2: 0.0, -1: 0.0, 0: 0.4}
    assert suggest_counts(head, tail, 0.8)[:2] == ((0, 1), (0, 1))
    found = suggest_counts(head, tail, 0.9)
    assert found[2] >= 0.9 and kept_share(head, tail, *found[:2]) == pytest.approx(found[2])
    assert sum(map(sum, found[:2])) == 3
    assert suggest_counts({}, {}) == ((0, 0), (0, 0), 0.0)


def test_a_peak_behind_a_dip_is_worth_the_way():
    head = {0: 0.0, 1: 0.0, 2: 0.9}
    tail = {-1: 0.05, 0: 0.05}
    assert suggest_counts(head, tail, 0.9)[0] == (0, 3)


def test_kept_share_is_that_of_the_policy():
    head, tail = {-5: 0.1, -4: 0.2, 7: 0.1, 8: 0.1}, {-8: 0.2, -9: 0.1, 0: 0.2}
    assert kept_share(head, tail, (4, 8), (8, 4)) == pytest.approx(0.7)
