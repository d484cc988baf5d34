"""All measures of some systems' stories at once: records frame by frame, and figures a system.

Which measures there are depends on what is at hand (pictures, the ViT, CLIP, Inception, true pictures to compare with);
what is missing is left out, and never replaced under another's name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from seedstory_jax.evaluation.bootstrap import Interval, bootstrap_mean, jackknife
from seedstory_jax.evaluation.frechet import frechet_distance, inception_fid
from seedstory_jax.evaluation.image_metrics import (
    character_consistency,
    copied_picture,
    likeness_to_first,
    pretrained_columns,
    style_consistency,
)
from seedstory_jax.evaluation.policy_table import records_of
from seedstory_jax.evaluation.stories import StoryFolder
from seedstory_jax.evaluation.text_metrics import copied_share, distinct, repetition, says_the_same
from seedstory_jax.toy.probe import score_stories

Encode = Callable[[Sequence[np.ndarray]], np.ndarray]
"""Pictures uint8 [h w 3] -> image features float [n q d]."""


@dataclass(frozen=True)
class Tools:
    """What stories are measured with.

    Attributes:
        encode: the ViT's image features; None leaves out consistency of characters and the Fréchet distance.
        clip: (pictures, texts) -> scores; None leaves out the CLIP score.
        inception: a weights file; None leaves out FID.
        encoders: pretrained networks by name (see `pretrained`); each makes two columns, and one that sees parts of a
            picture two more.
        aesthetic: pictures -> scores; None leaves out the aesthetic score.
        perplexity: captions of a story -> the perplexity of each; None leaves it out.
        probe: the toy world's own judge: True, False, or None to use it where the first captions are the toy's.
    """

    encode: Encode | None = None
    clip: Callable[[Sequence[np.ndarray], Sequence[str]], Sequence[float]] | None = None
    inception: Path | None = None
    encoders: Mapping[str, Encode] = field(default_factory=dict)
    aesthetic: Callable[[Sequence[np.ndarray]], Sequence[float]] | None = None
    perplexity: Callable[[Sequence[str]], Sequence[float | None]] | None = None
    probe: bool | None = None


@dataclass
class Measurement:
    """`records`: a dict a frame (see `policy_table`), the system under "policy"; `figures`: by system and name."""

    records: list[dict] = field(default_factory=list)
    figures: dict[str, dict[str, Interval]] = field(default_factory=dict)


def measure(
    systems: Mapping[str, Sequence[StoryFolder]],
    tools: Tools = Tools(),
    *,
    reference: Sequence[StoryFolder] = (),
    progress: Callable[[str, str], None] = lambda system, story: None,
) -> Measurement:
    """Measures every system's stories; `reference` are true stories, for the Fréchet distances.

    The first frame of a story is its prompt: it is compared with, and counts in no figure; neither do further turns
    that were given.
    Raises UserError for pictures that cannot be read, and for libraries or weights that are missing.
    """
    found = Measurement()
    pooled: dict[str, list[np.ndarray]] = {}
    drawn: dict[str, list[np.ndarray]] = {}
    told: list[tuple[str, StoryFolder, list[dict], tuple | None]] = []  # with its records and what the probe judges
    for system, stories in systems.items():
        for story in stories:
            pictures = story.pictures()
            rows, features = _frames(story, pictures, tools)
            judged = tools.probe or (tools.probe is None and _is_toy(story.texts[0]))
            told.append((system, story, rows, (list(story.texts), pictures) if judged else None))
            if features is not None and len(features) > story.given:
                pooled.setdefault(system, []).append(features[story.given :].mean(1))
            if tools.inception is not None and pictures is not None:
                drawn.setdefault(system, []).extend(pictures[story.given :])
        found.figures[system] = _text_figures(stories)
    scores = score_stories([judged for *_, judged in told if judged])
    for system, story, rows, judged in told:
        progress(system, story.name)
        if judged:
            for row, score in zip(rows, next(scores), strict=True):
                row |= asdict(score)
        rows[1 : story.given] = [dict.fromkeys(row) for row in rows[1 : story.given]]
        found.records += records_of(system, story.name, rows)
    true = [pictures[1:] for story in reference if (pictures := story.pictures()) is not None]
    if true and tools.encode is not None:
        true_features = np.concatenate([tools.encode(pictures).mean(1) for pictures in true if pictures])
        for system, groups in pooled.items():
            found.figures[system]["frechet_vit"] = _frechet(groups, true_features)
    if true and tools.inception is not None:
        every = [picture for pictures in true for picture in pictures]
        for system, pictures in drawn.items():
            fid = inception_fid(every, pictures, tools.inception)
            found.figures[system]["fid"] = Interval(fid, None, None, len(pictures))
    return found


def _frames(story: StoryFolder, pictures, tools: Tools) -> tuple[list[dict], np.ndarray | None]:
    """A story's records without their keys, and its image features where there are any."""
    prompt = story.texts[0]
    texts = zip(repetition(story.texts), says_the_same(story.texts), strict=True)
    rows: list[dict] = [
        {"repeated": repeated, "said_before": same, "copied_text": copied_share(text, prompt)}
        for text, (repeated, same) in zip(story.texts, texts, strict=True)
    ]
    columns: dict[str, list] = {}
    if tools.perplexity is not None:
        columns["perplexity"] = list(tools.perplexity(story.texts))
    features = None
    if pictures is not None:
        columns["style_consistency"] = style_consistency(pictures)
        columns["copied_picture"] = [None, *(copied_picture(picture, pictures[0]) for picture in pictures[1:])]
        if tools.encode is not None:
            features = np.asarray(tools.encode(pictures), np.float64)
            columns["character_consistency"] = character_consistency(features)
            columns["likeness_to_first"] = likeness_to_first(features)
        for name, encode in tools.encoders.items():
            columns |= pretrained_columns(name, np.asarray(encode(pictures), np.float64))
        if tools.aesthetic is not None:
            columns["aesthetic_score"] = [float(score) for score in tools.aesthetic(pictures)]
        if tools.clip is not None:
            columns["clip_score"] = list(tools.clip(pictures, story.texts))
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return rows, features


def _is_toy(caption: str) -> bool:
    from seedstory_jax.toy.world import parse_caption

    return parse_caption(caption) is not None


def _text_figures(stories: Sequence[StoryFolder]) -> dict[str, Interval]:
    return {
        f"distinct_{n}": bootstrap_mean({story.name: [distinct(story.texts[story.given :], n)] for story in stories})
        for n in (1, 2)
    } | {"length": bootstrap_mean({story.name: [len(story)] for story in stories})}


def _frechet(groups: Sequence[np.ndarray], true: np.ndarray) -> Interval:
    def distance(picked: Sequence[np.ndarray]) -> float:
        return frechet_distance(np.concatenate(list(picked)), true)

    count = sum(map(len, groups))
    if count - max(map(len, groups), default=0) < 2 or len(true) < 2:  # nothing is left when one story is left out
        return Interval(distance(groups) if count > 1 and len(true) > 1 else None, None, None, count)
    found = jackknife(groups, distance)
    return Interval(found.mean, None if found.low is None else max(found.low, 0.0), found.high, count)
