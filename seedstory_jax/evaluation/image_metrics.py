"""Consistency of a story's pictures: the same character, the same style; no trained judge, so read them as signs."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8


def cosine(a: Float[np.ndarray, "*n d"], b: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n"]:
    """Cosine over the last axis; 0 where a vector is 0."""
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.where(norms > 0, (a * b).sum(-1) / np.where(norms > 0, norms, 1.0), 0.0)


def best_match(new: Float[np.ndarray, "q d"], old: Float[np.ndarray, "p d"]) -> float:
    """Mean over the new picture's features of the cosine to the nearest feature of the old ones.

    What the new picture shows is found again, wherever it stood: a figure that moved still matches itself. This is
    how character consistency is measured: features are taken less their mean over all pictures (see
    `character_consistency`), so that what all pictures share does not count.
    """
    new = new / np.maximum(np.linalg.norm(new, axis=-1, keepdims=True), 1e-12)
    old = old / np.maximum(np.linalg.norm(old, axis=-1, keepdims=True), 1e-12)
    return float((new @ old.T).max(-1).mean())


def character_consistency(
    features: Float[np.ndarray, "i q d"], mean: Float[np.ndarray, "d"] | None = None
) -> list[float | None]:
    """Per picture, `best_match` of its image features with the picture before; None for the first."""
    centred = features - (features.mean((0, 1)) if mean is None else mean)
    return [None, *(best_match(centred[i], centred[i - 1]) for i in range(1, len(features)))]


def likeness_to_first(
    features: Float[np.ndarray, "i q d"], mean: Float[np.ndarray, "d"] | None = None
) -> list[float | None]:
    """Per picture, `best_match` with the story's first picture; None for that one itself."""
    centred = features - (features.mean((0, 1)) if mean is None else mean)
    return [None, *(best_match(centred[i], centred[0]) for i in range(1, len(features)))]


def pretrained_columns(name: str, encoded: Float[np.ndarray, "i *qd"]) -> dict[str, list[float | None]]:
    """What a pretrained network says of a story's pictures, by column; None for the first picture.

    `encoded` is a vector a picture [i d], or [i 1+q d] with the vectors of its q parts behind it. `<name>_to_first` is
    the cosine with the first picture, `<name>_to_before` its mean with all before; with parts,
    `<name>_character_consistency` and `<name>_likeness_to_first` are `character_consistency` and `likeness_to_first`.
    """
    whole = encoded if encoded.ndim == 2 else encoded[:, 0]
    turns = range(1, len(whole))
    columns: dict[str, list[float | None]] = {
        f"{name}_to_first": [None, *(float(cosine(whole[i], whole[0])) for i in turns)],
        f"{name}_to_before": [None, *(float(cosine(whole[:i], whole[[i] * i]).mean()) for i in turns)],
    }
    if encoded.ndim == 3:
        columns[f"{name}_character_consistency"] = character_consistency(encoded[:, 1:])
        columns[f"{name}_likeness_to_first"] = likeness_to_first(encoded[:, 1:])
    return columns


def style(picture: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "d"]:
    """Colours and texture of a picture: a 4 x 4 x 4 colour histogram and one of edge strengths, each of sum 1."""
    bins = (picture // 64).reshape(-1, 3).astype(int)
    colours = np.bincount(bins @ np.array([16, 4, 1]), minlength=64) / len(bins)
    grey = picture.astype(np.float32).mean(-1)
    edges = np.concatenate([np.abs(np.diff(grey, axis=0)).ravel(), np.abs(np.diff(grey, axis=1)).ravel()])
    counts, _ = np.histogram(edges, bins=(0, 2, 8, 24, 64, 256))
    return np.concatenate([colours, counts / max(len(edges), 1)])


def style_consistency(pictures: Sequence[np.ndarray]) -> list[float | None]:
    """Per picture, the overlap (0..1) of its style with the mean style of those before it; None for the first."""
    styles = [style(picture) for picture in pictures]
    found: list[float | None] = [None] * min(1, len(styles))
    for i in range(1, len(styles)):
        found.append(float(np.minimum(styles[i], np.mean(styles[:i], 0)).sum() / 2))
    return found


def copied_picture(
    picture: UInt8[np.ndarray, "h w 3"], prompt: UInt8[np.ndarray, "h2 w2 3"], threshold: float = 4.0
) -> bool:
    """Whether a picture is the prompt's over again: mean absolute difference below `threshold` grey levels of 255.

    Pictures of other sizes are compared at the smaller one.
    """
    from PIL import Image

    side = (min(picture.shape[1], prompt.shape[1]), min(picture.shape[0], prompt.shape[0]))
    a, b = (np.asarray(Image.fromarray(x).resize(side, Image.Resampling.BOX), np.float32) for x in (picture, prompt))
    return bool(np.abs(a - b).mean() < threshold)
