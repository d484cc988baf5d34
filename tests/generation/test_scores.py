"""Scored policies against a slow float64 oracle that ranks the tokens of one forward over the whole story."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import numpy as np
import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.generation import decode
from seedstory_jax.generation.compile_stats import Compilations
from seedstory_jax.generation.engine import StoryEngine
from seedstory_jax.generation.interface import GenerationConfig
from seedstory_jax.generation.policies import MultimodalSink, Window, make_policy
from seedstory_jax.models.kv_buffer import Kind

TURNS, WINDOW, START, TOKENS = 9, 2, 2, 11
CONFIG = GenerationConfig(length=TURNS, max_text_tokens=6, allow_end=False)
POLICIES = {
    "tova": {},
    "h2o": {},
    "h2o with decay": {"decay": 0.5},
    "snapkv": {"pool": 3},
    "keydiff": {},
    "knorm": {},
}


def engine_of(name, story_model, tokenizer, positions="slot", **settings):
    settings = {"window": WINDOW, "start": START, "tokens": TOKENS, "positions": positions} | POLICIES[name] | settings
    return StoryEngine(story_model, tokenizer, make_policy(name.partition(" ")[0], **settings), CONFIG)


class Oracle:
    """Scores of what a `Reference` holds, in float64, by the definitions of the papers."""

    def __init__(self, name, reference):
        self.name, self.reference, self.mass = name, reference, {}

    def kept(self, turn, newest):
        """Story indices that stay; `newest` are the numbers of the turn's tokens."""
        reference = self.reference
        reference.forward()
        numbers = [one[0] for one in reference.kept]
        score = self._scores(numbers, newest, [one[4] for one in reference.kept])
        fixed = {one[1] for one in reference.kept if one[3] > turn - WINDOW or one[1] < START}
        old = [(score[place], one[1]) for place, one in enumerate(reference.kept) if one[1] not in fixed]
        return fixed | {index for _, index in sorted(old, reverse=True)[:TOKENS]}

    def _scores(self, numbers, newest, positions):
        weights = np.mean([layer.mean(0) for layer in self.reference.weights], axis=0)  # [T T]
        if self.name == "tova":
            return weights[newest[-1], numbers]
        if self.name.startswith("h2o"):
            decay = POLICIES[self.name].get("decay", 1.0)
            self.mass = {n: decay * self.mass.get(n, 0.0) + weights[newest, n].sum() for n in numbers}
            return [self.mass[n] for n in numbers]
        if self.name == "snapkv":
            mean = np.pad(weights[newest][:, numbers].mean(0), 1, constant_values=-np.inf)
            return np.maximum(np.maximum(mean[:-2], mean[1:-1]), mean[2:])
        keys = np.stack([layer[numbers] for layer in self.reference.keys])  # [l s k h]
        if self.name == "knorm":
            return -np.linalg.norm(keys, axis=-1).mean((0, 2))
        half = keys.shape[-1] // 2
        angle = np.array(positions)[:, None] * 1e4 ** (-np.arange(half) / half)
        turned = (keys[..., :half] + 1j * keys[..., half:]) * np.exp(1j * angle)[None, :, None]
        turned = np.concatenate([turned.real, turned.imag], -1)
        turned /= np.linalg.norm(turned, axis=-1, keepdims=True)
        mean = turned.mean(1, keepdims=True)
        return -((turned * mean).sum(-1) / np.linalg.norm(mean, axis=-1)).mean((0, 2))


@pytest.fixture(scope="module")
def stories():
    rng = np.random.default_rng(8)
    texts = [["".join(rng.choice(list("abcdefgh"), rng.integers(1, 6))) for _ in range(2)] for _ in range(TURNS)]
    return texts, rng.normal(size=(TURNS, 2, 16, 32)).astype(np.float32)


@pytest.mark.parametrize("positions", ["slot", "absolute"])
@pytest.mark.parametrize("name", POLICIES)
def test_what_is_kept(name, positions, story_model, tokenizer, stories, new_reference):
    if positions == "absolute" and name not in ("keydiff", "h2o"):
        pytest.skip("one score of each kind is enough")
    texts, features = stories
    engine = engine_of(name, story_model, tokenizer, positions)
    session = engine.start(features[0], texts[0])
    held = [jax.device_get(session._state.buffer.metadata)]
    for turn in range(1, TURNS):
        session.append(texts[turn], features[turn])
        held.append(jax.device_get(session._state.buffer.metadata))
    dropped = 0
    for row in range(2):
        reference = new_reference(story_model, positions, WINDOW)
        oracle = Oracle(name, reference)
        for turn in range(TURNS):
            caption = texts[turn][row]
            ids = tokenizer.next_turn(caption) if turn else [tokenizer.bos, *tokenizer.first_turn(caption)]
            first = reference.read_ids(ids, [Kind.TEXT] * len(ids), turn)[0]
            end = reference.append_image(tokenizer, features[turn, row], turn)
            kept, before = oracle.kept(turn, list(range(first, end + 1))), len(reference.kept)
            reference.evict(lambda index, *_, kept=kept: index in kept)
            dropped += before - len(reference.kept)
            found = held[turn].story_index[row]
            assert set(found[found >= 0].tolist()) == kept, (row, turn)
        states = reference.forward()
        np.testing.assert_allclose(session._state.hidden[row], states[end], atol=1e-4 * np.abs(states).max())
    assert dropped > 60


def test_scores_take_one_program_more_and_numbers_compile_none(story_model, tokenizer, image_features):
    first = engine_of("h2o", story_model, tokenizer)
    assert len(list(first.start(image_features[0], "ab"))) == TURNS - 1
    seen = Compilations()
    again = engine_of("h2o", story_model, tokenizer, tokens=5, window=1, decay=0.7)
    again.slots = lambda length=None: first.slots()
    turns = list(again.start(image_features[1], "abc"))
    assert seen.count == 0 and turns[0].calls == 1 + len(turns[0].tokens) + 2


def test_other_policies_know_nothing_of_scores(story_model, tokenizer, image_features):
    """No array and no program: what is compiled for a policy without a score has no place for one."""
    engine = StoryEngine(story_model, tokenizer, MultimodalSink(window=2), CONFIG)
    story = engine.start(image_features[0], "ab")
    buffer = story.session._state.buffer
    assert buffer.score is None and buffer.metadata.score is None and story.turns[0].slots.score is None
    assert len(jax.tree.leaves(buffer.metadata)) == 5
    scored = engine_of("knorm", story_model, tokenizer).start(image_features[0], "ab").session._state
    plain = story.session._state
    assert len(jax.tree.leaves(scored)) == len(jax.tree.leaves(plain)) + 1
    assert isinstance(plain, decode.GenerationState)


def test_a_fork_and_a_batch_score_alike(story_model, tokenizer, stories):
    texts, features = stories
    engine = engine_of("h2o", story_model, tokenizer)
    together = engine.start(features[0], texts[0])
    alone = engine.start(features[0, 1], texts[0][1])
    for turn in range(1, TURNS):
        together.append(texts[turn], features[turn])
        alone = alone.fork()
        alone.append(texts[turn][1], features[turn, 1])
    one, other = together._state.buffer, alone.session._state.buffer
    np.testing.assert_array_equal(one.story_index[1], other.story_index[0])
    np.testing.assert_allclose(one.score[1], other.score[0], rtol=1e-4, atol=1e-6)


def test_a_score_that_is_none(story_model, tokenizer):
    @dataclass(frozen=True)
    class Mine(Window):
        score: ClassVar[str | None] = "beauty"

    with pytest.raises(UserError, match="policy Mine: score='beauty'; known: key_norm"):
        StoryEngine(story_model, tokenizer, Mine(), CONFIG)
    with pytest.raises(UserError, match="pool=4"):
        make_policy("snapkv", pool=4)
