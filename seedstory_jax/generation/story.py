"""Tell stories: a sequence is one caption and one image; text first, pixels from its features whenever wanted.

    teller = StoryTeller(model, tokenizer, MultimodalSink(), TellingConfig(length=30))
    story = teller.start(image_features, "A monkey wakes up in the city.")
    for sequence in story:
        print(sequence.text)                    # sequence.predicted_image_features is what the de-tokenizer draws
    other = story.fork()                        # a branch, without reading anything again
    other.next(caption="The monkey flies a kite.")

`start` with lists tells many stories at once (`Stories`), each with the very words it has alone.
"""

import time
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace

import jax
import numpy as np
from jax.sharding import Mesh

from seedstory_jax.errors import UserError
from seedstory_jax.generation import decode, reread
from seedstory_jax.generation.compilations import Compilations
from seedstory_jax.generation.policies import MultimodalSink, Policy, policy_name, slot_count, split_policy
from seedstory_jax.generation.telling import Sequence, TellingConfig, Tokenizer
from seedstory_jax.models.parameters import take_apart
from seedstory_jax.models.story_mllm import StoryMLLM

INSTRUCTION = "[INST]"  # precedes every caption but the first


@dataclass
class Row:
    """What the host knows of one story of a batch."""

    sequences: list[Sequence] = field(default_factory=list)
    caption: str | None = None  # set for the next sequence
    ending: str | None = (
        None  # why it ended: "end" (</s>), "limit" (no <img>, and at_limit="stop") or the caller's word
    )
    last_words: str = ""  # text after the last image


class StoryTeller:
    """A story model, its tokenizer, a policy of remembering and a way of telling; compiled once for a batch size.

    Args:
        model: the story model; its arrays are used as they are (dtype, sharding).
        tokenizer: see `Tokenizer`.
        policy: what a story remembers.
        config: how it is told.
        mesh: (data, fsdp, tensor), to split stories and heads over devices; the model's arrays are to lie on it.
    """

    def __init__(
        self,
        model: StoryMLLM,
        tokenizer: Tokenizer,
        policy: Policy | None = None,
        config: TellingConfig | None = None,
        mesh: Mesh | None = None,
    ):
        self.tokenizer = tokenizer
        self.policy = MultimodalSink() if policy is None else policy
        self.config = TellingConfig() if config is None else config
        self.compilations = Compilations()
        blueprint, self.parameters = take_apart(model)
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
        self.shape = decode.Shape(
            blueprint=blueprint,
            config=model.config,
            tokens=tokens,
            positions=self.policy.positions,
            max_text_tokens=self.config.max_text_tokens,
            allow_end=self.config.allow_end,
            mesh=mesh,
        )

    @property
    def policy_name(self) -> str:
        """The policy's name in the table of policies."""
        return policy_name(self.policy)

    @property
    def sequence_tokens(self) -> int:
        """The most slots that one sequence takes: its text, `<img>`, the image, `</img>`."""
        return self.config.max_text_tokens + self.shape.config.num_image_tokens + 2

    def slots(self, length: int | None = None) -> int:
        """Slots of a story planned for `length` sequences."""
        return slot_count(self.policy, length or self.config.length, self.sequence_tokens)

    def start(self, image_features, text, *, length: int | None = None, seed: int | SequenceOf[int] | None = None):
        """Reads the first sequence of one story, or of many.

        Args:
            image_features: [q d] for one story, [b q d] for many.
            text: the first caption: a string (gives a `Story`), or a list of b of them (gives `Stories`).
            length: sequences planned, if other than the config's.
            seed: of the noise in sampling, one for each story.

        Raises UserError for a text that is too long or features of another shape.
        """
        single = isinstance(text, str)
        texts = [text] if single else list(text)
        features = np.asarray(image_features, np.float32)
        features = features[None] if single else features
        base = self.config.seed if seed is None else seed
        seeds = [base] if single else (list(base) if isinstance(base, SequenceOf) else range(base, base + len(texts)))
        stories = Stories(self, len(texts), length or self.config.length, seeds)
        stories.read(texts, features)
        return Story(stories) if single else stories


class Stories:
    """A batch of stories told together; each row goes its own way, and one that has ended costs a masked row."""

    def __init__(self, teller: StoryTeller, batch: int, length: int, seeds: SequenceOf[int]):
        self.teller = teller
        self.length = length
        self.rows = [Row() for _ in range(batch)]
        self.slots = teller.slots(length)
        self.seeds = np.asarray(seeds, np.uint32)
        dtype = teller.config.buffer_dtype or teller.shape.config.llama.dtype
        self._telling = decode.begin(teller.shape, batch, self.slots, dtype)
        self._filled = np.zeros(batch, np.int32)  # slots in use, as the host knows it
        self._facts = jax.device_get(self._telling.buffer.facts)

    @property
    def active(self) -> np.ndarray:
        """bool [b]: the stories that go on."""
        return np.array([row.ending is None for row in self.rows])

    def read(self, texts: SequenceOf[str], image_features) -> list[Sequence | None]:
        """Appends a sequence whose caption and image [b q d] are both given, to the stories that go on."""
        teller, config = self.teller, self.teller.shape.config
        features = np.asarray(image_features, np.float32)
        shape = (len(self.rows), config.output_resampler.grid_size**2, config.input_resampler.kv_dim)
        if len(texts) != len(self.rows) or features.ndim != 3 or features.shape[::2] != shape[::2]:
            raise UserError(
                f"{len(texts)} texts and image features of shape {features.shape} for {len(self.rows)} stories; "
                f"expected features of shape {shape}"
            )
        active = self.active
        ids = [self._encode(row, text) if goes_on else [] for row, text, goes_on in zip(self.rows, texts, active)]
        self._reserve(active)
        clock = _Clock(teller)
        self._read_text(ids, active)
        texts = [text.strip() for text in texts]
        return self._finish(clock, features, active, texts, ids, ["prompt"] * len(ids), calls=2)

    def end(self, row: int, why: str) -> None:
        """Ends story `row` here; what is masked from now on costs the others nothing."""
        self.rows[row].ending = self.rows[row].ending or why

    def next(self, captions: SequenceOf[str | None] | None = None) -> list[Sequence | None]:
        """The next sequence of every story: None for those that have ended.

        `captions[b]` (or `set_caption`) gives a story's text; where there is none, the model writes it. Raises
        UserError, before anything is written, if a sequence might not fit the buffer or a caption is too long.
        """
        teller, config = self.teller, self.teller.config
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

        clock, calls = _Clock(teller), 0
        draws = given.copy()
        if given.any():
            self._read_text(ids, given)
            calls += 1
        writes = active & ~given
        if writes.any():
            written, outcome = self._write_text(writes)
            calls += max(len(tokens) for tokens in written)
            for i in np.flatnonzero(writes):
                ids[i] = written[i]
                stops = outcome[i] == decode.END or (outcome[i] == decode.LIMIT and config.at_limit == "stop")
                if stops:
                    self.rows[i].ending = "end" if outcome[i] == decode.END else "limit"
                    self.rows[i].last_words = self._text(ids[i])
                draws[i] = not stops
        if not draws.any():
            return [None] * len(self.rows)
        self._telling, features = decode.draw_image(teller.shape, teller.parameters, self._telling, draws)
        texts = [caption.strip() if had else self._text(row) for caption, had, row in zip(captions, given, ids)]
        sources = ["caption" if had else "generated" for had in given]
        for row in self.rows:
            row.caption = None
        return self._finish(clock, features, draws, texts, ids, sources, calls=calls + 2)

    def set_caption(self, row: int, caption: str | None) -> None:
        """What the next sequence of story `row` shall say; None lets the model write it."""
        self.rows[row].caption = caption

    def fork(self, seeds: SequenceOf[int] | None = None) -> "Stories":
        """A second telling that goes on from here by itself; nothing is read again, the buffer is copied."""
        branch = object.__new__(Stories)
        branch.__dict__.update(self.__dict__)
        branch.rows = [replace(row, sequences=list(row.sequences)) for row in self.rows]
        branch.seeds = self.seeds if seeds is None else np.asarray(seeds, np.uint32)
        branch._telling = decode.copy(self._telling)
        branch._filled = self._filled.copy()
        return branch

    def _encode(self, row: Row, text: str) -> list[int]:
        """Ids of a given caption: the first one of a story bare, later ones after [INST]."""
        tokenizer, config = self.teller.tokenizer, self.teller.config
        tokenizer.refuse_markup(text)
        later = row.sequences and config.caption_instruction
        ids = list(tokenizer.next_turn(text.strip()) if later else tokenizer.first_turn(text.strip()))
        limit = config.max_text_tokens
        if len(ids) > limit:
            raise UserError(f"a caption of {len(ids)} tokens is longer than max_text_tokens={limit}: {text[:60]!r}")
        return ids

    def _text(self, ids: SequenceOf[int]) -> str:
        text = self.teller.tokenizer.decode(list(ids), skip_special=True).strip()
        return text.removeprefix(INSTRUCTION).strip()

    def _reserve(self, active: np.ndarray) -> None:
        """Refuses a sequence that might not fit, before anything is written."""
        first = [not row.sequences for row in self.rows]
        needed = self._filled + self.teller.sequence_tokens + np.array(first)
        for i in np.flatnonzero(active & (needed > self.slots)):
            raise UserError(
                f"story {i} fills {self._filled[i]} of {self.slots} slots, and a sequence may take "
                f"{self.teller.sequence_tokens}: plan it for more than length={self.length} sequences, "
                "or choose a policy that forgets (multimodal_sink with image_sink_cap has no end)"
            )

    def _read_text(self, ids: list[list[int]], reads: np.ndarray) -> None:
        shape = self.teller.shape
        rows = np.zeros((len(ids), shape.max_text_tokens + 1), np.int32)
        count = np.zeros(len(ids), np.int32)
        for i in np.flatnonzero(reads):
            text = ids[i] if self.rows[i].sequences else [shape.tokens.bos, *ids[i]]
            rows[i, : len(text)] = text
            count[i] = len(text)
        self._telling = decode.read_text(shape, self.teller.parameters, self._telling, rows, count)

    def _write_text(self, writes: np.ndarray) -> tuple[list[list[int]], np.ndarray]:
        config = self.teller.config
        sampling = decode.Sampling(np.float32(config.temperature), np.float32(config.top_p), self.seeds)
        self._telling, tokens, count, outcome = decode.write_text(
            self.teller.shape, self.teller.parameters, self._telling, writes, sampling
        )
        tokens, count, outcome = jax.device_get((tokens, count, outcome))
        return [row[:n].tolist() for row, n in zip(tokens, count)], outcome

    def _finish(self, clock, features, draws, texts, ids, sources, calls) -> list[Sequence | None]:
        """Re-reads the images, forgets what the policy lets go, and writes down what was told."""
        teller, shape = self.teller, self.teller.shape
        evicts = np.zeros_like(draws)
        if teller.policy.recompute:
            evicts = draws & np.array([len(row.sequences) >= teller.policy.window for row in self.rows])
        reads = draws & ~evicts
        if reads.any():
            self._telling = decode.read_image(shape, teller.parameters, self._telling, features, reads)
        features = np.asarray(features)
        if evicts.any():
            told = [self._window(row, ids[i], features[i]) if evicts[i] else [] for i, row in enumerate(self.rows)]
            arguments = reread.window_rows(shape.tokens, teller.policy.window, teller.sequence_tokens, told)
            self._telling = reread.read_again(shape, teller.parameters, self._telling, *arguments)
        if not teller.policy.recompute:
            self._telling = decode.forget(shape, *split_policy(teller.policy), self._telling)
        facts = self._facts
        self._facts, self._filled = jax.device_get((self._telling.buffer.facts, self._telling.buffer.length))
        seconds = clock.seconds()
        results: list[Sequence | None] = []
        for i, row in enumerate(self.rows):
            if not draws[i]:
                results.append(None)
                continue
            slots = jax.tree.map(lambda fact, i=i: fact[i], facts)
            spent = (seconds, calls, int(draws.sum()))
            one = Sequence(len(row.sequences), texts[i], tuple(ids[i]), sources[i], features[i], slots, *spent)
            row.sequences.append(one)
            results.append(one)
            read_again = teller.policy.window if teller.policy.recompute else 1
            if not teller.config.keep_features and len(row.sequences) > read_again:
                older = row.sequences[-read_again - 1]
                bare = older.predicted_image_features[:0].copy()  # a view would keep the whole
                row.sequences[-read_again - 1] = replace(older, predicted_image_features=bare)
        return results

    def _window(self, row: Row, newest_ids: list[int], newest_features: np.ndarray) -> list[reread.Told]:
        """The newest sequences, the one just drawn included, as `window_recompute` reads them again."""
        policy, tokens = self.teller.policy, self.teller.shape.tokens
        told = [(one.tokens, one.predicted_image_features) for one in row.sequences]
        told.append((tuple(newest_ids), newest_features))
        lengths = [len(ids) + len(tokens.image) + 2 for ids, _ in told]
        first = len(told) - policy.window
        window = [
            reread.Told(frame, 1 + sum(lengths[:frame]), *told[frame]) for frame in range(max(first, 0), len(told))
        ]
        if policy.recompute_bos and first > 0:
            bare = self.teller.tokenizer.first_turn(row.sequences[first].text)
            window[0] = replace(window[0], index=window[0].index - 1, ids=(tokens.bos, *bare))
        return window


class Story:
    """One story: iterate over its sequences, or ask for the next one, change its caption, fork it."""

    def __init__(self, stories: Stories):
        self.stories = stories

    @property
    def sequences(self) -> list[Sequence]:
        """What is told so far."""
        return self.stories.rows[0].sequences

    @property
    def ending(self) -> str | None:
        """Why it ended: "end", "limit", or None while it goes on."""
        return self.stories.rows[0].ending

    def next(self, caption: str | None = None) -> Sequence | None:
        """The next sequence (see `Stories.next`), None if the story has ended."""
        return self.stories.next([caption])[0]

    def read(self, text: str, image_features) -> Sequence:
        """Appends a sequence whose caption and image [q d] are both given."""
        return self.stories.read([text], np.asarray(image_features)[None])[0]

    def set_caption(self, caption: str | None) -> None:
        """What the next sequence shall say."""
        self.stories.set_caption(0, caption)

    def fork(self, seed: int | None = None) -> "Story":
        """A branch from here; the buffer is copied, nothing is read again."""
        return Story(self.stories.fork(None if seed is None else [seed]))

    def __iter__(self) -> Iterator[Sequence]:
        """Sequences to come, up to the planned length or the story's own end."""
        while len(self.sequences) < self.stories.length:
            sequence = self.next()
            if sequence is None:
                return
            yield sequence


class _Clock:
    """Wall-clock seconds less those of compilation."""

    def __init__(self, teller: StoryTeller):
        self._compilations = teller.compilations
        self._compiled = teller.compilations.seconds
        self._start = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._start - (self._compilations.seconds - self._compiled)
