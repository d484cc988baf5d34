"""Where a story model looks: attention by key token over layers, heads and stories (Table 5 and Figure 4).

A whole story is read once, without a cache and without eviction, every image as the model re-reads it. Attention is
computed for a slice of queries at a time and reduced at once, so what is held is [heads, slice, keys] and never a whole
map: 50 sequences at full size (5,300 tokens) need 87 MB of it.

What the paper's policy keeps follows from the statistics: around the borders of images lies most of what is read of
sequences long gone. `suggest_counts` says which head and tail counts would keep a given share of it.
"""

import dataclasses
import string
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from seedstory_jax.models.attention import MASKED_LOGIT
from seedstory_jax.models.kv_buffer import Kind
from seedstory_jax.models.llama_inference import InferenceLlama
from seedstory_jax.models.story_mllm import StoryMLLM

SLICE = 128  # queries at a time
BINS = 96  # a side of the heat map
TOP = 10  # keys a map that count as found
FEWEST_QUERIES = 32  # a key that fewer later tokens see has no mean worth ranking


@dataclasses.dataclass(frozen=True)
class StoryTokens:
    """One story as a row of tokens, numpy [t]: ids, what each is, its frame, its number among its image's tokens."""

    ids: np.ndarray
    kind: np.ndarray  # a kv_buffer.Kind
    frame: np.ndarray
    image_token: np.ndarray  # -1 outside an image
    names: tuple[str, ...]  # BOS, BOI, EOI, IMG00 ..., punctuation or text

    def __len__(self) -> int:
        return len(self.ids)


def story_tokens(tokenizer, captions: Sequence[str], image_tokens: int) -> StoryTokens:
    """The row that the model has read once it has told a story: no query tokens of its own drawing.

    `tokenizer` is a `generation.interface.Tokenizer`.
    """
    ids, kind, frame, number, names = [], [], [], [], []

    def add(some: Sequence[int], what: Kind, where: int, called) -> None:
        ids.extend(some)
        kind.extend([int(what)] * len(some))
        frame.extend([where] * len(some))
        number.extend(range(len(some)) if what == Kind.QUERY else [-1] * len(some))
        names.extend(called(place, token) for place, token in enumerate(some))

    def word(place: int, token: int) -> str:
        text = tokenizer.decode([token]).strip()
        return "punctuation" if text and all(letter in string.punctuation for letter in text) else "text"

    add([tokenizer.bos], Kind.BOS, 0, lambda *_: "BOS")
    for index, caption in enumerate(captions):
        turn = tokenizer.next_turn(caption) if index else tokenizer.first_turn(caption)
        add(turn, Kind.TEXT, index, word)
        add([tokenizer.boi], Kind.BOI, index, lambda *_: "BOI")
        add(tokenizer.image_ids[:image_tokens], Kind.QUERY, index, lambda place, _: f"IMG{place:02d}")
        add([tokenizer.eoi], Kind.EOI, index, lambda *_: "EOI")
    return StoryTokens(*(np.asarray(x, np.int32) for x in (ids, kind, frame, number)), tuple(names))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionSums:
    """Sums over the queries of a story; t is padded."""

    by_key: Float[Array, "l n t"]  # attention that a key got
    by_old_key: Float[Array, "l n t"]  # of it, from queries at least `window` frames later
    heat: Float[Array, "q s"]  # mean over layers and heads, binned in both directions


def attention_sums(
    llama: InferenceLlama,
    embeddings: Float[Array, "t d"],
    real: Bool[Array, "t"],
    frame: Int[Array, "t"],
    bins: Int[Array, "t"],
    *,
    window: int,
    number_of_bins: int = BINS,
    queries: int = SLICE,
) -> tuple[AttentionSums, Float[Array, "t d"]]:
    """One causal pass; `embeddings` are padded to a multiple of `queries`, `real` says which tokens are none.

    Returns the sums and the last hidden states after the norm. Raises ValueError for another length.
    """
    length = embeddings.shape[0]
    if length % queries:
        raise ValueError(f"{length} tokens are no multiple of slices of {queries}; pad them")
    positions = jnp.arange(length)[None]
    config = llama.config
    groups = config.num_heads // config.num_kv_heads

    def layer_step(layer, x):
        q, k, v = layer.project(x, positions)
        k, v = (jnp.repeat(y[0], groups, axis=1) for y in (k, v))  # [s n h]

        def slice_step(carry, start):
            by_key, by_old_key, heat = carry
            rows = start + jnp.arange(queries)
            part = jax.lax.dynamic_slice_in_dim(q[0], start, queries)
            logits = jnp.einsum("tnh,snh->nts", part, k, preferred_element_type=jnp.float32) * config.head_dim**-0.5
            seen = (jnp.arange(length)[None] <= rows[:, None]) & real[None]
            weights = jax.nn.softmax(jnp.where(seen[None], logits, MASKED_LOGIT), axis=-1)
            attended = jnp.einsum("nts,snh->tnh", weights.astype(v.dtype), v)
            weights = weights * real[rows][None, :, None]
            old = frame[rows][:, None] - frame[None] >= window
            over_heads = weights.mean(0)  # [t s]
            by_column = jax.ops.segment_sum(over_heads.T, bins, number_of_bins)  # [bins t]
            by_cell = jax.ops.segment_sum(by_column.T, bins[rows], number_of_bins)
            sums = (by_key + weights.sum(1), by_old_key + (weights * old).sum(1), heat + by_cell)
            return sums, attended

        empty = jnp.zeros((config.num_heads, length), jnp.float32)
        carry = (empty, empty, jnp.zeros((number_of_bins, number_of_bins), jnp.float32))
        sums, attended = jax.lax.scan(slice_step, carry, jnp.arange(0, length, queries))
        return layer.finish(x, attended.reshape(1, length, config.num_heads, config.head_dim)), sums

    x, sums = embeddings[None].astype(llama.norm.dtype), []
    for layer in llama.layers:
        x, of_layer = layer_step(layer, x)
        sums.append(of_layer)
    by_key, by_old_key, heat = (jnp.stack(column) for column in zip(*sums))
    return AttentionSums(by_key, by_old_key, heat.mean(0)), llama.norm(x)[0]


@dataclasses.dataclass
class AttentionStatistics:
    """Over all stories.

    Attributes:
        stories: how many.
        maps: attention maps: stories x layers x heads.
        occurrences: by name, in what share of maps at least one such token is among the ten keys most attended to.
        mean_attention: by name, the mean attention of a later token to such a token.
        heat: [bins bins] attention of a query to a whole bin of keys, mean over a bin of queries; rows are queries.
        head_mass: by distance from BOI, the share of all attention to evicted sequences that such tokens got.
        tail_mass: by distance from EOI, likewise; every token of a sequence counts with the nearer of the two.
        old_share: the share of all attention that goes to sequences that have left the window, sinks of the text apart.
    """

    stories: int
    maps: int
    occurrences: dict[str, float]
    mean_attention: dict[str, float]
    heat: np.ndarray
    head_mass: dict[int, float]
    tail_mass: dict[int, float]
    old_share: float


def attention_statistics(
    model: StoryMLLM,
    tokenizer,
    stories: Sequence[tuple[Sequence[str], np.ndarray]],
    *,
    window: int = 8,
    text_sink: int = 4,
    queries: int = SLICE,
) -> AttentionStatistics:
    """Statistics over stories, each (captions, image features [i q d]). Raises ValueError without a story."""
    if not stories:
        raise ValueError("attention statistics need at least one story")
    image_tokens = model.config.num_image_tokens
    rows = [story_tokens(tokenizer, captions, image_tokens) for captions, _ in stories]
    most_images = max(len(captions) for captions, _ in stories)
    length = -(-max(map(len, rows)) // queries) * queries
    graph, state = nnx.split(model.for_inference())

    @partial(jax.jit, static_argnames=("window", "queries"))
    def sums_of(state, ids, slot, features, real, frame, bins, *, window, queries):
        model = nnx.merge(graph, state)
        embeddings = model.interleave_images(model.llama.embed(ids[None]), slot[None], features[None])
        return attention_sums(model.llama, embeddings[0], real, frame, bins, window=window, queries=queries)[0]

    tally = _Tally()
    for row, (_, features) in zip(rows, stories, strict=True):
        slot = np.where(row.image_token >= 0, row.frame * image_tokens + row.image_token, -1)
        images = np.zeros((most_images, *features.shape[1:]), np.float32)
        images[: len(features)] = features
        bins = np.arange(len(row)) * BINS // len(row)
        pad = partial(_padded, length)
        arguments = (pad(row.ids, tokenizer.eos), pad(slot, -1), images, pad(np.ones(len(row), bool), False))
        found = sums_of(state, *arguments, pad(row.frame, 0), pad(bins, 0), window=window, queries=queries)
        tally.add(row, found, bins, text_sink)
    return tally.statistics()


def suggest_counts(
    head_mass: Mapping[int, float], tail_mass: Mapping[int, float], share: float = 0.9
) -> tuple[tuple[int, int], tuple[int, int], float]:
    """(head, tail, share kept): the counts (before the mark, from it on) that keep `share` of what evicted images get.

    Grown greedily from the marks themselves, always on the side where one more token keeps most. Tokens that lie
    beyond those known are never asked for.
    """
    sides = {
        "head before": [head_mass.get(-place, 0.0) for place in range(1, 1 + max(0, -min(head_mass, default=0)))],
        "head from": [head_mass.get(place, 0.0) for place in range(1 + max(head_mass, default=-1))],
        "tail before": [tail_mass.get(-place, 0.0) for place in range(1, 1 + max(0, -min(tail_mass, default=0)))],
        "tail from": [tail_mass.get(place, 0.0) for place in range(1 + max(tail_mass, default=-1))],
    }
    total = sum(map(sum, sides.values()))
    counts = dict.fromkeys(sides, 0)
    kept = 0.0
    while total > 0 and kept < share * total * (1 - 1e-12):
        # The next tokens of a side are judged by the best mean over any stretch of them: a peak behind a dip is found.
        gains = {side: _best_stretch(values[counts[side] :]) for side, values in sides.items()}
        side = max(gains, key=lambda name: gains[name][0])
        if gains[side][1] == 0:
            break
        kept += sides[side][counts[side]]
        counts[side] += 1
    head = (counts["head before"], counts["head from"])
    return head, (counts["tail before"], counts["tail from"]), kept / total if total else 0.0


def kept_share(
    head_mass: Mapping[int, float], tail_mass: Mapping[int, float], head: tuple[int, int], tail: tuple[int, int]
) -> float:
    """The share of the attention to evicted sequences that given counts keep."""
    total = sum(head_mass.values()) + sum(tail_mass.values())
    kept = sum(mass for place, mass in head_mass.items() if -head[0] <= place < head[1])
    kept += sum(mass for place, mass in tail_mass.items() if -tail[0] <= place < tail[1])
    return kept / total if total else 0.0


def _best_stretch(values: Sequence[float]) -> tuple[float, int]:
    """The largest mean of a stretch from the start, and how long it is; (0, 0) where there is nothing."""
    if not len(values):
        return (0.0, 0)
    means = np.cumsum(values) / np.arange(1, len(values) + 1)
    place = int(means.argmax())
    return (float(means[place]), place + 1)


def _padded(length: int, values: np.ndarray, fill) -> np.ndarray:
    return np.concatenate([values, np.full(length - len(values), fill, values.dtype)])


class _Tally:
    """What is added up over stories."""

    def __init__(self):
        self.stories = self.maps = 0
        self.found: dict[str, int] = {}
        self.means: dict[str, list[float]] = {}
        self.heat = np.zeros((BINS, BINS))
        self.heat_counts = np.zeros((BINS, BINS))
        self.mass: dict[str, dict[int, float]] = {"head": {}, "tail": {}}
        self.all_mass = 0.0

    def add(self, row: StoryTokens, sums: AttentionSums, bins: np.ndarray, text_sink: int) -> None:
        length = len(row)
        by_key = np.asarray(sums.by_key, np.float64)[:, :, :length].reshape(-1, length)  # [maps t]
        later = length - np.arange(length)
        ranked = np.where(later >= min(FEWEST_QUERIES, max(1, length // 4)), by_key / later, -1.0)
        names = np.array(row.names)
        for top in np.argsort(-ranked, axis=1, kind="stable")[:, :TOP]:
            for name in set(names[top].tolist()):
                self.found[name] = self.found.get(name, 0) + 1
        for name in set(row.names):
            self.means.setdefault(name, []).append(float((by_key / later)[:, names == name].mean()))
        self.heat += np.asarray(sums.heat, np.float64)
        sizes = np.bincount(bins, minlength=BINS)
        self.heat_counts += np.outer(sizes, np.ones(BINS))
        self._add_old(row, np.asarray(sums.by_old_key, np.float64)[:, :, :length].mean((0, 1)), text_sink)
        self.all_mass += float(by_key.mean(0).sum())
        self.stories += 1
        self.maps += len(by_key)

    def _add_old(self, row: StoryTokens, old: np.ndarray, text_sink: int) -> None:
        for frame in range(int(row.frame.max()) + 1):
            places = np.flatnonzero(row.frame == frame)
            boi = int(places[row.kind[places] == Kind.BOI][0])
            eoi = int(places[row.kind[places] == Kind.EOI][0])
            for place in places[places >= text_sink]:
                side, distance = (
                    ("head", place - boi) if abs(place - boi) <= abs(place - eoi) else ("tail", place - eoi)
                )
                masses = self.mass[side]
                masses[int(distance)] = masses.get(int(distance), 0.0) + float(old[place])

    def statistics(self) -> AttentionStatistics:
        old = sum(sum(masses.values()) for masses in self.mass.values())
        head, tail = ({k: v / old if old else 0.0 for k, v in sorted(m.items())} for m in self.mass.values())
        by_share = sorted(self.found.items(), key=lambda pair: -pair[1])
        means = {name: float(np.mean(values)) for name, values in self.means.items()}
        heat = self.heat / np.maximum(self.heat_counts, 1)
        return AttentionStatistics(
            stories=self.stories,
            maps=self.maps,
            occurrences={name: count / self.maps for name, count in by_share},
            mean_attention=dict(sorted(means.items(), key=lambda pair: -pair[1])),
            heat=heat,
            head_mass=head,
            tail_mass=tail,
            old_share=old / self.all_mass if self.all_mass else 0.0,
        )
