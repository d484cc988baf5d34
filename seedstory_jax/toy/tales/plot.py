"""Plots: a wish, a loss, a search from friend to friend, a find, and the way home."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from seedstory_jax.errors import UserError
from seedstory_jax.toy.tales.facts import COLOURS, PASSWORDS, SERIES, Question, Tale, Turn

# What is lost, and how.
THINGS = ("bell", "kite", "lantern", "drum", "crown", "book")
LOSSES = ("wind", "magpie", "stream", "night")
MIN_LENGTH = 12
CHUNK = 10  # turns of a training row
# Distances at which a fact is asked for, in turns; each as likely as the others where the tale is long enough.
DISTANCES = ((1, 8), (9, 12), (13, 20))
CHAPTER = ("arrive", "meet", "task", "clue", "walk")


def make_tale(rng: np.random.Generator, series: str, length: int = 30, *, within_rows: bool = False) -> Tale:
    """A tale of `length` turns.

    Args:
      rng: source of everything that is chosen.
      series: "woods" or "harbour".
      length: turns, at least `MIN_LENGTH`.
      within_rows: ask only for what the same ten turns have shown (turns 0-9, 10-19, ...): a training row holds no
        more, and what no row can answer would teach guessing.

    Raises UserError for a length below the least.
    """
    if length < MIN_LENGTH:
        raise UserError(f"a tale of {length} turns is too short for its plot; the least is {MIN_LENGTH}")
    world = SERIES[series]
    hero, *friends = (str(name) for name in rng.permutation([animal.name for animal in world.cast]))
    colours = list(COLOURS)
    sail, *rest = (str(colour) for colour in rng.permutation(colours))
    scarves = {}
    for name in friends:
        scarves[name] = next(colour for colour in rest if colour not in world.animal(name).never)
        rest.remove(scarves[name])
    tale = Tale(
        series,
        hero,
        str(rng.choice(THINGS)),
        str(rng.choice(LOSSES)),
        str(rng.choice(PASSWORDS)),
        tuple(scarves.items()),
        sail,
        (),
    )
    turns = _with_returns(_events(rng, tale, friends, length), hero)
    return replace(tale, turns=tuple(_with_questions(rng, tale, turns, within_rows)))


def _events(rng: np.random.Generator, tale: Tale, friends: Sequence[str], length: int) -> list[Turn]:
    world = SERIES[tale.series]
    home, abroad = world.places[0], world.places[1:]
    hero, turns = tale.hero, []

    def add(event: str, place: str, time: str, *others: tuple[str, str], pose: str = "stand", **more) -> None:
        turns.append(Turn(len(turns), event, place, time, ((hero, pose), *others), **more))

    add("wish", home, "day", pose="sad")
    add("leave", home, "day", pose="walk")
    ending = 4  # gate, find, return, feast
    chapter, boat_due = 0, True
    place = str(rng.choice(abroad))
    time_left, time = int(rng.integers(3, 6)), 0
    while len(turns) < length - ending:
        friend = friends[chapter % len(friends)]
        events = [event for event in CHAPTER if event not in _dropped(rng)]
        going_on = str(rng.choice([each for each in abroad if each != place]))
        for event in events:
            if len(turns) == length - ending:
                break
            if time_left == 0:
                time, time_left = (time + 1) % 3, int(rng.integers(3, 6))
            time_left -= 1
            now = ("day", "dusk", "night")[time]
            if event == "arrive":
                add(event, place, now, pose="walk")
            elif event == "walk":
                if place in world.water and boat_due:
                    boat_due = False
                    add("sail", place, now, pose="cheer", sail=tale.sail)
                else:
                    add("rest" if now == "night" else "walk", place, now, pose="sleep" if now == "night" else "walk")
            else:
                pose = {"meet": "wave", "task": "cheer", "clue": "point"}[event]
                met_before = any(friend in turn.names for turn in turns)
                kind = "again" if event == "meet" and met_before else event
                add(kind, place, now, (friend, pose), next_place=going_on if event == "clue" else "")
        place = going_on
        chapter += 1
    place = next(turn.place for turn in reversed(turns))
    last = {name: turn.number for turn in turns for name in turn.names if name != hero}
    seen = sorted(last, key=last.__getitem__)  # who was not seen for the longest comes home first
    add("gate", place, "day", pose="walk")
    add("find", place, "day", pose="cheer", shows_thing=True)
    add("home", home, "dusk", (seen[0], "wave"), pose="walk", shows_thing=True)
    guests = [(name, "cheer") for name in seen[:2]]
    add("feast", home, "night", *guests, pose="cheer", shows_thing=True)
    return turns


def _dropped(rng: np.random.Generator) -> str:
    return str(rng.choice(["", "task", "walk", "arrive"]))


def _with_returns(turns: Sequence[Turn], hero: str) -> list[Turn]:
    """Notes who is back after turns without them."""
    last: dict[str, int] = {}
    noted = []
    for turn in turns:
        friends = [name for name in turn.names if name != hero]
        back = tuple((name, last[name]) for name in friends if name in last and last[name] < turn.number - 1)
        noted.append(replace(turn, returns=back))
        last |= dict.fromkeys(friends, turn.number)
    return noted


def _with_questions(rng: np.random.Generator, tale: Tale, turns: Sequence[Turn], within_rows: bool) -> list[Turn]:
    """Asks for every scarf, the sail and the password once, at a distance of one of `DISTANCES` where there is room."""
    turns = list(turns)
    facts = [("scarf", name, colour) for name, colour in tale.scarves]
    facts += [("sail", "boat", tale.sail), ("password", "gate", tale.password)]
    order = [facts[number] for number in rng.permutation(len(facts))]
    used = dict.fromkeys(DISTANCES, 0)
    for kind, subject, answer in order:
        places = []
        for turn in turns[2:-1]:
            told = _last_told(turns, turn.number, kind, subject)
            if told is None or turn.question is not None or _shown(turn, kind, subject):
                continue
            if within_rows and told // CHUNK != turn.number // CHUNK:
                continue
            places.append((turn.number, told))
        by_band = {band: [at for at in places if band[0] <= at[0] - at[1] <= band[1]] for band in DISTANCES}
        open_bands = [band for band in DISTANCES if by_band[band]]
        if open_bands:
            band = min(open_bands, key=lambda each: (used[each], rng.random()))
            used[band] += 1
            number, told = by_band[band][int(rng.integers(len(by_band[band])))]
            turns[number] = replace(turns[number], question=Question(kind, subject, answer, told))
    return turns


def _shown(turn: Turn, kind: str, subject: str) -> bool:
    if kind == "password":
        return turn.number == 0
    return subject in turn.names if kind == "scarf" else bool(turn.sail)


def _last_told(turns: Sequence[Turn], before: int, kind: str, subject: str) -> int | None:
    return max((turn.number for turn in turns[:before] if _shown(turn, kind, subject)), default=None)
