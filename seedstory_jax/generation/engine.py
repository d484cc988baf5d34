"""Story engine: generates stories turn by turn; text and image features first, pixels whenever they are wanted.

    engine = StoryEngine(model, tokenizer, MultimodalSink(), GenerationConfig(length=30))
    story = engine.start(image_features, "A monkey wakes up in the city.")
    for turn in story:
        print(turn.text)                        # turn.predicted_image_features is the de-tokenizer's input
    other = story.fork()                        # a branch: the buffer is copied, nothing is recomputed
    other.next(caption="The monkey flies a kite.")

`start` with lists generates many stories at once (a `StorySession`), each with the very words it has alone.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import jax
import numpy as np
from jax.sharding import Mesh

from seedstory_jax.errors import UserError
from seedstory_jax.generation import decode, scores, window_recompute
from seedstory_jax.generation.compile_stats import Compilations
from seedstory_jax.generation.interface import GenerationConfig, Tokenizer, Turn
from seedstory_jax.generation.policies import (
    MultimodalSink,
    Policy,
    TurnTokens,
    fault_of_masks,
    policy_name,
    slot_count,
    split_policy,
)
from seedstory_jax.generation.sampling import Sampling
from seedstory_jax.models.parameters import split_module
from seedstory_jax.models.story_mllm import StoryMLLM

INSTRUCTION = "[INST]"  # precedes every caption but the first


@dataclass
class RowState:
    """Host state of one story of a batch."""

    turns: list[Turn] = field(default_factory=list)
    caption: str | None = None  # set for the next turn
    ending: str | None = None  # why it ended: "end" (</s>), "limit" (no <img>, and at_limit="stop"), the caller's word


class StoryEngine:
    """A story model with its tokenizer, eviction policy and settings; compiled once for a batch size.

    Args:
        model: the story model; what `build.for_sampling` made is used as it is, another one unstacked (a copy).
        tokenizer: see `Tokenizer`.
        policy: eviction policy of the KV buffer.
        config: settings of generation.
        mesh: (data, fsdp, tensor), to split stories and heads over devices; the model's arrays must be on it.

    Raises UserError if the tokenizer has fewer image tokens than the model.
    """

    def __init__(
        self,
        model: StoryMLLM,
        tokenizer: Tokenizer,
        policy: Policy | None = None,
        config: GenerationConfig | None = None,
        mesh: Mesh | None = None,
    ):
        model = model.for_inference()
        self.tokenizer = tokenizer
        self.policy = MultimodalSink() if policy is None else policy
        if self.policy.score not in (None, *scores.SCORES):
            raise UserError(
                f"policy {self.policy_name}: score={self.policy.score!r}; known: {', '.join(scores.SCORES)}"
            )
        self.config = GenerationConfig() if config is None else config
        self.compilations = Compilations()
        module_def, self.parameters = split_module(model)
        image_tokens = model.config.num_image_tokens
        if len(tokenizer.image_ids) < image_tokens:
            raise UserError(
                f"an image takes {image_tokens} tokens in this model; the tokenizer has {len(tokenizer.image_ids)}"
            )
        tokens = decode.SpecialTokens(
            bos=tokenizer.bos,
            eos=tokenizer.eos,
            boi=tokenizer.boi,
            eoi=tokenizer.eoi,
            image=tuple(tokenizer.image_ids[:image_tokens]),
            barred=(*tokenizer.image_ids, tokenizer.eoi),
        )
        self.spec = decode.EngineSpec(
            module_def=module_def,
            config=model.config,
            tokens=tokens,
            positions=self.policy.positions,
            max_text_tokens=self.config.max_text_tokens,
            allow_end=self.config.allow_end,
            score=self.policy.score,
            mesh=mesh,
        )

    @property
    def policy_name(self) -> str:
        """The policy's name in the table of policies."""
        return policy_name(self.policy)

    @property
    def turn_tokens(self) -> int:
        """The most slots that one turn takes: its text, `<img>`, the image, `</img>`."""
        return TurnTokens(self.config.max_text_tokens, self.spec.config.num_image_tokens)

    def slots(self, length: int | None = None) -> int:
        """Slots of a story planned for `length` turns."""
        return slot_count(self.policy, length or self.config.length, self.turn_tokens)

    def start(self, image_features, text, *, length: int | None = None, seed: int | Sequence[int] | None = None):
        """Prefills the prompt of one story, or of many.

        Args:
            image_features: [q d] for one story, [b q d] for many.
            text: the first caption: a string (returns a `Story`), or a list of b of them (returns a `StorySession`).
            length: turns planned, if other than the config's.
            seed: of the sampling noise, one for each story.

        Raises UserError for a text that is too long or features of another shape.
        """
        single = isinstance(text, str)
        texts = [text] if single else list(text)
        features = np.asarray(image_features, np.float32)
        features = features[None] if single else features
        base = self.config.seed if seed is None else seed
        seeds = [base] if single else (list(base) if isinstance(base, Sequence) else range(base, base + len(texts)))
        session = StorySession(self, len(texts), length or self.config.length, seeds)
        session.append(texts, features)
        return Story(session) if single else session


class StorySession:
    """A batch of stories generated together; each row is independent, and one that has ended is a masked row."""

    def __init__(self, engine: StoryEngine, batch: int, length: int, seeds: Sequence[int]):
        self.engine = engine
        self.length = length
        self.rows = [RowState() for _ in range(batch)]
        self.slots = engine.slots(length)
        self.seeds = np.asarray(seeds, np.uint32)
        dtype = engine.config.buffer_dtype or engine.spec.config.llama.dtype
        self._state = decode.init_state(engine.spec, batch, self.slots, dtype)
        self._filled = np.zeros(batch, np.int32)  # slots in use, as the host knows it
        self._slot_metadata = jax.device_get(self._state.buffer.metadata)

    @property
    def active(self) -> np.ndarray:
        """bool [b]: the stories that go on."""
        return np.array([row.ending is None for row in self.rows])

    def append(self, texts: Sequence[str], image_features, rows: Sequence[bool] | None = None) -> list[Turn | None]:
        """Appends a turn whose caption and image [b q d] are both given, to the stories that go on."""
        engine, config = self.engine, self.engine.spec.config
        features = np.asarray(image_features, np.float32)
        shape = (len(self.rows), config.output_resampler.grid_size**2, config.input_resampler.kv_dim)
        if len(texts) != len(self.rows) or features.ndim != 3 or features.shape[::2] != shape[::2]:
            raise UserError(
                f"{len(texts)} texts and image features of shape {features.shape} for {len(self.rows)} stories; "
                f"expected features of shape {shape}"
            )
        active = self.active if rows is None else self.active & np.asarray(rows, bool)
        ids = [self._encode(row, text) if goes_on else [] for row, text, goes_on in zip(self.rows, texts, active)]
        self._reserve(active)
        clock = _Clock(engine)
        self._prefill_text(ids, active)
        texts = [text.strip() for text in texts]
        return self._end_turn(clock, features, active, texts, ids, ["prompt"] * len(ids), calls=2)

    def end(self, row: int, why: str) -> None:
        """Ends story `row`; it is masked from now on and costs the others nothing."""
        self.rows[row].ending = self.rows[row].ending or why

    def next(self, captions: Sequence[str | None] | None = None) -> list[Turn | None]:
        """The next turn of every story: None for those that have ended.

        `captions[b]` (or `set_caption`) gives a story's text; where there is none, the model writes it. Raises
        UserError, before anything is computed, if a turn might not fit the buffer or a caption is too long.
        """
        engine, config = self.engine, self.engine.config
        captions = [None] * len(self.rows) if captions is None else list(captions)
        if len(captions) != len(self.rows):
            raise UserError(f"{len(captions)} captions for {len(self.rows)} stories; give one (or None) for each")
        captions = [row.caption if given is None else given for row, given in zip(self.rows, captions)]
        active = self.active
        if not active.any():
            return [None] * len(self.rows)
        given = active & np.array([caption is not None for caption in captions])
        ids = [self._encode(row, text) if had else [] for row, text, had in zip(self.rows, captions, given)]
        self._reserve(active)

        clock, calls = _Clock(engine), 0
        continues = given.copy()
        if given.any():
            self._prefill_text(ids, given)
            calls += 1
        writes = active & ~given
        if writes.any():
            decoded, outcome = self._decode_text(writes)
            calls += max(len(tokens) for tokens in decoded)
            for i in np.flatnonzero(writes):
                ids[i] = decoded[i]
                stops = outcome[i] == decode.END or (outcome[i] == decode.LIMIT and config.at_limit == "stop")
                if stops:
                    self.rows[i].ending = "end" if outcome[i] == decode.END else "limit"
                continues[i] = not stops
        if not continues.any():
            return [None] * len(self.rows)
        self._state, features = decode.predict_image(engine.spec, engine.parameters, self._state, continues)
        texts = [caption.strip() if had else self._text(row) for caption, had, row in zip(captions, given, ids)]
        sources = ["caption" if had else "generated" for had in given]
        for row in self.rows:
            row.caption = None
        return self._end_turn(clock, features, continues, texts, ids, sources, calls=calls + 2)

    def set_caption(self, row: int, caption: str | None) -> None:
        """Sets the text of story `row`'s next turn; None lets the model write it."""
        self.rows[row].caption = caption

    def fork(self, seeds: Sequence[int] | None = None) -> "StorySession":
        """A branch that goes on by itself from here; the buffer is copied, nothing is recomputed."""
        branch = object.__new__(StorySession)
        branch.__dict__.update(self.__dict__)
        branch.rows = [replace(row, turns=list(row.turns)) for row in self.rows]
        branch.seeds = self.seeds if seeds is None else np.asarray(seeds, np.uint32)
        branch._state = decode.copy_state(self._state)
        branch._filled = self._filled.copy()
        return branch

    def _encode(self, row: RowState, text: str) -> list[int]:
        """Ids of a given caption: the first one of a story bare, later ones after [INST]."""
        tokenizer, config = self.engine.tokenizer, self.engine.config
        tokenizer.refuse_markup(text)
        later = row.turns and config.caption_instruction
        ids = list(tokenizer.next_turn(text.strip()) if later else tokenizer.first_turn(text.strip()))
        limit = config.max_text_tokens
        if len(ids) > limit:
            raise UserError(f"a caption of {len(ids)} tokens is longer than max_text_tokens={limit}: {text[:60]!r}")
        return ids

    def _text(self, ids: Sequence[int]) -> str:
        text = self.engine.tokenizer.decode(list(ids), skip_special=True).strip()
        return text.removeprefix(INSTRUCTION).strip()

    def _reserve(self, active: np.ndarray) -> None:
        """Refuses a turn that might not fit, before anything is computed."""
        first = [not row.turns for row in self.rows]
        needed = self._filled + self.engine.turn_tokens + np.array(first)
        for i in np.flatnonzero(active & (needed > self.slots)):
            self._hold_to_promise(int(i), int(needed[i]), "may fill")
            raise UserError(
                f"story {i} fills {self._filled[i]} of {self.slots} slots, and a turn may take "
                f"{self.engine.turn_tokens}: plan it for more than length={self.length} turns, "
                "or choose a policy that evicts (multimodal_sink with image_sink_cap has no end)"
            )

    def _hold_to_promise(self, row: int, slots: int, verb: str) -> None:
        """Raises UserError if a story within its planned length takes more slots than its policy said."""
        engine, turn = self.engine, len(self.rows[row].turns)
        promised = engine.policy.slot_count(self.length, engine.turn_tokens)
        if turn < self.length and slots > promised:
            raise UserError(
                f"policy {engine.policy_name} breaks its promise at turn {turn} of story {row}: it {verb} {slots} "
                f"slots, slot_count({self.length}, {int(engine.turn_tokens)}) said {promised}"
            )

    def _evict(self, ids: list[list[int]], features, active: np.ndarray) -> None:
        """Compacts the buffers as the policy says, which is held to what it promised."""
        engine = self.engine
        if engine.policy.score in scores.KEY_SCORES:
            self._state = scores.score_keys(engine.spec, self._state)
        elif engine.policy.score is not None:
            rows, count = self._text_rows(ids, active)
            decay = np.float32(getattr(engine.policy, "decay", 1.0))
            self._state = scores.score_attention(
                engine.spec, engine.parameters, self._state, rows, count, features, active, decay
            )
        if not any(row.turns for row in self.rows):  # its masks have one shape for good
            fault = fault_of_masks(engine.policy, self._state.buffer.metadata)
            if fault:
                raise UserError(f"policy {engine.policy_name} breaks its promise at turn 0: {fault}")
        self._state = decode.evict(engine.spec, *split_policy(engine.policy), self._state)

    def _prefill_text(self, ids: list[list[int]], active: np.ndarray) -> None:
        engine, (rows, count) = self.engine, self._text_rows(ids, active)
        self._state = decode.prefill_text(engine.spec, engine.parameters, self._state, rows, count)

    def _text_rows(self, ids: list[list[int]], active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(ids [b t] of given captions, `<s>` before the first of a story, and how many each row has)."""
        spec = self.engine.spec
        rows = np.zeros((len(ids), spec.max_text_tokens + 1), np.int32)
        count = np.zeros(len(ids), np.int32)
        for i in np.flatnonzero(active):
            text = ids[i] if self.rows[i].turns else [spec.tokens.bos, *ids[i]]
            rows[i, : len(text)] = text
            count[i] = len(text)
        return rows, count

    def _decode_text(self, active: np.ndarray) -> tuple[list[list[int]], np.ndarray]:
        config = self.engine.config
        sampling = None
        if config.temperature > 0:
            sampling = Sampling(np.float32(config.temperature), np.float32(config.top_p), self.seeds)
        self._state, tokens, count, outcome = decode.decode_text(
            self.engine.spec, self.engine.parameters, self._state, active, sampling
        )
        tokens, count, outcome = jax.device_get((tokens, count, outcome))
        return [row[:n].tolist() for row, n in zip(tokens, count)], outcome

    def _end_turn(self, clock, features, active, texts, ids, sources, calls) -> list[Turn | None]:
        """Appends the images, evicts, and records the turns."""
        engine, spec = self.engine, self.engine.spec
        recomputes = np.zeros_like(active)
        if engine.policy.recompute:
            recomputes = active & np.array([len(row.turns) >= engine.policy.window for row in self.rows])
        appends = active & ~recomputes
        if appends.any():
            self._state = decode.append_image(spec, engine.parameters, self._state, features, appends)
        features = np.asarray(features)
        if recomputes.any():
            windows = [
                self._window(row, ids[i], features[i]) if recomputes[i] else [] for i, row in enumerate(self.rows)
            ]
            arguments = window_recompute.window_chunk(spec.tokens, engine.policy.window, engine.turn_tokens, windows)
            self._state = window_recompute.recompute_window(spec, engine.parameters, self._state, *arguments)
        if not engine.policy.recompute:
            self._evict(ids, features, active)
            calls += engine.policy.score in scores.ATTENTION_SCORES
        before = self._slot_metadata
        self._slot_metadata, self._filled = jax.device_get((self._state.buffer.metadata, self._state.buffer.length))
        seconds = clock.seconds()
        for i in np.flatnonzero(active):
            self._hold_to_promise(int(i), int(self._filled[i]), "holds")
        results: list[Turn | None] = []
        for i, row in enumerate(self.rows):
            if not active[i]:
                results.append(None)
                continue
            slots = jax.tree.map(lambda column, i=i: column[i], before)
            spent = (seconds, calls, int(active.sum()))
            turn = Turn(len(row.turns), texts[i], tuple(ids[i]), sources[i], features[i], slots, *spent)
            row.turns.append(turn)
            results.append(turn)
            needed = engine.policy.window if engine.policy.recompute else 1
            if not engine.config.keep_features and len(row.turns) > needed:
                older = row.turns[-needed - 1]
                bare = older.predicted_image_features[:0].copy()  # a view would keep the whole
                row.turns[-needed - 1] = replace(older, predicted_image_features=bare)
        return results

    def _window(
        self, row: RowState, newest_ids: list[int], newest_features: np.ndarray
    ) -> list[window_recompute.WindowTurn]:
        """The window's turns, the newest included, as `window_recompute` prefills them again."""
        policy, tokens = self.engine.policy, self.engine.spec.tokens
        turns = [(one.tokens, one.predicted_image_features) for one in row.turns]
        turns.append((tuple(newest_ids), newest_features))
        lengths = [len(ids) + len(tokens.image) + 2 for ids, _ in turns]
        first = len(turns) - policy.window
        window = [
            window_recompute.WindowTurn(number, 1 + sum(lengths[:number]), *turns[number])
            for number in range(max(first, 0), len(turns))
        ]
        if policy.recompute_bos and first > 0:
            bare = self.engine.tokenizer.first_turn(row.turns[first].text)
            window[0] = replace(window[0], story_index=window[0].story_index - 1, ids=(tokens.bos, *bare))
        return window


class Story:
    """One story: iterate over its turns, or ask for the next one, set its caption, fork it."""

    def __init__(self, session: StorySession):
        self.session = session

    @property
    def turns(self) -> list[Turn]:
        """The turns so far."""
        return self.session.rows[0].turns

    @property
    def ending(self) -> str | None:
        """Why it ended: "end", "limit", or None while it goes on."""
        return self.session.rows[0].ending

    def next(self, caption: str | None = None) -> Turn | None:
        """The next turn (see `StorySession.next`), None if the story has ended."""
        return self.session.next([caption])[0]

    def append(self, text: str, image_features) -> Turn:
        """Appends a turn whose caption and image [q d] are both given."""
        return self.session.append([text], np.asarray(image_features)[None])[0]

    def set_caption(self, caption: str | None) -> None:
        """Sets the text of the next turn."""
        self.session.set_caption(0, caption)

    def fork(self, seed: int | None = None) -> "Story":
        """A branch from here; the buffer is copied, nothing is recomputed."""
        return Story(self.session.fork(None if seed is None else [seed]))

    def __iter__(self) -> Iterator[Turn]:
        """Turns to come, up to the planned length or the story's own end."""
        while len(self.turns) < self.session.length:
            turn = self.next()
            if turn is None:
                return
            yield turn


class _Clock:
    """Wall-clock seconds less those of compilation."""

    def __init__(self, engine: StoryEngine):
        self._compilations = engine.compilations
        self._compiled = engine.compilations.seconds
        self._start = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._start - (self._compilations.seconds - self._compiled)
