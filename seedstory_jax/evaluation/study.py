"""A human study (appendix A): which pairs people see, and what their answers come to (Table 3 with intervals).

The page is written by `report.study_page`. It knows its pairs by number only; which system stood left is in the key,
a file that stays with whoever runs the study.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from seedstory_jax import outputs
from seedstory_jax.data.names import read_regular
from seedstory_jax.data.storystream import StoryFault, strict_json
from seedstory_jax.errors import UserError
from seedstory_jax.evaluation.bootstrap import Interval, bootstrap_mean
from seedstory_jax.evaluation.stories import StoryFolder, common_stories

QUESTIONS = {
    "style": "Whose pictures look more as if one hand had drawn them all?",
    "characters": "In which story do the characters stay more the same from picture to picture?",
    "match": "In which story do texts and pictures fit each other better?",
    "plot": "Which story is more interesting to read?",
    "overall": "Which story do you like better on the whole?",
}
CHOICES = ("left", "right", "same")


@dataclass(frozen=True)
class Pair:
    """One story told by two systems; `left` is shown left."""

    number: int
    story: str
    left: str
    right: str


def make_pairs(systems: Mapping[str, Sequence[StoryFolder]], *, seed: int = 0, limit: int = 0) -> list[Pair]:
    """Every pair of systems for every story they share, sides and order by chance; at most `limit` of them (0: all).

    Raises UserError for fewer than two systems or no common story.
    """
    names = list(systems)
    if len(names) < 2:
        raise UserError(f"a study compares two systems or more, got {', '.join(names) or 'none'}")
    shared = common_stories(systems)
    rng = np.random.default_rng(seed)
    drawn = []
    for story in shared:
        for place, first in enumerate(names):
            for second in names[place + 1 :]:
                drawn.append((story, *((first, second) if rng.random() < 0.5 else (second, first))))
    order = rng.permutation(len(drawn))[: limit or None]
    return [Pair(number, *drawn[place]) for number, place in enumerate(order)]


def write_key(path: Path, pairs: Sequence[Pair], study: str, questions: Mapping[str, str]) -> None:
    """The key that `read_back` needs."""
    key = {"study": study, "questions": dict(questions), "pairs": [asdict(pair) for pair in pairs]}
    with outputs.written_whole(path, by="study") as beside:
        beside.write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Result:
    """Of one pair of systems under one question: shares of answers, and how many people and answers are behind it."""

    systems: tuple[str, str]
    question: str
    first: Interval
    second: Interval
    same: Interval
    people: int


def read_questions(key_path: Path) -> dict[str, str]:
    """The questions of a study's key, by name."""
    return _read(key_path, ("study", "questions", "pairs"))["questions"]


def read_answers(key_path: Path, answer_paths: Sequence[Path]) -> tuple[dict, dict[int, Pair], dict[str, dict]]:
    """(the key, its pairs by number, what each person answered, by pair and question).

    Raises UserError for files that are no answers, of another study, or twice the same person's.
    """
    key = _read(key_path, ("study", "questions", "pairs"))
    fields, found = {"number": int, "story": str, "left": str, "right": str}, key["pairs"]
    whole = isinstance(found, list) and all(
        isinstance(pair, dict) and {name: type(value) for name, value in pair.items()} == fields for pair in found
    )
    asked = key["questions"]
    whole = whole and isinstance(asked, dict) and all(isinstance(words, str) for words in asked.values())
    if not whole or len({pair["number"] for pair in found}) < len(found):
        raise UserError(
            f"{key_path} is no key of a study: it needs questions by name, and pairs with {', '.join(fields)}, "
            "each with a number of its own"
        )
    pairs = {pair["number"]: Pair(**pair) for pair in found}
    people: dict[str, dict] = {}
    for path in answer_paths:
        found = _read(path, ("study", "person", "answers"))
        if not isinstance(found["person"], str) or not found["person"]:
            raise UserError(f"{path}: the person is no text: {str(found['person'])[:60]!r}")
        if found["study"] != key["study"]:
            raise UserError(f"{path} answers study {found['study']!r}, the key is of {key['study']!r}")
        if found["person"] in people:
            raise UserError(f"{path} holds the answers of {found['person']!r} a second time")
        people[found["person"]] = _checked(path, found["answers"], pairs, asked)
    if not people:
        raise UserError("no answers were given: name the JSON files that the study's page exported")
    return key, pairs, people


def read_back(key_path: Path, answer_paths: Sequence[Path]) -> list[Result]:
    """Table 3: shares with intervals by bootstrap over people (over stories, where only one person answered).

    Raises what `read_answers` raises.
    """
    key, pairs, people = read_answers(key_path, answer_paths)
    return [
        result
        for systems in dict.fromkeys(tuple(sorted((pair.left, pair.right))) for pair in pairs.values())
        for question in key["questions"]
        if (result := _result(systems, question, pairs, people)) is not None
    ]


def results_markdown(results: Sequence[Result], questions: Mapping[str, str] = QUESTIONS) -> str:
    """Table 3."""
    lines = [
        "| systems | question | first preferred | second preferred | the same | people |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        names = f"{result.systems[0]} against {result.systems[1]}".replace("|", "\\|")
        words = questions.get(result.question, result.question)
        lines.append(f"| {names} | {words} | {result.first} | {result.second} | {result.same} | {result.people} |")
    return "\n".join(lines) + "\n"


def _result(systems: tuple[str, str], question: str, pairs: Mapping[int, Pair], people: Mapping) -> Result | None:
    by_person: dict[str, list[str]] = {}
    by_story: dict[str, list[str]] = {}
    for person, answers in people.items():
        for number, given in answers.items():
            pair = pairs[number]
            if tuple(sorted((pair.left, pair.right))) != systems or question not in given:
                continue
            choice = {"left": pair.left, "right": pair.right, "same": "same"}[given[question]]
            by_person.setdefault(person, []).append(choice)
            by_story.setdefault(pair.story, []).append(choice)
    if not by_person:
        return None
    groups = by_person if len(by_person) > 1 else by_story

    def share(choice: str) -> Interval:
        return bootstrap_mean({name: [one == choice for one in choices] for name, choices in groups.items()})

    return Result(systems, question, share(systems[0]), share(systems[1]), share("same"), len(by_person))


def _checked(path: Path, answers, pairs: Mapping[int, Pair], questions: Mapping[str, str]) -> dict[int, dict[str, str]]:
    if not isinstance(answers, dict):
        raise UserError(f"{path}: answers must be an object")
    checked = {}
    for number, given in answers.items():
        place = int(number) if re.fullmatch(r"0|[1-9][0-9]{0,8}", number) else -1
        known = place in pairs and isinstance(given, dict)
        if not known or any(q not in questions or c not in CHOICES for q, c in given.items()):
            raise UserError(f"{path}: pair {number[:60]!r} holds {str(given)[:200]}, which is no answer of this study")
        checked[place] = given
    return checked


def _read(path: Path, keys: Sequence[str]) -> dict:
    try:
        found = strict_json(read_regular(Path(path)).decode("utf-8-sig"))
    except UserError as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except (StoryFault, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict) or any(key not in found for key in keys):
        raise UserError(f"{path} is no file of a study: it needs {', '.join(keys)}")
    return found
