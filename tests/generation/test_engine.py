"""How stories behave: programs compiled, batches, ends, forks, limits, captions on the way."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from seedstory_jax.errors import UserError
from seedstory_jax.generation.compile_stats import Compilations
from seedstory_jax.generation.engine import StoryEngine, StorySession
from seedstory_jax.generation.interface import GenerationConfig
from seedstory_jax.generation.policies import Dense, MultimodalSink, Window, WindowRecompute

POLICY = MultimodalSink(window=2, head=(1, 1), tail=(1, 1))
CONFIG = GenerationConfig(length=8, max_text_tokens=6)
OPEN = replace(CONFIG, allow_end=False)


@pytest.fixture
def engine(story_model, tokenizer):
    return StoryEngine(story_model, tokenizer, POLICY, OPEN)


@pytest.fixture(scope="module")
def ending_model(story_model):
    """One that ends its stories itself, sooner or later."""
    model = nnx.clone(story_model)
    kernel = model.llama.lm_head.kernel
    kernel[...] = kernel[...].at[:, 2].multiply(2.0)
    return model


def tokens_of(turns):
    return [turn.tokens for turn in turns]


def test_nothing_is_compiled_after_the_first_story(story_model, tokenizer, image_features):
    """Not by more turns, another length of prompt, captions, temperature, seed, or a policy's other numbers."""
    engine = StoryEngine(story_model, tokenizer, POLICY, replace(OPEN, temperature=0.5))  # greedy is another program
    story = engine.start(image_features[0], "ab")
    story.next()
    story.next("abc")
    first = Compilations()
    for turn in story:
        assert turn.calls >= 2
    for policy, config in [
        (POLICY, replace(OPEN, temperature=0.7, top_p=0.9, seed=3)),
        (replace(POLICY, window=1, start=2, head=(1, 2)), replace(OPEN, temperature=1.0, at_limit="stop")),
    ]:
        other = StoryEngine(story_model, tokenizer, policy, config)
        other.slots = lambda length=None: engine.slots()
        again = other.start(image_features[1], "abcde")
        again.next("a")
        list(again)
    assert first.count == 0


def test_a_story_takes_few_programs(tokenizer, story_model, image_features):
    """Prefill, decode, predict, append, evict, and the empty buffer; its own monitoring counts the same as jax's."""
    story_model = story_model.for_inference()
    seen = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: seen.append(event))
    # Numbers that no other test has, so that nothing is compiled yet.
    engine = StoryEngine(story_model, tokenizer, POLICY, replace(OPEN, max_text_tokens=5, length=40))
    story = engine.start(image_features[0], "ab")
    story.next("abc")
    for _ in range(6):
        story.next()
    compiled = sum(event == "/jax/core/compile/backend_compile_duration" for event in seen)
    assert engine.compilations.count == compiled <= 6
    assert engine.compilations.seconds > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_tells_what_each_story_tells_alone(temperature, ending_model, tokenizer, image_features):
    config = replace(CONFIG, temperature=temperature, max_text_tokens=12)
    texts = ["a", "bcd", "efgh", "abcdefgh"]
    engine = StoryEngine(ending_model, tokenizer, POLICY, config)
    together = engine.start(image_features, texts, seed=[5, 6, 7, 8])
    for _ in range(7):
        together.next()
    endings = []
    for row, text in enumerate(texts):
        alone = engine.start(image_features[row], text, seed=5 + row)
        list(alone)
        assert tokens_of(alone.turns) == tokens_of(together.rows[row].turns)
        assert alone.ending == together.rows[row].ending
        endings.append(len(alone.turns))
        for ours, theirs in zip(alone.turns, together.rows[row].turns):
            np.testing.assert_allclose(ours.predicted_image_features, theirs.predicted_image_features, atol=1e-4)
    assert len(set(endings)) > 1, "no story ended early: the test shows nothing"


def test_a_story_that_has_ended_stays_as_it_is(ending_model, tokenizer, image_features):
    session = StoryEngine(ending_model, tokenizer, POLICY, CONFIG).start(image_features[:2], ["a", "b"])
    session.end(0, "enough")
    before = jax.device_get(session._state.buffer)
    results = session.next([None, "abc"])
    after = jax.device_get(session._state.buffer)
    assert results[0] is None
    assert results[1].text == "abc"
    np.testing.assert_array_equal(before.length[0], after.length[0])
    used = before.position[0] >= 0
    for old, new in zip(before.k, after.k, strict=True):
        np.testing.assert_array_equal(old[0][..., used], new[0][..., used])
    session.end(1, "enough")
    assert session.next() == [None, None]


def test_temperature_zero_is_greedy_and_a_small_nucleus_is_almost(story_model, tokenizer, image_features):
    def told(**settings):
        story = StoryEngine(story_model, tokenizer, POLICY, replace(OPEN, **settings)).start(image_features[0], "ab")
        return tokens_of(story)

    greedy = told()
    assert greedy == told(seed=9)
    assert greedy == told(temperature=1.0, top_p=1e-6, seed=9)
    assert told(temperature=1.5, seed=1) == told(temperature=1.5, seed=1) != told(temperature=1.5, seed=2)


def test_a_fork_goes_its_own_way(engine, image_features):
    story = engine.start(image_features[0], "abc")
    for _ in range(4):
        story.next()
    branch = story.fork()
    told = branch.next("hgf")
    assert told.text == "hgf"
    assert told.calls == 3  # the caption, the image predicted, the image read: nothing of the past
    after_fork = tokens_of([story.next(), story.next()])
    straight = engine.start(image_features[0], "abc")
    assert tokens_of(list(straight))[4:6] == after_fork
    assert len(branch.turns) == 6
    assert [one.text for one in branch.turns[:5]] == [one.text for one in story.turns[:5]]


def test_captions_on_the_way(engine, tokenizer, image_features):
    story = engine.start(image_features[0], "abc")
    story.set_caption("gh")
    given, written = story.next(), story.next()
    assert (given.text, given.source, given.tokens) == ("gh", "caption", (tokenizer.inst, 26, 27))
    assert written.source == "generated"
    assert story.turns[0].source == "prompt"
    bare = StoryEngine(model_of(engine), tokenizer, POLICY, replace(OPEN, caption_instruction=False))
    assert bare.start(image_features[0], "abc").next("gh").tokens == (26, 27)


def model_of(engine):
    return engine.spec.module_def.build(engine.parameters)


def test_given_images_may_follow_one_another(engine, image_features):
    story = engine.start(image_features[0], "abc")
    story.append("de", image_features[1])
    assert story.next().index == 2
    np.testing.assert_array_equal(story.turns[1].predicted_image_features, image_features[1])


@pytest.mark.parametrize(("at_limit", "ending", "turns"), [("force_image", None, 8), ("stop", "limit", 1)])
def test_a_text_without_an_end(at_limit, ending, turns, story_model, tokenizer, image_features):
    model = nnx.clone(story_model)
    model.llama.lm_head.kernel[...] = model.llama.lm_head.kernel[...].at[:, 3].set(0.0)  # <img> is never the best
    story = StoryEngine(model, tokenizer, POLICY, replace(OPEN, at_limit=at_limit)).start(image_features[0], "abc")
    told = list(story)
    assert all(len(one.tokens) == OPEN.max_text_tokens for one in told)
    assert (story.ending, len(story.turns)) == (ending, turns)


def test_what_cannot_fit_is_refused_before_anything_is_written(story_model, tokenizer, image_features):
    engine = StoryEngine(story_model, tokenizer, Dense(), replace(OPEN, length=2))
    story = engine.start(image_features[0], "abc")
    while story.session._filled[0] + engine.turn_tokens <= story.session.slots:
        story.next("abc")
    before = jax.device_get(story.session._state)
    with pytest.raises(UserError, match=r"fills \d+ of 128 slots"):
        story.next("abc")
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(story.session._state))
    with pytest.raises(UserError, match="longer than max_text_tokens=6"):
        story.next("abcdefgh")
    with pytest.raises(UserError, match="give one"):
        story.session.next([None, None])


def test_no_end(story_model, tokenizer, image_features):
    """A cap on image sinks: a thousand turns in constant memory, each call as quick as the earlier ones."""
    policy = replace(POLICY, image_sink_cap=3)
    engine = StoryEngine(story_model, tokenizer, policy, replace(OPEN, length=1000, keep_features=False))
    story = engine.start(image_features[0], "abc")
    filled, held = [], []
    while len(story.turns) < 1000:
        story.next("abc")
        filled.append(int(story.session._filled[0]))
        if len(story.turns) in (100, 1000):
            held.append(sum(array.nbytes for array in jax.live_arrays()))
    assert story.session.slots == 128
    assert filled[10:] == [filled[10]] * len(filled[10:])
    assert held[1] <= held[0]
    assert sum(one.predicted_image_features.size for one in story.turns) == image_features[0].size
    seconds = [one.seconds for one in story.turns]
    assert min(seconds[-200:]) < 1.5 * min(seconds[100:300])  # what other processes do to the machine counts in neither


@pytest.mark.parametrize("policy", [POLICY, WindowRecompute(window=2)])
def test_features_that_nobody_renders_change_no_word(story_model, tokenizer, image_features, policy):
    told = []
    for keep in (True, False):
        engine = StoryEngine(story_model, tokenizer, policy, replace(OPEN, keep_features=keep))
        story = engine.start(image_features[0], "abc")
        told.append(tokens_of(story))
    assert told[0] == told[1]


def test_slots_show_what_the_buffer_held(engine, image_features):
    story = engine.start(image_features[0], "abc")
    told = [story.next("ab") for _ in range(4)]
    assert not story.turns[0].slots.used.any()
    assert set(np.unique(told[0].slots.turn)) == {-1, 0}
    last = told[-1].slots
    # Of turn 0 the first four tokens, <img>, the last query and </img>; of turn 1 the marks and one before each.
    assert last.is_sink.sum() == 7 + 4
    assert set(last.turn[last.used & ~last.is_sink]) == {2, 3}


def test_bad_arguments(story_model, tokenizer, image_features):
    with pytest.raises(UserError, match="at_limit='never'"):
        GenerationConfig(at_limit="never")
    with pytest.raises(UserError, match="top_p"):
        GenerationConfig(top_p=0.0)
    with pytest.raises(UserError, match=r"expected features of shape \(2, 16, 32\)"):
        StoryEngine(story_model, tokenizer, POLICY, OPEN).start(image_features, ["a", "b"])


def test_rows_of_different_age_under_recomputation(story_model, tokenizer, image_features):
    """One story has its window full when the other has not: each is still what it is alone."""
    engine = StoryEngine(story_model, tokenizer, WindowRecompute(window=2), OPEN)
    session = StorySession(engine, 2, 8, [0, 0])
    session.append(["ab", "cd"], image_features[:2])
    session.end(1, "for now")
    session.next(["e", None])
    session.rows[1].ending = None
    for text in ("f", "g", "h"):
        session.next([text, text])
    for row, texts in enumerate((["ab", "e", "f", "g", "h"], ["cd", "f", "g", "h"])):
        alone = engine.start(image_features[row], texts[0])
        for text in texts[1:]:
            alone.next(text)
        np.testing.assert_allclose(session._state.hidden[row], alone.session._state.hidden[0], atol=1e-4)


def test_the_window_is_flat(story_model, tokenizer, image_features):
    story = StoryEngine(story_model, tokenizer, Window(window=2), OPEN).start(image_features[0], "abc")
    filled = [int(story.next("abc") is not None and story.session._filled[0]) for _ in range(6)]
    assert filled[2:] == [20] * 4
