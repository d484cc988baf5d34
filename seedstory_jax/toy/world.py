"""A cartoon world that writes its own StoryStream: pictures, captions and a plot, all from one seed.

Two series with casts of their own share six scenes, four props and sixteen treasures. In a story cast, scene and props
carry over from frame to frame, and the opening names a treasure ("They dream of a red star.") that nothing mentions
again before frame 16, when it is found: only who remembers the opening can name and draw it.

A caption says exactly what its picture shows, so that either can be checked against the other:
`parse_caption(caption_of(facts)) == facts`, and `render_frame(facts)` is the picture.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from seedstory_jax.errors import UserError
from seedstory_jax.files import atomic_folder
from seedstory_jax.toy.scenes import SCENES, background
from seedstory_jax.toy.sprites import COLORS, POSES, PROPS, SIZE, TREASURES, paste, paste_character, prop, treasure

CASTS = {
    "sunny": ("monkey", "man in yellow", "girl in red", "spotted dog"),
    "moony": ("robot", "purple wizard", "green frog", "white rabbit"),
}
STORY_LENGTH = 30
TREASURE_RETURNS = 16  # the first frame that may speak of the opening's treasure again
STORED_SCALE = 2  # stored at 128 pixels, the smallest side that StoryStream's filters let pass

_PLACES = {name: f"{'at' if name in ('farm', 'beach') else 'in'} the {name}" for name in SCENES}
_VERBS = {pose: (f"{pose}s", pose) for pose in POSES}  # one does, several do
_TAILS = {"dream": "They dream of a {}.", "find": "Look, the {}!", "shine": "The {} shines."}
_LEADS = ("", "Now", "Soon", "Later", "Then")


@dataclass(frozen=True)
class FrameFacts:
    """What one picture shows and how its caption says so.

    cast: (name, pose) of those who are there, in cast order; props in the order of `PROPS`; treasure: (color, kind).
    """

    scene: str
    cast: tuple[tuple[str, str], ...]
    props: tuple[str, ...] = ()
    treasure: tuple[str, str] | None = None
    tail: str = ""  # "", or how the treasure is spoken of: "dream" (the opening), "find", "shine"
    lead: str = ""  # "", or the caption's first word
    place_first: bool = True

    @property
    def series(self) -> str:
        """The series whose cast is shown."""
        return series_of(self.cast[0][0])

    @property
    def names(self) -> tuple[str, ...]:
        """Who is there."""
        return tuple(name for name, _ in self.cast)

    @property
    def places(self) -> dict[int, tuple[str, str]]:
        """Column to (name, pose): everybody of a series has a place."""
        order = CASTS[self.series]
        return {order.index(name): (name, pose) for name, pose in self.cast}


def series_of(name: str) -> str:
    """The series in whose cast a character is."""
    return next(series for series, cast in CASTS.items() if name in cast)


def draw(
    scene: str,
    places: Mapping[int, tuple[str, str]],
    props: Sequence[str] = (),
    found: tuple[str, str] | None = None,
) -> np.ndarray:
    """A picture uint8[64 64 3] with (name, pose) at columns 0 to 3, in front of each other in that order."""
    picture = background(scene).copy()
    for column in sorted(places):
        paste_character(picture, column, *places[column])
    for name in props:
        paste(picture, *prop(name))
    if found:
        paste(picture, *treasure(*found))
    return picture


def render_frame(facts: FrameFacts) -> np.ndarray:
    """The picture of a frame, uint8[64 64 3]."""
    return draw(facts.scene, facts.places, facts.props, facts.treasure)


# Captions.


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def caption_of(facts: FrameFacts) -> str:
    """The caption of a frame, 8 to 25 words for every frame of a story."""
    groups: list[tuple[str, list[str]]] = []
    for name, pose in facts.cast:  # neighbours who do the same share a verb
        if groups and groups[-1][0] == pose:
            groups[-1][1].append(f"the {name}")
        else:
            groups.append((pose, [f"the {name}"]))
    clauses = [f"{_join(names)} {_VERBS[pose][len(names) > 1]}" for pose, names in groups]
    action = " while ".join(clauses) if len(clauses) == 2 else _join(clauses)
    place = _PLACES[facts.scene]
    text = f"{place}, {action}" if facts.place_first else f"{action} {place}"
    if facts.lead:
        text = f"{facts.lead} {text}"
    if facts.props:
        text += f" near {_join([f'a {name}' for name in facts.props])}"
    text = text[0].upper() + text[1:] + "."
    if facts.tail:
        text += " " + _TAILS[facts.tail].format(" ".join(facts.treasure))
    return text


def _either(words) -> str:
    return f"(?:{'|'.join(map(re.escape, words))})"


_NAME = _either(name for cast in CASTS.values() for name in cast)
_VERB = _either(verb for pair in _VERBS.values() for verb in pair)
_ACTION = rf"the {_NAME}(?:(?:, | and | while | {_VERB}| )(?:the {_NAME})?)*?"
_PLACE = _either(_PLACES.values())
_CAPTION = re.compile(
    rf"(?:(?P<lead>{_either(_LEADS[1:])}) )?"
    rf"(?:(?P<place>{_PLACE}), (?P<action>{_ACTION})|(?P<action2>{_ACTION}) (?P<place2>{_PLACE}))"
    rf"(?: near (?P<props>a {_either(PROPS)}(?: and a {_either(PROPS)})?))?\."
    rf"(?: (?P<tail>{'|'.join(_TAILS[t].format('TREASURE') for t in _TAILS).replace('.', '[.]')}))?".replace(
        "TREASURE", rf"{_either(COLORS)} {_either(TREASURES)}"
    )
)


def parse_caption(text: str) -> FrameFacts | None:
    """The facts that a caption states, or None if it is not well formed.

    Well formed is exactly what `caption_of` could have written: known words, one series, cast order, verbs that agree.
    """
    match = _CAPTION.fullmatch(text[:1].lower() + text[1:]) or _CAPTION.fullmatch(text)
    if not match:
        return None
    action = match["action"] or match["action2"]
    cast, waiting = [], []
    for name, verb in re.findall(rf"\b({_NAME})\b|\b({_VERB})\b", action):
        if name:
            waiting.append(name)
        else:
            pose = next(pose for pose, forms in _VERBS.items() if verb in forms)
            cast += [(name, pose) for name in waiting]
            waiting = []
    if waiting or not cast or len({series_of(name) for name, _ in cast}) != 1:
        return None
    tail = match["tail"] or ""
    facts = FrameFacts(
        scene=(match["place"] or match["place2"]).split()[-1],
        cast=tuple(cast),
        props=tuple(re.findall(rf"a ({_either(PROPS)})", match["props"] or "")),
        treasure=tuple(re.search(rf"({_either(COLORS)}) ({_either(TREASURES)})", tail).groups()) if tail else None,
        tail=next((kind for kind in _TAILS if tail and tail.split()[0] == _TAILS[kind].split()[0]), ""),
        lead=match["lead"] or "",
        place_first=match["place"] is not None,
    )
    return facts if caption_of(facts) == text and _possible(facts) else None


def _possible(facts: FrameFacts) -> bool:
    order = CASTS[facts.series]
    places = [order.index(name) for name in facts.names]
    props = [list(PROPS).index(name) for name in facts.props]
    return places == sorted(set(places)) and props == sorted(set(props))


# The plot.


def _next_poses(rng, cast: dict[str, str]) -> dict[str, str]:
    """About half of the cast does something new; every pose is as likely as any other."""
    return {name: str(rng.choice(POSES)) if rng.random() < 0.6 else pose for name, pose in cast.items()}


def make_story(rng: np.random.Generator, series: str, length: int = STORY_LENGTH) -> list[FrameFacts]:
    """One story as facts: who, where and with what carries over; the opening's treasure returns after frame 15."""
    everyone = CASTS[series]
    cast = {str(n): str(rng.choice(POSES)) for n in rng.choice(everyone, rng.choice([2, 2, 3]), replace=False)}
    scene = str(rng.choice(list(SCENES)))
    props: list[str] = []
    found = (str(rng.choice(list(COLORS))), str(rng.choice(list(TREASURES))))
    returns = TREASURE_RETURNS + int(rng.integers(3))
    stay = int(rng.integers(3, 7))  # frames until they go elsewhere
    frames = []
    for number in range(length):
        moved = number > 0 and stay == 0
        if moved:
            scene = str(rng.choice([name for name in SCENES if name != scene]))
            stay = int(rng.integers(3, 7))
        elif number > 0:
            draw = rng.random()
            most = 1 if len(cast) == 3 else 2
            if draw < 0.28 and len(props) < most:
                props.append(str(rng.choice([name for name in PROPS if name not in props])))
            elif draw < 0.36 and props:
                props.pop(0)
            elif draw < 0.42 and len(cast) == 2 and len(props) < 2:
                cast[str(rng.choice([name for name in everyone if name not in cast]))] = str(rng.choice(POSES))
            elif draw < 0.46 and len(cast) == 3:
                del cast[str(rng.choice(list(cast)))]
        if number > 0:
            cast = _next_poses(rng, cast)
        stay -= 1
        tail = ""
        if number == 0:
            tail = "dream"
        elif number == returns:
            tail = "find"
        elif number > returns and (number == length - 1 or rng.random() < 0.35):
            tail = "shine"
        lead = ""
        if number > 0 and not tail:
            lead = str(rng.choice(["Later", "Then"])) if moved else str(rng.choice(["", "", "Now", "Soon"]))
        frames.append(
            FrameFacts(
                scene=scene,
                cast=tuple((name, cast[name]) for name in everyone if name in cast),
                props=tuple(name for name in PROPS if name in props),
                treasure=found if tail else None,
                tail=tail,
                lead=lead,
                place_first=bool(rng.random() < 0.6),
            )
        )
    return frames


# A StoryStream folder.


@lru_cache(maxsize=4096)
def _png(facts: FrameFacts) -> bytes:
    """The stored picture: 128 pixels a side, each of the 64 doubled."""
    picture = render_frame(facts).repeat(STORED_SCALE, 0).repeat(STORED_SCALE, 1)
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG", compress_level=4)
    return data.getvalue()


def _write_story(job: tuple[Path, str, int, int, int]) -> str:
    """Write one story's pictures; its JSON line."""
    folder, series, split, number, seed = job
    series_number = list(CASTS).index(series)
    frames = make_story(np.random.default_rng([seed, series_number, split, number]), series)
    story_id = series_number * 100_000 + split * 50_000 + number
    place = Path("images") / f"{story_id:06d}"
    (folder / place).mkdir(parents=True)
    for index, facts in enumerate(frames):
        (folder / place / f"{index:02d}.png").write_bytes(_png(_seen(facts)))
    story = {
        "id": story_id,
        "images": [f"{place.as_posix()}/{index:02d}.png" for index in range(len(frames))],
        "captions": [caption_of(facts) for facts in frames],
    }
    return json.dumps(story)


def _seen(facts: FrameFacts) -> FrameFacts:
    """Only what the picture depends on, so that pictures said in two ways are encoded once."""
    return FrameFacts(facts.scene, facts.cast, facts.props, facts.treasure)


def build_toy_world(
    folder: Path | str, *, series: str | Sequence[str], num_train: int, num_val: int, seed: int, processes: int = 2
) -> Path:
    """Write `train.jsonl`, `val.jsonl` and `images/` of a toy series (several series take turns); its folder.

    Every story has 30 frames. A folder that already holds this very world is left as it is. The world is written
    beside and then renamed, so a folder is whole or not there.
    Raises UserError for an unknown series, and if the folder holds something else.
    """
    folder = Path(folder)
    series = (series,) if isinstance(series, str) else tuple(series)
    for name in series:
        if name not in CASTS:
            raise UserError(f"unknown toy series {name!r}: choose from {', '.join(CASTS)}")
    if min(num_train, num_val) < 0:
        raise UserError(f"a toy world cannot have {min(num_train, num_val)} stories: give 0 or more")
    about = {"series": list(series), "num_train": num_train, "num_val": num_val, "seed": seed, "version": 1}
    if folder.exists():
        known = folder / "world.json"
        if known.is_file() and json.loads(known.read_text()) == about:
            return folder
        raise UserError(f"{folder} exists and is not the toy world asked for: remove it or name another folder")
    with atomic_folder(folder) as beside:
        jobs = [
            (beside, series[number % len(series)], split, number, seed)
            for split, count in enumerate((num_train, num_val))
            for number in range(count)
        ]
        if processes > 1 and len(jobs) >= 32:  # fewer are written sooner than processes start
            with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
                lines = list(pool.map(_write_story, jobs, chunksize=8))
        else:
            lines = [_write_story(job) for job in jobs]
        for name, part in (("train", lines[:num_train]), ("val", lines[num_train:])):
            (beside / f"{name}.jsonl").write_text("".join(line + "\n" for line in part))
        (beside / "world.json").write_text(json.dumps(about) + "\n")
    return folder


def toy_captions(seed: int = 0, stories: int = 200) -> list[str]:
    """Captions of both series: what the toy tokenizer is trained on."""
    return [
        caption_of(facts)
        for number in range(stories)
        for index, name in enumerate(CASTS)
        for facts in make_story(np.random.default_rng([seed, index, 2, number]), name)
    ]


__all__ = [
    "CASTS",
    "COLORS",
    "POSES",
    "PROPS",
    "SCENES",
    "SIZE",
    "TREASURES",
    "FrameFacts",
    "build_toy_world",
    "caption_of",
    "draw",
    "make_story",
    "parse_caption",
    "render_frame",
    "toy_captions",
]
