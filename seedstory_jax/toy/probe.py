"""The toy world's own judge: does a picture show what its caption says?

Everything in the world has one place, so each question compares a place with the few things that could be there
(nobody, each character in each pose, ...) and takes the nearest. Both sides are blurred a little first, so that soft
pictures are judged by what they show and not by their edges. True pictures score 1 on everything.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context

import numpy as np
from PIL import Image, ImageFilter

from seedstory_jax.toy.sprites import COLUMNS, SPRITE_WIDTH, TREASURE_PLACE, prop
from seedstory_jax.toy.world import (
    CASTS,
    COLORS,
    POSES,
    PROPS,
    SCENES,
    SIZE,
    TREASURES,
    FrameFacts,
    draw,
    parse_caption,
)

SHARED_OUT = 40  # drawn stories from which on more processes judge sooner than one, their start included
Box = tuple[int, int, int, int]  # x0, y0, x1, y1


@dataclass(frozen=True)
class FrameScore:
    """One frame. None: the question does not arise (no prop named, no frame before, text only ...).

    A caption that is not well formed names nothing, so its scene and characters count as missed.
    """

    well_formed: bool
    scene: bool | None = None
    characters: float | None = None  # share of the named characters that are shown at their places
    all_characters: bool | None = None
    poses: float | None = None  # share of the named characters that are shown as they are said to be
    extra: int | None = None  # characters shown that the caption does not name
    props: float | None = None  # share of the named props that are shown
    treasure: bool | None = None  # the treasure that the caption names is shown
    cast_kept: float | None = None  # share of the frame before's characters that this caption still names
    persistence: bool | None = None  # whom both captions name is shown in both pictures
    opening_named: bool | None = None  # a later caption that names a treasure names the opening's
    opening_shown: bool | None = None  # and its picture shows the opening's


@dataclass(frozen=True)
class Shown:
    """What a picture shows, read with its caption's facts as the surroundings."""

    scene: str
    characters: dict[int, tuple[str, str] | None]  # column -> (name, pose) or nobody
    props: tuple[str, ...]
    treasure: tuple[str, str] | None


def to_world_size(picture: np.ndarray) -> np.ndarray:
    """A picture uint8[H W 3] of any size as uint8[64 64 3]."""
    if picture.shape[:2] == (SIZE, SIZE):
        return picture
    return np.asarray(Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.BOX))


def _soft(picture: np.ndarray, box: Box) -> np.ndarray:
    """The box of a picture, each pixel the mean of its 3 x 3 neighbours, int32[h w 3]."""
    image = Image.fromarray(picture).crop(box).filter(ImageFilter.BoxBlur(1))
    return np.asarray(image).astype(np.int32)


@dataclass(frozen=True)
class Choice:
    """What could be in a box, softened: keys, pictures uint8[n h w 3], and bool[h w] where these differ."""

    keys: tuple
    pictures: np.ndarray
    where: np.ndarray
    box: Box

    def nearest(self, picture: np.ndarray):
        """The key of what is nearest to a picture."""
        difference = self.pictures[:, self.where].astype(np.int32) - _soft(picture, self.box)[self.where]
        return self.keys[int((difference**2).sum((1, 2)).argmin())]


def _choice(candidates: Mapping, box: Box, threshold: int = 8) -> Choice:
    """A choice between whole pictures, told apart there where any of them differ by more than the threshold."""
    soft = np.stack([_soft(candidate, box) for candidate in candidates.values()])
    return Choice(tuple(candidates), soft.astype(np.uint8), np.ptp(soft, axis=0).max(-1) > threshold, box)


@lru_cache(maxsize=2048)  # stories come back to what they showed, and other policies' stories show it too: 60 KB each
def _who(
    series: str,
    column: int,
    scene: str,
    others: tuple[tuple[int, tuple[str, str]], ...],
    props: tuple[str, ...],
    treasure: tuple[str, str] | None,
) -> Choice:
    """Who could stand in a column, the rest of the picture being as said: nobody, or anyone in any pose."""
    cast = CASTS[series]
    candidates: dict = {None: draw(scene, dict(others), props, treasure)}
    for name in cast:
        for pose in POSES:
            candidates[name, pose] = draw(scene, {**dict(others), column: (name, pose)}, props, treasure)
    left = COLUMNS[column] - SPRITE_WIDTH // 2
    choice = _choice(candidates, (max(left, 0), 10, min(left + SPRITE_WIDTH, SIZE), 60))
    own = [choice.keys.index((cast[column], pose)) for pose in POSES]
    apart = np.abs(choice.pictures[own].astype(np.int32) - choice.pictures[0])
    return replace(choice, where=apart.max((0, -1)) > 8)


def _character_at(picture: np.ndarray, facts: FrameFacts, scene: str, column: int) -> tuple[str, str] | None:
    others = tuple((place, who) for place, who in sorted(facts.places.items()) if place != column)
    return _who(facts.series, column, scene, others, tuple(facts.props), facts.treasure).nearest(picture)


def look(picture: np.ndarray, facts: FrameFacts, found: tuple[str, str] | None = None) -> Shown:
    """What a picture uint8[H W 3] shows; `found` is a treasure to look for although the caption names none."""
    picture = to_world_size(picture)
    whole = (0, 0, SIZE, SIZE)
    scenes = {name: draw(name, facts.places, facts.props, facts.treasure) for name in SCENES}
    scene = _choice(scenes, whole, threshold=1).nearest(picture)
    props = []
    for name in PROPS:
        others = tuple(other for other in facts.props if other != name)
        sprite, x, y = prop(name)
        box = (x, y, min(x + sprite.shape[1], SIZE), min(y + sprite.shape[0], SIZE))
        candidates = {
            there: draw(scene, facts.places, (*others, name) if there else others, facts.treasure)
            for there in (True, False)
        }
        if _choice(candidates, box).nearest(picture):
            props.append(name)
    treasure = None
    if facts.treasure or found:
        x, y = TREASURE_PLACE
        candidates = {None: draw(scene, facts.places, facts.props)}
        for color in COLORS:
            for kind in TREASURES:
                candidates[color, kind] = draw(scene, facts.places, facts.props, (color, kind))
        treasure = _choice(candidates, (x, y, x + 16, y + 16)).nearest(picture)
    columns = {column: _character_at(picture, facts, scene, column) for column in range(len(COLUMNS))}
    return Shown(scene, columns, tuple(props), treasure)


def score_story(
    captions: Sequence[str],
    pictures: Sequence[np.ndarray] | None = None,
    *,
    opening: tuple[str, str] | None = None,
) -> list[FrameScore]:
    """Judge a story's frames, beginning with its prompt; pictures uint8[H W 3] each, or None for text only.

    opening: the treasure that the story began with; taken from the first caption where it is left out.
    """
    scores = []
    before: tuple[FrameFacts, Shown | None] | None = None
    for number, caption in enumerate(captions):
        facts = parse_caption(caption)
        if facts is None:
            missed = None if pictures is None else False
            scores.append(
                FrameScore(False, scene=missed, characters=None if missed is None else 0.0, all_characters=missed)
            )
            before = None
            continue
        if number == 0 and opening is None:
            opening = facts.treasure
        shown = None if pictures is None else look(np.asarray(pictures[number]), facts)
        late = number > 0 and facts.treasure is not None and opening is not None
        named: dict = {"cast_kept": _share(name in facts.names for name in before[0].names) if before else None}
        if late:
            named["opening_named"] = facts.treasure == opening
        if shown is not None:
            named |= _judge_picture(facts, shown, before)
            if late:
                named["opening_shown"] = shown.treasure == opening
        scores.append(FrameScore(True, **named))
        before = facts, shown
    return scores


def score_stories(
    stories: Sequence[tuple[Sequence[str], Sequence[np.ndarray] | None]],
) -> Iterator[list[FrameScore]]:
    """`score_story` of each story's captions and pictures, in their order; many pictures are judged on all cores.

    These are new processes (`SHARED_OUT`), so a script that comes here keeps its own work under `__main__`.
    """
    drawn = sum(pictures is not None for _, pictures in stories)
    if drawn < SHARED_OUT or (os.cpu_count() or 1) == 1:
        yield from (score_story(*story) for story in stories)
        return
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        yield from pool.map(score_story, *zip(*stories), chunksize=4)


def _is_there(facts: FrameFacts, shown: Shown, name: str) -> bool:
    who = shown.characters[CASTS[facts.series].index(name)]
    return who is not None and who[0] == name


def _judge_picture(facts: FrameFacts, shown: Shown, before: tuple[FrameFacts, Shown | None] | None) -> dict:
    there = [_is_there(facts, shown, name) for name in facts.names]
    judged: dict = {
        "scene": shown.scene == facts.scene,
        "characters": _share(there),
        "all_characters": all(there),
        "poses": _share(shown.characters[place] == who for place, who in facts.places.items()),
        "extra": sum(who is not None for place, who in shown.characters.items() if place not in facts.places),
    }
    if facts.props:
        judged["props"] = _share(name in shown.props for name in facts.props)
    if facts.treasure:
        judged["treasure"] = shown.treasure == facts.treasure
    if before and before[1] is not None:
        both = set(facts.names) & set(before[0].names)
        if both:
            judged["persistence"] = all(
                _is_there(facts, shown, name) and _is_there(before[0], before[1], name) for name in both
            )
    return judged


def _share(values) -> float:
    values = list(values)
    return sum(values) / len(values)
