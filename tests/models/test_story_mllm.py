import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seedstory_jax.models.llama import LlamaConfig
from seedstory_jax.models.lora import LoRAConfig
from seedstory_jax.models.resampler import ResamplerConfig
from seedstory_jax.models.story_mllm import (
    UNSUPERVISED,
    StoryBatch,
    StoryMLLM,
    StoryMLLMConfig,
    cosine_distance,
    story_losses,
    visibility,
)

QUERIES, FEATURES = 4, 24
BOS, EOS, BOI, EOI, IMAGE = 1, 2, 30, 31, 32  # image tokens 32..35
CONFIG = StoryMLLMConfig(
    llama=LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        lora=LoRAConfig(rank=2, alpha=4.0, dropout=0.0),
    ),
    input_resampler=ResamplerConfig(grid_size=2, embed_dim=32, num_heads=2, kv_dim=FEATURES),
    output_resampler=ResamplerConfig(grid_size=3, embed_dim=FEATURES, num_heads=2, kv_dim=32),
    feature_loss_scale=0.7,
)
CAPTIONS = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14]]


@pytest.fixture(autouse=True)
def precise():
    with jax.default_matmul_precision("highest"):
        yield


@functools.cache
def model() -> StoryMLLM:
    """Drawn by numpy, which spares compiling the initialisers."""
    rng = np.random.default_rng(0)
    graph, state = nnx.split(nnx.eval_shape(lambda: StoryMLLM(CONFIG, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.2, x.dtype), state))


def features(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 9, FEATURES)).astype(np.float32)


class Row:
    """One row, written token by token."""

    def __init__(self):
        self.columns = {
            name: []
            for name in ("ids", "labels", "position", "segment", "generated_block", "image_slot", "target_slot")
        }
        self.images = []

    def add(self, ids, position, segment=1, block=0, read=None, drawn=None):
        for q, token in enumerate(ids):
            values = {
                "ids": token,
                "labels": UNSUPERVISED,
                "position": position + q,
                "segment": segment,
                "generated_block": block,
                "image_slot": -1 if read is None else read * QUERIES + q,
                "target_slot": -1 if drawn is None else drawn * QUERIES + q,
            }
            for name, value in values.items():
                self.columns[name].append(value)

    def supervise(self, start, ids):
        """Token `start` is to predict ids[0], and so on."""
        self.columns["labels"][start : start + len(ids)] = ids

    def __len__(self):
        return len(self.columns["ids"])


def last_turn(captions, images, row=None, segment=1) -> Row:
    """<s> caption image ... caption queries: only the last turn is supervised; appended to `row` if given."""
    row = row or Row()
    first_image, position = len(row.images), 0
    row.add([BOS], 0, segment)
    for number, caption in enumerate(captions):
        last = number == len(captions) - 1
        before = len(row) - 1
        row.add([*caption, BOI], position + 1, segment)
        if last:
            row.supervise(before, [*caption, BOI])
        position += len(caption) + 1
        image = {"drawn" if last else "read": first_image + number}
        row.add(range(IMAGE, IMAGE + QUERIES), position + 1, segment, **image)
        row.add([EOI], position + 1 + QUERIES, segment)
        position += QUERIES + 1
    row.images += list(images[: len(captions)])
    return row


def all_turns(captions, images) -> Row:
    """Every turn but the first is supervised: queries, then the image itself at the same positions."""
    row, position = Row(), 0
    row.add([BOS], 0)
    for number, caption in enumerate(captions):
        before = len(row) - 1
        row.add([*caption, BOI], position + 1)
        position += len(caption) + 1
        if number:
            row.supervise(before, [*caption, BOI])
            row.add(range(IMAGE, IMAGE + QUERIES), position + 1, block=number, drawn=number)
        row.add(range(IMAGE, IMAGE + QUERIES), position + 1, read=number)
        row.add([EOI], position + 1 + QUERIES)
        position += QUERIES + 1
    row.images += list(images)
    return row


def batch(*rows: Row, length=64, images=6) -> StoryBatch:
    """Always three rows, some empty, so that one compiled program serves all tests."""
    rows = (*rows, *[Row()] * (3 - len(rows)))
    padding = {"labels": UNSUPERVISED, "image_slot": -1, "target_slot": -1}
    columns = {
        name: jnp.asarray([row.columns[name] + [padding.get(name, 0)] * (length - len(row)) for row in rows], jnp.int32)
        for name in rows[0].columns
    }
    stacked = np.zeros((len(rows), images, 9, FEATURES), np.float32)
    for number, row in enumerate(rows):
        stacked[number, : len(row.images)] = np.reshape(row.images, (-1, 9, FEATURES))
    valid = [[i < len(row.images) for i in range(images)] for row in rows]
    return StoryBatch(**columns, image_features=jnp.asarray(stacked), image_valid=jnp.asarray(valid))


@functools.partial(jax.jit, static_argnames="graph")
def _losses(graph, state, rows, denominators):
    def loss(state):
        return story_losses(nnx.merge(graph, state), rows, denominators=denominators)

    return jax.value_and_grad(loss, has_aux=True)(state)


def losses(rows, denominators=None, config=CONFIG):
    """(total, parts), gradients by path."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: StoryMLLM(config, rngs=nnx.Rngs(0))))
    value, gradients = _losses(graph, nnx.state(model()), rows, denominators)
    return value, {path: np.asarray(g[...]) for path, g in nnx.to_flat_state(gradients)}


def assert_same(ours, reference):
    (total, parts), gradients = ours
    (wanted_total, wanted_parts), wanted = reference
    assert float(total) == pytest.approx(float(wanted_total), rel=1e-5)
    for name in ("next_token_loss", "feature_regression_loss"):
        assert float(getattr(parts, name)) == pytest.approx(float(getattr(wanted_parts, name)), rel=1e-5)
    for path, gradient in wanted.items():
        np.testing.assert_allclose(gradients[path], gradient, rtol=1e-4, atol=1e-5, err_msg=str(path))


def single_rows():
    images = features(0, len(CAPTIONS))
    return [last_turn(CAPTIONS[: n + 1], images) for n in range(1, len(CAPTIONS))]


def test_visibility_is_literally_this():
    # b: query block 1 and the image it drew, twice; then padding.
    facts = {"segment": [1, 1, 1, 1, 2, 0], "generated_block": [0, 1, 1, 0, 0, 0]}
    nothing = dict.fromkeys(field.name for field in dataclasses.fields(StoryBatch))
    rows = StoryBatch(**nothing | {name: jnp.asarray([value]) for name, value in facts.items()})
    assert visibility(rows)[0].astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_all_turns_in_one_row_are_the_single_rows():
    """Loss and gradients: what is masked in the row is what a rewind forgets."""
    together = losses(batch(all_turns(CAPTIONS, features(0, len(CAPTIONS)))))
    assert int(together[0][1].target_images) == 3
    assert_same(together, losses(batch(*single_rows())))


def test_packed_rows_are_the_single_rows():
    one, two, three = single_rows()
    images = features(0, len(CAPTIONS))
    packed = last_turn(CAPTIONS[:3], images, row=last_turn(CAPTIONS[:2], images), segment=2)
    assert_same(losses(batch(packed, three)), losses(batch(one, two, three)))


def test_pieces_of_a_batch_add_up_to_its_loss():
    rows = single_rows()
    (total, parts), gradients = losses(batch(*rows))
    whole = (jnp.float32(parts.supervised_tokens), jnp.float32(parts.target_images))
    pieces = [losses(batch(row), whole) for row in rows]
    assert sum(float(piece[0][0]) for piece in pieces) == pytest.approx(float(total), rel=1e-5)
    for path, gradient in gradients.items():
        np.testing.assert_allclose(sum(p[1][path] for p in pieces), gradient, rtol=1e-4, atol=1e-5)


def test_logits_by_chunks_change_nothing():
    rows = batch(*single_rows())
    assert_same(losses(rows, config=dataclasses.replace(CONFIG, logits_chunk=10)), losses(rows))


def test_the_losses_by_hand():
    rows = batch(*single_rows())
    (total, parts), _ = losses(rows)
    graph, state = nnx.split(model())

    @jax.jit
    def predict(state):
        story = nnx.merge(graph, state)
        hidden, predicted, is_target = story.predict(rows)
        return story.llama.logits(hidden), predicted, is_target

    logits, predicted, is_target = predict(state)
    logits = np.asarray(logits, np.float64)[..., :40]
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    supervised = [
        -logp[b, t, label] for (b, t), label in np.ndenumerate(np.asarray(rows.labels)) if label != UNSUPERVISED
    ]
    distances = []
    for b, i in zip(*np.nonzero(np.asarray(is_target)), strict=True):
        for p, f in zip(np.asarray(predicted[b, i]), np.asarray(rows.image_features[b, i]), strict=True):
            distances.append(1 - p @ f / np.linalg.norm(p) / np.linalg.norm(f))
    assert parts.supervised_tokens == len(supervised) == 3 + 5 + 2
    assert np.argwhere(np.asarray(parts.is_target)).tolist() == [[0, 1], [1, 2], [2, 3]]
    assert float(parts.next_token_loss) == pytest.approx(np.mean(supervised), rel=1e-4)
    assert float(parts.feature_regression_loss) == pytest.approx(np.mean(distances), rel=1e-4)
    assert float(total) == pytest.approx(np.mean(supervised) + 0.7 * np.mean(distances), rel=1e-4)


def test_images_that_are_read_send_no_gradient_to_their_tokens():
    row = last_turn(CAPTIONS[:2], features(0, 2))
    rows = dataclasses.replace(batch(row), target_slot=jnp.full((3, 64), -1, jnp.int32))
    _, gradients = losses(rows)
    table = gradients["llama", "embed_tokens", "embedding"]
    assert table[BOI].any()
    # The second image's queries keep their own embeddings, but nothing supervised comes after them.
    assert not table[IMAGE : IMAGE + QUERIES].any()
    assert gradients["input_resampler", "query"].any()


def test_nothing_to_supervise_is_zero_and_finite():
    row = last_turn(CAPTIONS[:2], features(0, 2))
    rows = batch(row)
    nothing = dataclasses.replace(
        rows,
        labels=jnp.full_like(rows.labels, UNSUPERVISED),
        target_slot=jnp.full_like(rows.target_slot, -1),
        image_features=jnp.zeros_like(rows.image_features),
    )
    (total, _), gradients = losses(nothing)
    assert float(total) == 0
    assert all(np.isfinite(g).all() for g in gradients.values())


def test_rows_without_any_image():
    rows = batch(last_turn(CAPTIONS[:2], features(0, 2)))
    text = dataclasses.replace(
        rows,
        image_slot=jnp.full_like(rows.image_slot, -1),
        target_slot=jnp.full_like(rows.target_slot, -1),
    )
    none = dataclasses.replace(text, image_features=jnp.zeros((3, 0, 9, FEATURES)), image_valid=jnp.zeros((3, 0), bool))
    assert float(losses(none)[0][0]) == pytest.approx(float(losses(text)[0][0]), rel=1e-5)


def test_cosine_distance():
    a, b = jnp.asarray([[3.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), jnp.asarray([[-2.0, 0.0], [5.0, 5.0], [0.0, 0.0]])
    where = jnp.asarray([True, True, False])
    np.testing.assert_allclose(cosine_distance(a, b, where), [2.0, 0.0, 0.0], atol=1e-6)
    assert jnp.isfinite(jax.grad(lambda a: cosine_distance(a, b, where).sum())(a)).all()


@pytest.mark.parametrize(("name", "field"), [("input_resampler", "embed_dim"), ("output_resampler", "kv_dim")])
def test_widths_must_meet(name, field):
    resampler = dataclasses.replace(getattr(CONFIG, name), **{field: 16})
    with pytest.raises(ValueError, match=f"{name}.{field} 16"):
        dataclasses.replace(CONFIG, **{name: resampler})
