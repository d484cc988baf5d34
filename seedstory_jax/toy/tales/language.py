"""Captions: many ways to say a turn, and what a caption says, read back word by word.

Reading back does not ask whether a caption could have been written here: it looks for names, places, times of day and
answers, so that a model's own wording is scored by what it says.
"""

import re
from dataclasses import dataclass

import numpy as np

from seedstory_jax.toy.tales.facts import COLOURS, PASSWORDS, SERIES, Tale, Turn

# A place: how one is there, and its name as somewhere to go.
PLACES = {
    "cottage": (("at the cottage", "in front of the cottage", "by the cottage door"), "the cottage"),
    "meadow": (("in the meadow", "among the tall grass of the meadow", "at the edge of the meadow"), "the meadow"),
    "forest": (("in the forest", "under the trees of the forest", "deep in the forest"), "the forest"),
    "river": (("by the river", "on the bank of the river", "where the river bends"), "the river"),
    "hill": (("on the hill", "at the top of the hill", "halfway up the hill"), "the hill"),
    "cave": (("at the mouth of the cave", "by the dark cave", "in front of the cave"), "the cave"),
    "mountain": (("below the mountain", "on the mountain path", "at the foot of the mountain"), "the mountain"),
    "house": (("at the house", "in front of the house", "by the house near the sea"), "the house"),
    "beach": (("on the beach", "where the beach is wide", "in the soft sand of the beach"), "the beach"),
    "pier": (("on the pier", "at the end of the pier", "by the old pier"), "the pier"),
    "lighthouse": (("at the lighthouse", "below the tall lighthouse", "beside the lighthouse"), "the lighthouse"),
    "market": (("at the market", "between the stalls of the market", "in the busy market"), "the market"),
    "cliff": (("on the cliff", "high up on the cliff", "at the edge of the cliff"), "the cliff"),
    "island": (("on the island", "on the shore of the island", "under the palm of the island"), "the island"),
}
TIMES = {
    "day": ("", "", "In the bright morning, ", "At noon, ", "Under a clear sky, "),
    "dusk": ("As the sun went down, ", "In the evening light, ", "At sunset, ", "Late in the day, "),
    "night": ("Under the stars, ", "When the moon was up, ", "In the quiet night, ", "Late at night, "),
}
TIME_WORDS = {
    "day": ("morning", "noon", "clear sky"),
    "dusk": ("sun went down", "evening", "sunset", "late in the day"),
    "night": ("stars", "moon", "night"),
}
WISHES = {
    "bell": ("ring the bell at the winter feast", "hear the bell ring once more"),
    "kite": ("fly the kite higher than the birds", "see the kite dance above the roofs"),
    "lantern": ("light the lantern for the long night", "carry the lantern in the parade"),
    "drum": ("play the drum for all the neighbours", "beat the drum on the first day of spring"),
    "crown": ("wear the paper crown at the party", "give the paper crown to Grandma"),
    "book": ("read the last page of the old book", "show the old book to every friend"),
}
LOSSES = {
    "wind": ("the wind had carried it away", "a strong wind came and took it"),
    "magpie": ("a magpie had stolen it", "a magpie flew off with it"),
    "stream": ("it had floated away in the rain", "the rain had washed it away"),
    "night": ("one morning it was gone", "it was lost in the dark"),
}
# {hero} and {friend} are names, {they} the hero's pronoun, {at} the place, {to} where to go next, {thing} what is lost.
SENTENCES = {
    "leave": (
        "{hero} packed some bread and set off to find the {thing}.",
        "So {hero} closed the door and went out to look for the {thing}.",
        "“I will find the {thing},” said {hero}, and {they} began to walk.",
    ),
    "arrive": (
        "{hero} came to stand {at}.",
        "{hero} looked around {at} and saw nobody.",
        "{at}, {hero} searched behind every stone.",
        "{hero} walked slowly {at} and listened.",
        "There was no {thing} {at}, but {hero} did not give up.",
    ),
    "meet": (
        "{hero} met {friend} {at}.",
        "{at}, {friend} waved. “Hello, {hero}! What are you looking for?”",
        "“Good day,” said {friend} to {hero} {at}.",
        "{friend} was resting {at} when {hero} came by.",
        "{hero} told {friend} everything {at}.",
    ),
    "again": (
        "{at}, {hero} saw a friend again: it was {friend}!",
        "“It is you, {friend}!” called {hero} {at}.",
        "{friend} came running {at} and hugged {hero}.",
    ),
    "task": (
        "{hero} and {friend} looked under the leaves {at} together.",
        "{friend} had lost a button {at}, and {hero} helped to find it.",
        "{hero} shared the bread with {friend} {at}.",
        "{at}, {hero} helped {friend} to lift a heavy log.",
        "{friend} sang a song {at}, and {hero} felt brave again.",
    ),
    "clue": (
        "“I saw something shine near {to},” said {friend}, and {hero} listened {at}.",
        "{at}, {friend} pointed the way. “Try {to}, {hero}!”",
        "{friend} had heard of a {thing} near {to}. {hero} thanked {friend} {at}.",
        "“Go to {to},” {friend} told {hero} {at}.",
    ),
    "walk": (
        "{hero} walked on alone {at}.",
        "{at}, {hero} followed the small path and hummed.",
        "{hero} crossed the grass {at} and thought of the {thing}.",
        "Step by step {hero} went on {at}.",
    ),
    "rest": (
        "{hero} lay down {at} and slept.",
        "{at}, {hero} made a bed of leaves and closed both eyes.",
        "{hero} was tired and curled up {at}.",
    ),
    "sail": (
        "{hero} found a little boat {at} and sailed across the water.",
        "{at}, a small boat was waiting, and {hero} jumped in.",
        "The wind filled the sail of the boat {at}, and {hero} laughed.",
    ),
    "gate": (
        "{at}, {hero} went through a gap in the old wall.",
        "{hero} squeezed through a narrow gate {at}.",
    ),
    "find": (
        "And there it was! {hero} had found the {thing} {at}.",
        "{at}, {hero} saw the {thing} and jumped for joy.",
        "“The {thing}!” cried {hero} {at}, and held it tight.",
    ),
    "home": (
        "{hero} carried the {thing} home, and {friend} was waiting {at}.",
        "{at}, {friend} welcomed {hero} and the {thing}.",
    ),
    "feast": (
        "Everybody came {at}. {hero} could {wish} at last, and {friends} cheered.",
        "{at}, {hero} and {friends} danced, for now {they} could {wish}.",
    ),
}
QUESTIONS = {
    "scarf": (
        "{hero} thought of {subject}, who wore a {answer} scarf.",
        "“What does {subject} wear?” asked a bird. “A {answer} scarf,” said {hero}.",
        "{hero} missed {subject} and that warm scarf, the {answer} one.",
        "A snail wanted to know about the scarf of {subject}. “It is {answer},” said {hero}.",
    ),
    "sail": (
        "{hero} remembered the boat and its {answer} sail.",
        "“Which boat did you take?” asked a snail. “The one with the {answer} sail,” said {hero}.",
    ),
    "password": (
        "A stone door asked for the secret word. “{answer},” said {hero}, and it opened.",
        "An old gate would not open until {hero} said the secret word: {answer}.",
    ),
}


def caption_of(tale: Tale, turn: Turn, rng: np.random.Generator) -> str:
    """One of the many ways to say a turn."""
    series = SERIES[tale.series]
    at = str(rng.choice(PLACES[turn.place][0]))
    friends = [name for name in turn.names if name != tale.hero]
    words = {
        "hero": _called(series.animal(tale.hero), turn, rng),
        "friend": _called(series.animal(friends[0]), turn, rng) if friends else "",
        "friends": " and ".join(friends),
        "they": series.animal(tale.hero).pronoun,
        "at": at,
        "to": PLACES[turn.next_place][1] if turn.next_place else "",
        "thing": tale.thing,
        "wish": str(rng.choice(WISHES[tale.thing])),
    }
    if turn.event == "wish":
        return _opening(tale, words, rng)
    sentence = str(rng.choice(SENTENCES[turn.event]))
    opener = str(rng.choice(TIMES[turn.time])) if not sentence.startswith(("{at}", "And", "So", "“")) else ""
    text = opener + (_lower_article(sentence.format(**words)) if opener else _capital(sentence.format(**words)))
    if turn.question is not None:
        asked = str(rng.choice(QUESTIONS[turn.question.kind]))
        text += " " + _capital(
            asked.format(**words | {"subject": turn.question.subject, "answer": turn.question.answer})
        )
    return text


def _opening(tale: Tale, words: dict[str, str], rng: np.random.Generator) -> str:
    loss = str(rng.choice(LOSSES[tale.loss]))
    animal = SERIES[tale.series].animal(tale.hero)
    texts = (
        "{name} the {species} wished to {wish}, but {loss}. “The secret word is {word},” whispered Grandma {at}.",
        "Once there was a {species} called {name}. {They} wanted to {wish}, but {loss}. {at}, Grandma told {name} the "
        "secret word: {word}.",
        "“Never forget the secret word, {word},” said Grandma {at}. {name} the {species} longed to {wish}, but {loss}.",
    )
    text = str(rng.choice(texts)).replace(". {at}", ". " + _capital(words["at"]))
    return text.format(
        name=animal.name, species=animal.species, loss=loss, word=tale.password, They=_capital(animal.pronoun), **words
    )


def _called(animal, turn: Turn, rng: np.random.Generator) -> str:
    return str(rng.choice([animal.name, animal.name, f"{animal.name} the {animal.species}"]))


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _lower_article(text: str) -> str:
    return text[0].lower() + text[1:] if text.startswith(("There ", "The ", "Step ", "Everybody ")) else text


@dataclass(frozen=True)
class Said:
    """What a caption says: names of either series, places, times of day, colours, passwords, in order of mention."""

    names: tuple[str, ...]
    places: tuple[str, ...]
    times: tuple[str, ...]
    colours: tuple[str, ...]
    passwords: tuple[str, ...]


def read_caption(text: str) -> Said:
    """The facts that a caption mentions. Never fails: a text of other words says nothing."""
    lower = text.lower()
    names = [animal.name for series in SERIES.values() for animal in series.cast]
    times = {
        time: min((lower.find(word) for word in words if word in lower), default=-1)
        for time, words in TIME_WORDS.items()
    }
    return Said(
        _mentioned(names, lower),
        _mentioned(PLACES, lower),
        tuple(sorted((time for time, at in times.items() if at >= 0), key=times.__getitem__)),
        _mentioned(COLOURS, lower),
        _mentioned(PASSWORDS, lower),
    )


def _mentioned(words, lower: str) -> tuple[str, ...]:
    found = {word: re.search(rf"\b{word.lower()}\b", lower) for word in words}
    return tuple(sorted((word for word, hit in found.items() if hit), key=lambda word: found[word].start()))


@dataclass(frozen=True)
class Score:
    """How a caption stands to a turn's record; `answered` is None where nothing was asked."""

    names: bool
    place: bool
    answered: bool | None

    @property
    def right(self) -> bool:
        """Whether nothing that was to be said is missing or wrong."""
        return self.names and self.place and self.answered is not False


def score_caption(text: str, tale: Tale, turn: Turn) -> Score:
    """Scores a caption by facts: who is there, where, and the answer to what is asked.

    Everybody in the picture must be named and nobody else, but for those whom a clue or a question is about.
    """
    said, question = read_caption(text), turn.question
    allowed = {*turn.names, question.subject if question else ""}
    names = set(turn.names) <= set(said.names) <= allowed
    place = turn.place in said.places and set(said.places) <= {turn.place, turn.next_place}
    if turn.event == "leave":  # it is told without a place
        place = set(said.places) <= {turn.place}
    answered = None
    if question is not None:
        given = said.passwords if question.kind == "password" else said.colours
        answered = given == (question.answer,)
    return Score(names, place, answered)
