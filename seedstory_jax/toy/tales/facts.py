"""Facts of a tale: who, where, when, what happens, and what must be remembered from how far back.

A tale is a record first; captions (`language`) and pictures (`paint`) are made from it, so that both can be scored by
facts. Three sorts of facts have to be remembered: the password, said in the opening and nowhere else; the colours of
scarves and of a sail, seen in pictures and never named until they are asked for, once; and the looks of friends who
come back long after they left.
"""

from dataclasses import dataclass

COLOURS = {
    "red": (212, 48, 48),
    "orange": (242, 140, 30),
    "yellow": (246, 212, 60),
    "green": (58, 152, 72),
    "blue": (52, 104, 214),
    "purple": (130, 70, 176),
    "pink": (244, 140, 186),
    "white": (248, 248, 244),
}
PASSWORDS = ("acorn", "thunder", "pebble", "feather", "honey", "marble", "velvet", "echo")
TIMES = ("day", "dusk", "night")


@dataclass(frozen=True)
class Animal:
    """One of a series' cast; `fur`, `belly` are RGB, `ears`, `tail` and `face` name shapes of `paint`."""

    name: str
    species: str
    pronoun: str  # "she" or "he"
    fur: tuple[int, int, int]
    belly: tuple[int, int, int]
    ears: str
    tail: str
    face: str
    never: tuple[str, ...] = ()  # scarves that would not show on this fur


@dataclass(frozen=True)
class Series:
    """A cast and the places that it lives in; the first place is home, `water` are those with a boat."""

    cast: tuple[Animal, ...]
    places: tuple[str, ...]
    water: tuple[str, ...]

    def animal(self, name: str) -> Animal:
        """The animal of that name."""
        return next(animal for animal in self.cast if animal.name == name)


CREAM, GREY_BELLY = (252, 240, 216), (232, 232, 236)
SERIES = {
    "woods": Series(
        (
            Animal("Fern", "fox", "she", (222, 112, 44), CREAM, "pointed", "bushy", "muzzle", ("orange", "red")),
            Animal("Bruno", "bear", "he", (124, 82, 54), (206, 168, 124), "round", "stub", "muzzle"),
            Animal("Clover", "rabbit", "she", (206, 196, 186), (250, 246, 240), "long", "puff", "plain", ("white",)),
            Animal("Otis", "owl", "he", (150, 116, 84), (228, 206, 170), "tufts", "none", "beak"),
            Animal("Hazel", "hedgehog", "she", (106, 88, 78), (236, 212, 180), "spines", "none", "snout"),
            Animal("Milo", "mouse", "he", (150, 152, 164), (236, 226, 228), "disks", "thin", "snout"),
        ),
        ("cottage", "meadow", "forest", "river", "hill", "cave", "mountain"),
        ("river",),
    ),
    "harbour": Series(
        (
            Animal("Coral", "cat", "she", (96, 98, 110), GREY_BELLY, "pointed", "thin", "muzzle"),
            Animal("Barney", "dog", "he", (206, 158, 96), (246, 226, 190), "floppy", "stub", "muzzle", ("orange",)),
            Animal("Dot", "duck", "she", (244, 222, 124), (252, 244, 206), "none", "stub", "beak", ("yellow",)),
            Animal("Oliver", "otter", "he", (116, 86, 66), (222, 196, 162), "round", "thick", "snout"),
            Animal("Pearl", "penguin", "she", (48, 54, 72), (250, 250, 250), "none", "none", "beak"),
            Animal("Toby", "turtle", "he", (104, 150, 92), (226, 214, 150), "none", "shell", "plain", ("green",)),
        ),
        ("house", "beach", "pier", "lighthouse", "market", "cliff", "island"),
        ("pier", "island"),
    ),
}


@dataclass(frozen=True)
class Question:
    """A fact asked for in a turn's caption: the colour of `subject`'s scarf or of the sail, or the password.

    `told` is the last turn before that showed it (or, for the password, said it).
    """

    kind: str  # "scarf", "sail" or "password"
    subject: str
    answer: str
    told: int


@dataclass(frozen=True)
class Turn:
    """One caption and its picture: what happens, where, when, to whom.

    Attributes:
        event: what the caption is about; a key of `language.SENTENCES`.
        cast: (name, pose) of everybody in the picture, from left to right.
        sail: colour of the boat's sail in the picture, or "".
        shows_thing: whether what was lost is in the picture.
        next_place: where the search goes on, where the caption says so.
        returns: names of those who are back after turns without them, and the last turn that showed each.
        question: what the caption asks for and answers.
    """

    number: int
    event: str
    place: str
    time: str
    cast: tuple[tuple[str, str], ...]
    sail: str = ""
    shows_thing: bool = False
    next_place: str = ""
    returns: tuple[tuple[str, int], ...] = ()
    question: Question | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Who is in the picture."""
        return tuple(name for name, _ in self.cast)


@dataclass(frozen=True)
class Tale:
    """A story as facts. `scarves`: (name, colour) of every friend; the hero wears a hat instead."""

    series: str
    hero: str
    thing: str
    loss: str
    password: str
    scarves: tuple[tuple[str, str], ...]
    sail: str
    turns: tuple[Turn, ...]

    def scarf(self, name: str) -> str:
        """The colour of a friend's scarf; "" for the hero, who has none."""
        return dict(self.scarves).get(name, "")

    @property
    def questions(self) -> tuple[tuple[int, Question], ...]:
        """(turn, question) of all that is asked; the distance is turn - question.told."""
        return tuple((turn.number, turn.question) for turn in self.turns if turn.question is not None)


def in_this_order(series: str, names) -> tuple[str, ...]:
    """Names in the order of the series' cast."""
    return tuple(animal.name for animal in SERIES[series].cast if animal.name in set(names))
