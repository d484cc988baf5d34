"""The engine against one forward without a cache, in which each token sees what was kept when it was read."""

import jax.numpy as jnp
import numpy as np
import pytest

from seedstory_jax.generation import decode
from seedstory_jax.generation.engine import StoryEngine
from seedstory_jax.generation.interface import GenerationConfig
from seedstory_jax.generation.policies import make_policy
from seedstory_jax.models.kv_buffer import Kind

TURNS = 20
TEXT = 6
WINDOW = 2
# An image has four tokens here, so the default counts keep all of it; these forget something of every image.
POLICIES = {
    "dense": ("dense", {}),
    "window": ("window", {}),
    "sink": ("sink", {}),
    "multimodal_sink": ("multimodal_sink", {}),
    "narrow": ("multimodal_sink", {"head": (1, 1), "tail": (1, 1)}),
    "capped": ("multimodal_sink", {"head": (1, 2), "tail": (1, 2), "image_sink_cap": 3}),
    "text_sink": ("text_sink", {}),
    "story_sink": ("story_sink", {"head": (1, 1), "tail": (1, 1)}),
    "stride": ("stride", {"every": 3}),
    "window_recompute": ("window_recompute", {}),
    "with_bos": ("window_recompute", {"recompute_bos": True}),
}
IN_THE_BUFFER = [name for name, (policy, _) in POLICIES.items() if policy != "window_recompute"]


def engine_for(story_model, tokenizer, name, positions="slot"):
    name, settings = POLICIES[name]
    settings = dict(settings)
    if name != "dense":
        settings["window"] = WINDOW
    engine = StoryEngine(
        story_model,
        tokenizer,
        make_policy(name, positions=positions, **settings),
        GenerationConfig(length=TURNS, max_text_tokens=TEXT, allow_end=False),
    )
    engine.slots = lambda length=None: 384  # the same for all policies, so that the programs are shared
    return engine


def generate_and_watch(engine, features, captions):
    """(stories, hidden states [sequence, b, d] after each sequence); captions[sequence][b], None to let it write."""
    session = engine.start(features, list(captions[0]))
    hidden = [np.asarray(session._state.hidden)]
    for given in captions[1:]:
        session.next(given)
        hidden.append(np.asarray(session._state.hidden))
    return session, hidden


def captions_for(batch, turns, rng):
    """Row 0 lets the model write; of the others every caption has a length of its own, some the model writes."""
    words = [["".join(rng.choice(list("abcdefgh"), rng.integers(1, TEXT))) for _ in range(batch)] for _ in range(turns)]
    for number in range(1, turns):
        words[number][0] = None
        if number % 3 == 0:
            words[number][-1] = None
    return words


def check_row(reference, stays, tokenizer, turns, hidden, story_model):
    """Replays the turns in the reference and compares all that the engine computed."""
    queries, texts, ends = [], [], []
    for one in turns:
        start = [tokenizer.bos] if one.index == 0 else []
        kinds = [Kind.BOS] * len(start) + [Kind.TEXT] * len(one.tokens)
        texts.append((reference.read_ids([*start, *one.tokens], kinds, one.index), one))
        if one.source != "prompt":
            queries.append((reference.query(tokenizer, one.index), one))
        ends.append(reference.append_image(tokenizer, one.predicted_image_features, one.index))
        reference.evict(stays)
    states = reference.forward()

    scale = np.abs(states).max()
    np.testing.assert_allclose(np.stack(hidden), states[ends], atol=1e-4 * scale)
    asked = jnp.asarray(states[[numbers for numbers, _ in queries]], jnp.float32)
    predicted = np.asarray(story_model.predict_image_features(asked[:, None]))
    told = np.stack([one.predicted_image_features for _, one in queries])
    np.testing.assert_allclose(told, predicted[:, 0], atol=1e-4 * np.abs(predicted).max())
    logits = states @ np.asarray(story_model.llama.lm_head.kernel[...], np.float64)
    logits[:, [*tokenizer.image_ids, tokenizer.eoi, tokenizer.eos]] = -np.inf
    logits[:, story_model.config.llama.vocab_size :] = -np.inf
    for (numbers, one), before in zip(texts[1:], ends):
        if one.source != "generated":
            continue
        chosen = [*one.tokens, tokenizer.boi] if len(one.tokens) < TEXT else [*one.tokens]
        for state, token in zip([before, *numbers], chosen):
            assert logits[state, token] > logits[state].max() - 1e-3
    return states


@pytest.mark.parametrize("positions", ["slot", "absolute", "recent"])
@pytest.mark.parametrize("name", IN_THE_BUFFER)
def test_one_forward_over_the_whole_story(
    name, positions, story_model, tokenizer, image_features, new_reference, stays
):
    engine = engine_for(story_model, tokenizer, name, positions)
    captions = captions_for(3, TURNS, np.random.default_rng(1))
    session, hidden = generate_and_watch(engine, image_features[:3], captions)
    assert len({tuple(len(one.tokens) for one in row.turns) for row in session.rows}) == 3
    for row, state in enumerate(session.rows):
        reference = new_reference(story_model, positions)
        check_row(reference, stays[name], tokenizer, state.turns, [h[row] for h in hidden], story_model)


def test_a_window_is_the_same_in_every_mode_and_a_sink_is_not(story_model, tokenizer, image_features):
    """Rotary positions are relative: without a gap between what is kept there is nothing that a shift could change."""
    captions = captions_for(2, WINDOW + 6, np.random.default_rng(4))
    captions = [[text or "abc" for text in row] for row in captions]

    def last(name, positions):
        engine = engine_for(story_model, tokenizer, name, positions)
        return generate_and_watch(engine, image_features[:2], captions)[1][-1]

    for positions in ("absolute", "recent"):
        np.testing.assert_allclose(last("window", positions), last("window", "slot"), atol=1e-4)
    # One run of sinks: when the gap behind it is closed there is none left.
    np.testing.assert_allclose(last("sink", "recent"), last("sink", "slot"), atol=1e-4)
    assert np.abs(last("sink", "absolute") - last("sink", "slot")).max() > 1e-3
    # The border of the newest evicted image touches the window: there is no gap to close.
    np.testing.assert_allclose(last("narrow", "recent"), last("narrow", "absolute"), atol=1e-4)
    assert np.abs(last("narrow", "recent") - last("narrow", "slot")).max() > 1e-3
    stride = [last("stride", positions) for positions in ("slot", "absolute", "recent")]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(stride[one] - stride[other]).max() > 1e-3


def test_policies_part_ways_when_the_window_is_full(story_model, tokenizer, image_features):
    """Until then all tell the same story; afterwards no two of them, or the comparisons above would show nothing."""
    captions = captions_for(2, WINDOW + 8, np.random.default_rng(2))
    captions = [[text or "abc" for text in row] for row in captions]
    hidden = {}
    for name in POLICIES.keys() - {"multimodal_sink"}:  # with images and texts so short it keeps all, as dense does
        _, hidden[name] = generate_and_watch(engine_for(story_model, tokenizer, name), image_features[:2], captions)
    for name, states in hidden.items():
        # The turn that fills the window ends before anything is evicted.
        np.testing.assert_allclose(states[:WINDOW], hidden["dense"][:WINDOW], atol=1e-5)
        for other, others in hidden.items():
            if name != other:
                assert np.abs(np.subtract(states[-1], others[-1])).max() > 1e-3, (name, other)


@pytest.mark.parametrize("recompute_bos", [False, True])
def test_recomputing_is_reading_the_window_by_hand(recompute_bos, story_model, tokenizer, image_features):
    engine = engine_for(story_model, tokenizer, "with_bos" if recompute_bos else "window_recompute")
    captions = captions_for(2, 7, np.random.default_rng(3))
    session, hidden = generate_and_watch(engine, image_features[:2], captions)
    llama = story_model.llama
    for row, state in enumerate(session.rows):
        for last in range(WINDOW, 7):
            pieces = []
            for one in state.turns[last + 1 - WINDOW : last + 1]:
                ids = list(one.tokens)
                if recompute_bos and not pieces:
                    ids = [tokenizer.bos, *(ids[1:] if ids[:1] == [tokenizer.inst] else ids)]
                features = jnp.asarray(one.predicted_image_features)[None, None]
                pieces += [llama.embed(jnp.array([[*ids, tokenizer.boi]]))[0], story_model.embed_images(features)[0, 0]]
                pieces.append(llama.embed(jnp.array([[tokenizer.eoi]]))[0])
            embeddings = jnp.concatenate(pieces)[None]
            length = embeddings.shape[1]
            # Padded, so that one program serves all lengths.
            embeddings = jnp.pad(embeddings, ((0, 0), (0, 32 - length), (0, 0)))
            causal = jnp.tril(jnp.ones((1, 32, 32), bool))
            states = llama(embeddings, jnp.arange(32)[None], causal)
            np.testing.assert_allclose(hidden[last][row], states[0, length - 1], atol=1e-4)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_chunks_of_any_size_read_the_same(size, story_model, tokenizer, image_features, new_reference):
    """The prompt in pieces, each story at an offset and a count of its own."""
    engine = engine_for(story_model, tokenizer, "dense")
    texts = [[1, 30, 31, 32, 33, 34, 35], [1, 40, 41], [1, 50, 51, 52, 53, 54]]
    spec, state = engine.spec, decode.init_state(engine.spec, 3, 256, "float32")
    state = decode.append_image(spec, engine.parameters, state, image_features[:3], np.array([False, True, False]))
    for start in range(0, 7, size):
        pieces = [text[start : start + size] for text in texts]
        ids = np.array([piece + [0] * (size - len(piece)) for piece in pieces], np.int32)
        counts = np.array([len(piece) for piece in pieces], np.int32)
        state = decode.prefill_text(spec, engine.parameters, state, ids, counts)
    for row, text in enumerate(texts):
        reference = new_reference(story_model)
        if row == 1:
            reference.append_image(tokenizer, image_features[1], 0)
        numbers = reference.read_ids(text, [Kind.TEXT] * len(text), 0)
        np.testing.assert_allclose(state.hidden[row], reference.forward()[numbers[-1]], atol=1e-4)
        assert int(state.buffer.length[row]) == len(text) + 6 * (row == 1)
