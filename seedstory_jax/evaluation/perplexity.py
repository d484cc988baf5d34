"""Perplexity of captions by SmolLM2-135M, a language model that installs from PyPI (`convert.smollm2`).

It measures fluency and coherence of text. It favours stories of models that grew from it, as SEED-Story small did.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from seedstory_jax.convert.smollm2 import load_llama
from seedstory_jax.models.llama import causal_mask

CONTEXT = 1024  # tokens read at once: the caption and as many of the captions before it as fit
SEPARATOR = "\n"  # after each caption; what it costs counts nowhere


class Perplexity:
    """Captions of a story -> the perplexity of each given those before it: exp of the mean loss of its tokens."""

    def __init__(self, context: int = CONTEXT) -> None:
        """`context` tokens are read at once. Raises UserError if SmolLM2 is not installed."""
        self.llama, self.tokenizer = load_llama()
        self.context = context

    def __call__(self, texts: Sequence[str]) -> list[float | None]:
        """None for a caption without words. Of one longer than the context the end is left out."""
        captions = [self.tokenizer.encode(text) for text in texts]
        captions = [ids[: self.context - 2] for ids in captions]
        between = self.tokenizer.encode(SEPARATOR)
        values: list[float | None] = [None] * len(captions)
        for first, scored, end in rows(list(map(len, captions)), self.context - 1, len(between)):
            ids = [self.tokenizer.bos]
            spans = {}
            for number in range(first, end):
                spans[number] = slice(len(ids), len(ids) + len(captions[number]))
                ids += captions[number] + between
            ids = ids[: self.context]  # the last separator may be one too many
            losses = np.asarray(_losses(self.llama, jnp.asarray([ids + [0] * (self.context - len(ids))])))[0]
            for number in range(scored, end):
                if captions[number]:
                    values[number] = float(np.exp(losses[spans[number]].mean()))
        return values


def rows(lengths: Sequence[int], room: int, between: int) -> list[tuple[int, int, int]]:
    """(first caption read, first one scored, end) of every row of at most `room` tokens.

    A row begins far enough back that what is scored has at least half a row before it, where the story has as much.
    """
    made, scored = [], 0
    while scored < len(lengths):
        first, held = scored, lengths[scored]
        while first and held + lengths[first - 1] + between <= room // 2:
            first -= 1
            held += lengths[first] + between
        end = scored + 1
        while end < len(lengths) and held + between + lengths[end] <= room:
            held += between + lengths[end]
            end += 1
        made.append((first, scored, end))
        scored = end
    return made


@jax.jit
def _losses(llama, ids):
    """Negative log-likelihood [b t] in nats of every token given those before it; 0 for the first."""
    positions = jnp.arange(ids.shape[1])[None]
    hidden = llama(llama.embed(ids), positions, causal_mask(jnp.ones(ids.shape, bool)))
    likely = jax.nn.log_softmax(llama.logits(hidden)[:, :-1])
    told = jnp.take_along_axis(likely, ids[:, 1:, None], axis=-1)[..., 0]
    return jnp.pad(-told, ((0, 0), (1, 0)))
