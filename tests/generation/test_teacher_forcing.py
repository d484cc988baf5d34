"""Scores of true stories against one forward without a cache, and what they must not depend on."""

import jax.numpy as jnp
import numpy as np
import pytest

from seedstory_jax.generation.compile_stats import Compilations
from seedstory_jax.generation.engine import StoryEngine
from seedstory_jax.generation.interface import GenerationConfig
from seedstory_jax.generation.policies import make_policy
from seedstory_jax.generation.teacher_forcing import score_stories
from seedstory_jax.models.kv_buffer import Kind

TURNS = 7
POLICIES = {
    "window": {"window": 2},
    "narrow": {"window": 2, "head": (1, 1), "tail": (1, 1)},
    "dense": {},
    "window_recompute": {"window": 2},
}


def engine_of(name, story_model, tokenizer, positions="slot"):
    policy = make_policy("multimodal_sink" if name == "narrow" else name, positions=positions, **POLICIES.get(name, {}))
    return StoryEngine(story_model, tokenizer, policy, GenerationConfig(length=TURNS, max_text_tokens=6))


@pytest.fixture(scope="module")
def stories():
    rng = np.random.default_rng(5)
    texts = [["".join(rng.choice(list("abcdefgh"), rng.integers(1, 6))) for _ in range(n)] for n in (TURNS, 5)]
    return texts, [rng.normal(size=(len(captions), 16, 32)).astype(np.float32) for captions in texts]


@pytest.mark.parametrize(("name", "positions"), [("dense", "slot"), ("window", "slot"), ("narrow", "recent")])
def test_one_forward_over_the_whole_story(name, positions, story_model, tokenizer, stories, new_reference, stays):
    texts, features = stories
    scores = score_stories(engine_of(name, story_model, tokenizer, positions), texts, features)
    for captions, images, found in zip(texts, features, scores):
        reference, asked, queries = new_reference(story_model, positions), [], []
        end = None
        for turn, (caption, image) in enumerate(zip(captions, images)):
            ids = tokenizer.next_turn(caption) if turn else [tokenizer.bos, *tokenizer.first_turn(caption)]
            numbers = reference.read_ids(ids, [Kind.TEXT] * len(ids), turn)
            if turn:
                asked.append(([end, *numbers], [*ids, tokenizer.boi]))
                queries.append(reference.query(tokenizer, turn))
            end = reference.append_image(tokenizer, image, turn)
            reference.evict(stays[name])
        states = reference.forward()
        logits = states @ np.asarray(story_model.llama.lm_head.kernel[...], np.float64)
        logits = logits[:, : story_model.config.llama.vocab_size]
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        losses = [-np.mean([logits[at, token] for at, token in zip(*one)]) for one in asked]
        assert found[0] is None and len(found) == len(captions)
        np.testing.assert_allclose([one.next_token_loss for one in found[1:]], losses, rtol=1e-4)
        assert [one.tokens for one in found[1:]] == [len(caption) + 2 for caption in captions[1:]]
        predicted = story_model.predict_image_features(jnp.asarray(states[np.array(queries)], jnp.float32)[:, None])
        a, b = np.asarray(predicted, np.float64)[:, 0], images[1:].astype(np.float64)
        distance = 1 - (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
        np.testing.assert_allclose([one.feature_distance for one in found[1:]], distance.mean(-1), atol=1e-4)


def test_a_story_scores_the_same_alone_and_compiles_nothing_more(story_model, tokenizer, stories):
    texts, features = stories
    engine = engine_of("narrow", story_model, tokenizer)
    together = score_stories(engine, texts, features)
    first = Compilations()
    swapped = score_stories(engine, texts[::-1], features[::-1])
    assert first.count == 0
    for ours, theirs in zip(together, swapped[::-1]):
        for one, other in zip(ours[1:], theirs[1:], strict=True):
            assert one.next_token_loss == pytest.approx(other.next_token_loss, rel=1e-5)


def test_a_window_that_is_prefilled_again_is_scored_too(story_model, tokenizer, stories):
    scores = {
        name: score_stories(engine_of(name, story_model, tokenizer), *stories) for name in ("window_recompute", "dense")
    }
    for ours, dense in zip(scores["window_recompute"], scores["dense"]):
        assert all(np.isfinite(one.next_token_loss) for one in ours[1:]) and len(ours) == len(dense)
