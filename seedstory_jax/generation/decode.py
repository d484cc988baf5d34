"""Jitted steps of generation: prefill text, decode text, predict image features, append image, evict.

Each has static shapes, takes a `GenerationState` (donated) and returns it, so a story of any length runs on the same
few programs. What shapes a program is in its static arguments; what may change from call to call (temperature, seed,
a policy's numbers) is data. All of them lower from shapes alone (`aot.lower_programs`).

Axis letters: b story, t token of a chunk, s slot, q row of image features, d model, v vocabulary.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from seedstory_jax.generation import policies
from seedstory_jax.generation.sampling import Sampling, choose
from seedstory_jax.models import kv_buffer
from seedstory_jax.models.attention import MASKED_LOGIT
from seedstory_jax.models.kv_buffer import Kind, KVBuffer, TokenChunk
from seedstory_jax.models.layer_stack import activation_axes, constrain
from seedstory_jax.models.parameters import ModuleDef
from seedstory_jax.models.story_mllm import StoryMLLM, StoryMLLMConfig
from seedstory_jax.sharding import ACTIVATIONS

# Axis letter -> mesh axis: as in training, but a story's images stay with the story.
ACTIVATION_RULES = {**ACTIVATIONS, "i": ACTIVATIONS["b"]}

# How the text of a turn ended.
RUNNING, IMAGE, END, LIMIT = range(4)


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that the engine itself handles."""

    bos: int
    eos: int
    boi: int
    eoi: int
    image: tuple[int, ...]  # as many as an image has tokens in the LLM
    barred: tuple[int, ...]  # never decoded as text: all image tokens there are, and </img>


@dataclass(frozen=True)
class EngineSpec:
    """Static arguments that all programs of an engine share."""

    module_def: ModuleDef
    config: StoryMLLMConfig
    tokens: SpecialTokens
    positions: kv_buffer.Positions
    max_text_tokens: int
    allow_end: bool = True  # False bars </s>: the story goes on until the caller stops
    score: str | None = None  # what slots are ranked by, see `scores`
    mesh: Mesh | None = None  # where stories and heads are split; None leaves all where the parameters are


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GenerationState:
    """Device state of a batch of stories between two programs."""

    buffer: KVBuffer
    hidden: Any  # float [b d] of the newest token: the next one is predicted from it
    turn: Any  # int32 [b] number of the turn that is being generated

    @property
    def batch(self) -> int:
        """Number of stories."""
        return self.turn.shape[0]


def jitted(*, static: tuple[int, ...] = (0,), donate: tuple[int, ...] = ()) -> Callable:
    """Decorator: jits a function of (spec, ...), its activations constrained to the spec's mesh."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def on_mesh(spec: EngineSpec, *arguments):
            if spec.mesh is None:
                return function(spec, *arguments)
            state = next((one for one in arguments if isinstance(one, GenerationState)), None)
            batch = state.batch if state else arguments[0]  # of `init_state`
            with activation_axes(spec.mesh, activation_rules(spec.mesh, batch)):
                return function(spec, *arguments)

        return jax.jit(on_mesh, static_argnums=static, donate_argnums=donate)

    return decorate


def activation_rules(mesh: Mesh, batch: int) -> Mapping[str, Any]:
    """Layout of `batch` stories; a batch that data and fsdp do not divide is computed by all devices alike."""
    shards = math.prod(mesh.shape[axis] for axis in ACTIVATION_RULES["b"])
    return ACTIVATION_RULES if batch % shards == 0 else {**ACTIVATION_RULES, "b": None, "i": None}


def state_sharding(mesh: Mesh, state: GenerationState) -> GenerationState:
    """Shardings of a state: stories over data and fsdp, keys and values over tensor, too."""
    rules = activation_rules(mesh, state.batch)
    stories, heads = rules["b"], rules["k"]
    at = jax.tree.map(lambda leaf: NamedSharding(mesh, PartitionSpec(stories)), state)
    kv = (NamedSharding(mesh, PartitionSpec(stories, heads, None, None)),) * len(state.buffer.k)
    return replace(at, buffer=replace(at.buffer, k=kv, v=kv))


def constrain_state(spec: EngineSpec, state: GenerationState) -> GenerationState:
    """The state laid out as every program takes it, so that the next one need not be compiled anew."""
    if spec.mesh is None:
        return state
    return jax.lax.with_sharding_constraint(state, state_sharding(spec.mesh, state))


def model_of(spec: EngineSpec, parameters: dict[str, Any]) -> StoryMLLM:
    """The story model around its parameters."""
    return spec.module_def.build(parameters)


@jitted(static=(0, 1, 2, 3))
def init_state(spec: EngineSpec, batch: int, slots: int, dtype: str) -> GenerationState:
    """State of stories without a token."""
    config = spec.config.llama
    state = GenerationState(
        buffer=kv_buffer.empty_buffer(
            config.num_layers, batch, slots, config.num_kv_heads, config.head_dim, dtype, spec.score is not None
        ),
        hidden=jnp.zeros((batch, config.hidden_size), jnp.dtype(config.dtype)),
        turn=jnp.zeros((batch,), jnp.int32),
    )
    return constrain_state(spec, state)


@jax.jit
def copy_state(state: GenerationState) -> GenerationState:
    """The same in memory of its own: a fork is copied before either branch is donated."""
    return jax.tree.map(jnp.copy, state)


@jitted(donate=(2,))
def prefill_text(
    spec: EngineSpec, parameters: dict, state: GenerationState, ids: Int[Array, "b t"], count: Int[Array, " b"]
) -> GenerationState:
    """Appends given text, the first `count[b]` ids of each row."""
    model = model_of(spec, parameters)
    kind = jnp.where(ids == spec.tokens.bos, int(Kind.BOS), int(Kind.TEXT))
    return extend(spec, model, state, model.llama.embed(ids), kind, count)[0]


@jitted(donate=(2,))
def decode_text(
    spec: EngineSpec, parameters: dict, state: GenerationState, active: Bool[Array, " b"], sampling: Sampling | None
) -> tuple[GenerationState, Int[Array, "b t"], Int[Array, " b"], Int[Array, " b"]]:
    """Decodes until `<img>`, `</s>` or the limit, in the stories where `active`.

    Greedily without `sampling`. Returns the state (which holds the text's tokens, not what ended it), the tokens, their
    count, and how each text ended: IMAGE, END or LIMIT (RUNNING where not active). The LLM is called as often as the
    longest text has tokens.
    """

    model = model_of(spec, parameters)

    def choose_next(state, outcome, count):
        logits = _text_logits(spec, model, state.hidden)
        token = choose(logits, sampling, kv_buffer.next_story_index(state.buffer))
        is_full = count >= spec.max_text_tokens
        ended = jnp.where(is_full, LIMIT, RUNNING)
        ended = jnp.where(token == spec.tokens.eos, END, ended)
        ended = jnp.where(token == spec.tokens.boi, IMAGE, ended)
        return token, jnp.where(outcome == RUNNING, ended, outcome)

    def more(carry):
        outcome = carry[-1]
        return jnp.any(active & (outcome == RUNNING))

    def step(carry):
        state, tokens, count, token, outcome = carry
        goes_on = active & (outcome == RUNNING)
        at = jnp.where(goes_on, count, spec.max_text_tokens)
        tokens = tokens.at[jnp.arange(state.batch), at].set(token, mode="drop")
        embeddings = model.llama.embed(token[:, None])
        kind = jnp.full((state.batch, 1), int(Kind.TEXT), jnp.int32)
        state, _ = extend(spec, model, state, embeddings, kind, goes_on.astype(jnp.int32))
        count = count + goes_on
        token, outcome = choose_next(state, outcome, count)
        return state, tokens, count, token, outcome

    batch = state.batch
    tokens = jnp.zeros((batch, spec.max_text_tokens), jnp.int32)
    count = jnp.zeros((batch,), jnp.int32)
    token, outcome = choose_next(state, jnp.full((batch,), RUNNING, jnp.int32), count)
    state, tokens, count, _, outcome = jax.lax.while_loop(more, step, (state, tokens, count, token, outcome))
    return state, tokens, count, jnp.where(active, outcome, RUNNING)


@jitted(donate=(2,))
def predict_image(
    spec: EngineSpec, parameters: dict, state: GenerationState, active: Bool[Array, " b"]
) -> tuple[GenerationState, Float[Array, "b q d"]]:
    """Image features regressed from `<img>` and its query tokens, one chunk that is then rewound.

    (The features of inactive rows are meaningless.)
    """
    model = model_of(spec, parameters)
    ids = jnp.array([spec.tokens.boi, *spec.tokens.image], jnp.int32)
    ids = jnp.broadcast_to(ids, (state.batch, ids.size))
    kind = jnp.where(ids == spec.tokens.boi, int(Kind.BOI), int(Kind.QUERY))
    length = state.buffer.length
    queried, hidden = extend(spec, model, state, model.llama.embed(ids), kind, jnp.where(active, ids.shape[1], 0))
    features = model.predict_image_features(hidden[:, None, 1:])[:, 0]
    return replace(state, buffer=kv_buffer.rewind(queried.buffer, length)), features.astype(jnp.float32)


@jitted(donate=(2,))
def append_image(
    spec: EngineSpec,
    parameters: dict,
    state: GenerationState,
    features: Float[Array, "b q d"],
    active: Bool[Array, " b"],
) -> GenerationState:
    """Appends `<img>`, the embedded image and `</img>`, predicted or given: the end of a turn."""
    model = model_of(spec, parameters)
    embeddings = embed_image(spec, model, features)
    kind = jnp.full(embeddings.shape[:2], int(Kind.QUERY), jnp.int32)
    kind = kind.at[:, 0].set(int(Kind.BOI)).at[:, -1].set(int(Kind.EOI))
    state, _ = extend(spec, model, state, embeddings, kind, jnp.where(active, embeddings.shape[1], 0))
    return replace(state, turn=state.turn + active)


def embed_image(spec: EngineSpec, model: StoryMLLM, features: Float[Array, "b q d"]) -> Float[Array, "b t m"]:
    """Embeddings of `<img>`, the image as it is read, and `</img>`."""
    image = model.embed_images(features[:, None])[:, 0]
    marks = jnp.array([[spec.tokens.boi, spec.tokens.eoi]], jnp.int32)
    marks = jnp.broadcast_to(model.llama.embed(marks), (image.shape[0], 2, image.shape[-1]))
    return jnp.concatenate([marks[:, :1], image.astype(marks.dtype), marks[:, 1:]], axis=1)


@jitted(static=(0, 1), donate=(3,))
def evict(spec: EngineSpec, policy: policies.Policy, numbers: dict, state: GenerationState) -> GenerationState:
    """Compacts the buffers to what the policy keeps; `policy, numbers` as `split_policy` returns them."""
    policy = replace(policy, **numbers)
    buffer, slots = state.buffer, state.buffer.metadata
    theta = spec.config.llama.rope_theta
    keep, is_sink = policies.keep_mask(policy, slots), policies.sink_mask(policy, slots)
    return constrain_state(
        spec, replace(state, buffer=kv_buffer.compact(buffer, keep, policy.positions, theta, is_sink))
    )


def extend(spec: EngineSpec, model: StoryMLLM, state: GenerationState, embeddings, kind, count):
    """Appends tokens after the newest ones; (state with the newest hidden state, all hidden states)."""
    buffer = state.buffer
    step = jnp.arange(embeddings.shape[1], dtype=jnp.int32)[None, :]
    story_index = kv_buffer.next_story_index(buffer)[:, None] + step
    position = kv_buffer.next_position(buffer, spec.positions)[:, None] + step
    turn = jnp.broadcast_to(state.turn[:, None], position.shape)
    count = count.astype(jnp.int32)
    chunk = TokenChunk(position=position, story_index=story_index, kind=kind, turn=turn, count=count)
    return append_chunk(spec, model, state, embeddings, chunk)


def append_chunk(
    spec: EngineSpec, model: StoryMLLM, state: GenerationState, embeddings: Float[Array, "b t d"], chunk: TokenChunk
) -> tuple[GenerationState, Float[Array, "b t d"]]:
    """(state with the chunk and its newest hidden state, all hidden states); rows of count 0 stay as they are."""
    hidden, buffer = model.llama.extend(embeddings, chunk, state.buffer)
    last = jnp.maximum(chunk.count - 1, 0)[:, None, None]
    newest = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
    newest = jnp.where(chunk.count[:, None] > 0, newest, state.hidden)
    state = replace(state, buffer=buffer, hidden=newest.astype(state.hidden.dtype))
    return constrain_state(spec, state), hidden


def _text_logits(spec: EngineSpec, model: StoryMLLM, hidden) -> Float[Array, "b v"]:
    """Logits of the next token, image tokens barred, whole on every device of a story."""
    barred = spec.tokens.barred if spec.allow_end else (*spec.tokens.barred, spec.tokens.eos)
    is_barred = np.isin(np.arange(spec.config.llama.padded_vocab_size), barred)
    logits = constrain(model.llama.logits(hidden[:, None])[:, 0], "b_")
    return jnp.where(is_barred, MASKED_LOGIT, logits)
