"""The compiled steps of a story: read text, write text, draw an image, re-read it, forget.

Each is one `jax.jit` of static shape that takes a `Telling` (donated) and gives it back, so a story of any length
runs on the same few programs. What shapes a program is in its static arguments; what may change from call to call
(temperature, seed, a policy's numbers) is data. All of them lower from shapes alone (`lower_programs`).

Axis letters: b story, t token of a chunk, s slot, q row of image features, d model, v vocabulary.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from seedstory_jax.generation import policies
from seedstory_jax.models import kv_buffer
from seedstory_jax.models.kv_buffer import Kind, KVBuffer, TokenChunk
from seedstory_jax.models.layer_stack import activation_axes
from seedstory_jax.models.parameters import ModuleDef
from seedstory_jax.models.story_mllm import StoryMLLM, StoryMLLMConfig
from seedstory_jax.sharding import ACTIVATIONS

NEVER = -1e30

# Axis letter -> mesh axis: as in training, but a story's pictures stay with the story.
LAYOUT = {**ACTIVATIONS, "i": ACTIVATIONS["b"]}

# How the text of a sequence ended.
WRITING, IMAGE, END, LIMIT = range(4)


@dataclass(frozen=True)
class SpecialTokens:
    """The ids that the engine itself handles."""

    bos: int
    eos: int
    boi: int
    eoi: int
    image: tuple[int, ...]  # as many as an image has tokens in the LLM
    barred: tuple[int, ...]  # never written in text: all image tokens there are, and </img>


@dataclass(frozen=True)
class Shape:
    """What every program of a engine shares, and depends on."""

    module_def: ModuleDef
    config: StoryMLLMConfig
    tokens: SpecialTokens
    positions: kv_buffer.Positions
    max_text_tokens: int
    allow_end: bool = True  # False bars </s>: the story goes on until the caller stops
    mesh: Mesh | None = None  # where stories and heads are split; None leaves all where the parameters are


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Telling:
    """All that a batch of stories is between two programs."""

    buffer: KVBuffer
    hidden: Any  # float [b d] of the newest token: what comes next is read from it
    frame: Any  # int32 [b] the sequence being told

    @property
    def batch(self) -> int:
        """How many stories."""
        return self.frame.shape[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 is greedy, as published."""

    temperature: Any  # float []
    top_p: Any  # float []
    seed: Any  # int32 [b] one a story: its words do not depend on the batch it is in


def program(*, static: tuple[int, ...] = (0,), donate: tuple[int, ...] = ()) -> Callable:
    """Decorates a function of (shape, ...) as a jitted program, laid out on the shape's mesh."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def laid_out(shape: Shape, *arguments):
            if shape.mesh is None:
                return function(shape, *arguments)
            telling = next((one for one in arguments if isinstance(one, Telling)), None)
            batch = telling.batch if telling else arguments[0]  # of `begin`
            with activation_axes(shape.mesh, layout_of(shape.mesh, batch)):
                return function(shape, *arguments)

        return jax.jit(laid_out, static_argnums=static, donate_argnums=donate)

    return decorate


def layout_of(mesh: Mesh, batch: int) -> Mapping[str, Any]:
    """The layout for `batch` stories; as many as data and fsdp do not divide are told by all devices alike."""
    shards = math.prod(mesh.shape[axis] for axis in LAYOUT["b"])
    return LAYOUT if batch % shards == 0 else {**LAYOUT, "b": None, "i": None}


def telling_sharding(mesh: Mesh, telling: Telling) -> Telling:
    """Where a telling lives: stories over data and fsdp, keys and values over tensor, too."""
    layout = layout_of(mesh, telling.batch)
    stories, heads = layout["b"], layout["k"]
    at = jax.tree.map(lambda leaf: NamedSharding(mesh, PartitionSpec(stories)), telling)
    kv = NamedSharding(mesh, PartitionSpec(None, stories, heads, None, None))
    return replace(at, buffer=replace(at.buffer, k=kv, v=kv))


def model_of(shape: Shape, parameters: dict[str, Any]) -> StoryMLLM:
    """The story model around its parameters."""
    return shape.module_def.build(parameters)


@program(static=(0, 1, 2, 3))
def begin(shape: Shape, batch: int, slots: int, dtype: str) -> Telling:
    """Stories of which nothing is told yet."""
    config = shape.config.llama
    telling = Telling(
        buffer=kv_buffer.empty_buffer(config.num_layers, batch, slots, config.num_kv_heads, config.head_dim, dtype),
        hidden=jnp.zeros((batch, config.hidden_size), jnp.dtype(config.dtype)),
        frame=jnp.zeros((batch,), jnp.int32),
    )
    return _stay(shape, telling)


@jax.jit
def copy(telling: Telling) -> Telling:
    """The same in memory of its own: a fork is copied before either branch is donated."""
    return jax.tree.map(jnp.copy, telling)


@program(donate=(2,))
def read_text(
    shape: Shape, parameters: dict, telling: Telling, ids: Int[Array, "b t"], count: Int[Array, " b"]
) -> Telling:
    """Reads given text, the first `count[b]` ids of each row."""
    model = model_of(shape, parameters)
    kind = jnp.where(ids == shape.tokens.bos, int(Kind.BOS), int(Kind.TEXT))
    return _extend(shape, model, telling, model.llama.embed(ids), kind, count)[0]


@program(donate=(2,))
def write_text(
    shape: Shape, parameters: dict, telling: Telling, writes: Bool[Array, " b"], sampling: Sampling
) -> tuple[Telling, Int[Array, "b t"], Int[Array, " b"], Int[Array, " b"]]:
    """Writes until `<img>`, `</s>` or the limit, in the stories where `writes`.

    Returns the telling (which holds the text's tokens, not what ended it), the tokens, their count, and how each
    text ended: IMAGE, END or LIMIT (WRITING where nothing was to be written). The LLM is called as often as the
    longest text has tokens.
    """
    model = model_of(shape, parameters)

    def choose(telling, outcome, count):
        logits = _text_logits(shape, model, telling.hidden)
        token = _choose(logits, sampling, kv_buffer.next_index(telling.buffer))
        is_full = count >= shape.max_text_tokens
        ended = jnp.where(is_full, LIMIT, WRITING)
        ended = jnp.where(token == shape.tokens.eos, END, ended)
        ended = jnp.where(token == shape.tokens.boi, IMAGE, ended)
        return token, jnp.where(outcome == WRITING, ended, outcome)

    def more(state):
        outcome = state[-1]
        return jnp.any(writes & (outcome == WRITING))

    def step(state):
        telling, tokens, count, token, outcome = state
        goes_on = writes & (outcome == WRITING)
        at = jnp.where(goes_on, count, shape.max_text_tokens)
        tokens = tokens.at[jnp.arange(telling.batch), at].set(token, mode="drop")
        embeddings = model.llama.embed(token[:, None])
        kind = jnp.full((telling.batch, 1), int(Kind.TEXT), jnp.int32)
        telling, _ = _extend(shape, model, telling, embeddings, kind, goes_on.astype(jnp.int32))
        count = count + goes_on
        token, outcome = choose(telling, outcome, count)
        return telling, tokens, count, token, outcome

    batch = telling.batch
    tokens = jnp.zeros((batch, shape.max_text_tokens), jnp.int32)
    count = jnp.zeros((batch,), jnp.int32)
    token, outcome = choose(telling, jnp.full((batch,), WRITING, jnp.int32), count)
    telling, tokens, count, _, outcome = jax.lax.while_loop(more, step, (telling, tokens, count, token, outcome))
    return telling, tokens, count, jnp.where(writes, outcome, WRITING)


@program(donate=(2,))
def draw_image(
    shape: Shape, parameters: dict, telling: Telling, draws: Bool[Array, " b"]
) -> tuple[Telling, Float[Array, "b q d"]]:
    """`<img>` and its query tokens in one chunk -> the predicted image features; the chunk is forgotten again.

    (Rows that do not draw give features that mean nothing.)
    """
    model = model_of(shape, parameters)
    ids = jnp.array([shape.tokens.boi, *shape.tokens.image], jnp.int32)
    ids = jnp.broadcast_to(ids, (telling.batch, ids.size))
    kind = jnp.where(ids == shape.tokens.boi, int(Kind.BOI), int(Kind.QUERY))
    length = telling.buffer.length
    drawn, hidden = _extend(shape, model, telling, model.llama.embed(ids), kind, jnp.where(draws, ids.shape[1], 0))
    features = model.draw_images(hidden[:, None, 1:])[:, 0]
    return replace(telling, buffer=kv_buffer.rewind(drawn.buffer, length)), features.astype(jnp.float32)


@program(donate=(2,))
def read_image(
    shape: Shape, parameters: dict, telling: Telling, features: Float[Array, "b q d"], reads: Bool[Array, " b"]
) -> Telling:
    """`<img>`, an image as the model reads it, and `</img>`: the end of a sequence, drawn or given."""
    model = model_of(shape, parameters)
    marks = jnp.array([[shape.tokens.boi, shape.tokens.eoi]], jnp.int32)
    marks = jnp.broadcast_to(model.llama.embed(marks), (telling.batch, 2, telling.hidden.shape[-1]))
    image = model.read_images(features[:, None])[:, 0].astype(marks.dtype)
    embeddings = jnp.concatenate([marks[:, :1], image, marks[:, 1:]], axis=1)
    kind = jnp.full(embeddings.shape[:2], int(Kind.QUERY), jnp.int32)
    kind = kind.at[:, 0].set(int(Kind.BOI)).at[:, -1].set(int(Kind.EOI))
    telling, _ = _extend(shape, model, telling, embeddings, kind, jnp.where(reads, embeddings.shape[1], 0))
    return replace(telling, frame=telling.frame + reads)


@program(static=(0, 1), donate=(3,))
def forget(shape: Shape, policy: policies.Policy, numbers: dict, telling: Telling) -> Telling:
    """Compacts the buffers to what the policy keeps; `policy, numbers` as `split_policy` gives them."""
    policy = replace(policy, **numbers)
    buffer, facts = telling.buffer, telling.buffer.facts
    theta = shape.config.llama.rope_theta
    keep, pinned = policies.keep_mask(policy, facts), policies.pinned_mask(policy, facts)
    return _stay(shape, replace(telling, buffer=kv_buffer.compact(buffer, keep, policy.positions, theta, pinned)))


def _extend(shape: Shape, model: StoryMLLM, telling: Telling, embeddings, kind, count):
    """Appends tokens that follow what is there; (telling with the newest hidden state, all hidden states)."""
    buffer = telling.buffer
    step = jnp.arange(embeddings.shape[1], dtype=jnp.int32)[None, :]
    index = kv_buffer.next_index(buffer)[:, None] + step
    position = buffer.length[:, None] + step if shape.positions == "slot" else index
    frame = jnp.broadcast_to(telling.frame[:, None], position.shape)
    chunk = TokenChunk(position=position, index=index, kind=kind, frame=frame, count=count.astype(jnp.int32))
    return append(shape, model, telling, embeddings, chunk)


def append(shape: Shape, model: StoryMLLM, telling: Telling, embeddings: Float[Array, "b t d"], chunk: TokenChunk):
    """(telling with the chunk and its newest hidden state, all hidden states); rows of count 0 stay as they are."""
    hidden, buffer = model.llama.extend(embeddings, chunk, telling.buffer)
    last = jnp.maximum(chunk.count - 1, 0)[:, None, None]
    newest = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
    newest = jnp.where(chunk.count[:, None] > 0, newest, telling.hidden)
    telling = replace(telling, buffer=buffer, hidden=newest.astype(telling.hidden.dtype))
    return _stay(shape, telling), hidden


def _stay(shape: Shape, telling: Telling) -> Telling:
    """Every program gives a telling back laid out as it took it, so that the next one need not be compiled anew."""
    if shape.mesh is None:
        return telling
    return jax.lax.with_sharding_constraint(telling, telling_sharding(shape.mesh, telling))


def _text_logits(shape: Shape, model: StoryMLLM, hidden) -> Float[Array, "b v"]:
    """Scores of the next token, image tokens barred."""
    logits = model.llama.logits(hidden[:, None])[:, 0]
    barred = shape.tokens.barred if shape.allow_end else (*shape.tokens.barred, shape.tokens.eos)
    return logits.at[:, jnp.array(barred, jnp.int32)].set(NEVER)


def _choose(logits: Float[Array, "b v"], sampling: Sampling, index: Int[Array, " b"]) -> Int[Array, " b"]:
    """The next token: the best, or one of the nucleus, with noise keyed by the story's seed and the token's number."""

    def greedy():
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def draw():
        scores = logits / jnp.maximum(sampling.temperature, 1e-6)
        probabilities = jax.nn.softmax(scores, axis=-1)
        ranked = jnp.sort(probabilities, axis=-1, descending=True)
        before = jnp.cumsum(ranked, axis=-1) - ranked
        least = jnp.min(jnp.where(before < sampling.top_p, ranked, 2.0), axis=-1, keepdims=True)
        scores = jnp.where(probabilities >= jnp.minimum(least, ranked[:, :1]), scores, NEVER)
        keys = jax.vmap(lambda seed, number: jax.random.fold_in(jax.random.key(seed), number))(sampling.seed, index)
        return jax.vmap(jax.random.categorical)(keys, scores).astype(jnp.int32)

    return jax.lax.cond(sampling.temperature > 0, draw, greedy)
