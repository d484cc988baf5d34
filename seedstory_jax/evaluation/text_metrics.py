"""Repetition and diversity of a story's text, and how much of it is copied from the prompt. Words, no model."""

import re
from collections import Counter
from collections.abc import Sequence


def words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower())  # noqa: RUF001 (both apostrophes are meant)


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n words."""
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Distinct-n (Li et al. 2016): different n-grams over all n-grams; 1 = nothing twice. None without n-grams.

    n-grams do not cross captions.
    """
    grams = [gram for text in texts for gram in ngrams(words(text), n)]
    return len(set(grams)) / len(grams) if grams else None


def repetition(texts: Sequence[str], n: int = 4) -> list[float | None]:
    """Per caption, the share of its n-grams that the captions before it (or itself, earlier) have already said."""
    seen: set[tuple[str, ...]] = set()
    shares: list[float | None] = []
    for text in texts:
        grams, repeated = ngrams(words(text), n), 0
        for gram in grams:
            repeated += gram in seen
            seen.add(gram)
        shares.append(repeated / len(grams) if grams else None)
    return shares


def says_the_same(texts: Sequence[str]) -> list[bool]:
    """Per caption, whether it says word for word what an earlier one said."""
    seen: set[tuple[str, ...]] = set()
    same = []
    for text in texts:
        key = tuple(words(text))
        same.append(key in seen)
        seen.add(key)
    return same


def copied_share(text: str, source: str, shortest: int = 4) -> float | None:
    """Share of the words of `text` inside runs of at least `shortest` words that also stand in `source`.

    None for a text without words.
    """
    tokens = words(text)
    if not tokens:
        return None
    known = Counter(ngrams(words(source), shortest))
    copied = [False] * len(tokens)
    for start, gram in enumerate(ngrams(tokens, shortest)):
        if gram in known:
            copied[start : start + shortest] = [True] * shortest
    return sum(copied) / len(tokens)
