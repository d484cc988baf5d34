"""Agreement of two who label the same things: Cohen's kappa (1960), here of a model that judges and people who do."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from seedstory_jax.errors import UserError
from seedstory_jax.evaluation.bootstrap import Interval, jackknife
from seedstory_jax.evaluation.study import read_answers

QUESTION_OF = {"style": "style", "engagement": "plot", "coherence": "match"}  # the judge's aspect: the study's question


@dataclass(frozen=True)
class Agreement:
    """Judge and people on one question.

    Attributes:
        aspect: the judge's; `question` is the study's.
        kappa: 1 is full agreement, 0 what two who label at random would have; with its interval over stories.
        agreed: the share of stories labelled alike.
        stories: labelled by both.
        counts: by the judge's label, then by people's: "first" (the pair's first by name), "second", "tie".
    """

    aspect: str
    question: str
    kappa: Interval
    agreed: float
    stories: int
    counts: Mapping[str, Mapping[str, int]]


LABELS = ("first", "second", "tie")


def cohens_kappa(pairs: Sequence[tuple[str, str]]) -> float:
    """Agreement beyond chance of two labels each: (observed - expected) / (1 - expected); 1 where chance leaves none.

    Raises ValueError without pairs.
    """
    if not pairs:
        raise ValueError("kappa needs at least one thing that both labelled")
    count = len(pairs)
    observed = sum(a == b for a, b in pairs) / count
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    expected = sum(first[label] * second[label] for label in first) / count**2
    return 1.0 if expected == 1 else (observed - expected) / (1 - expected)


def judge_and_study(judge: Path, key: Path, answers: Sequence[Path]) -> list[Agreement]:
    """Kappa for every aspect of the judge that the study asked about, over pairs of systems and stories that both saw.

    People's label is what most of them chose, "tie" where that is "the same" or where two choices come equal.

    Raises UserError for files that are none, and where nothing was seen by both.
    """
    verdicts = _verdicts(judge)
    chosen = _choices(key, answers)
    found = []
    for aspect, question in {**{aspect: aspect for aspect in verdicts}, **QUESTION_OF}.items():
        own, people = verdicts.get(aspect, {}), chosen.get(question, {})
        shared = [item for item in own if item in people]
        if not shared:
            continue
        pairs = {item: (_label(own[item], item[0]), _label(people[item], item[0])) for item in shared}
        by_story: dict[str, list[tuple[str, str]]] = {}
        for (_, story), pair in pairs.items():
            by_story.setdefault(story, []).append(pair)
        kappa = jackknife(list(by_story.values()), lambda groups: cohens_kappa([p for group in groups for p in group]))
        table = Counter(pairs.values())
        counts = {mine: {theirs: table[mine, theirs] for theirs in LABELS} for mine in LABELS}
        agreed = sum(a == b for a, b in pairs.values()) / len(pairs)
        found.append(Agreement(aspect, question, kappa, agreed, len(pairs), counts))
    if not found:
        raise UserError(
            f"{judge} and {key} have no story, pair of systems and question in common: run both over the same systems"
        )
    return found


def markdown(found: Sequence[Agreement]) -> str:
    """A row a question."""
    lines = ["| judge's aspect | study's question | kappa | labelled alike | stories |", "|---|---|---|---|---|"]
    lines += [f"| {a.aspect} | {a.question} | {a.kappa} | {a.agreed:.2f} | {a.stories} |" for a in found]
    return "\n".join(lines) + "\n"


def _label(choice: str, systems: tuple[str, str]) -> str:
    return {systems[0]: "first", systems[1]: "second"}.get(choice, "tie")


def _verdicts(path: Path) -> dict[str, dict[tuple, str]]:
    """The judge's, by aspect, then by (systems in order, story)."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["verdicts"]
        found: dict[str, dict[tuple, str]] = {}
        for row in rows:
            item = (tuple(sorted(row["systems"])), row["story"])
            found.setdefault(row["aspect"], {})[item] = row["verdict"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--judge={path} holds no verdicts by story ({type(error).__name__} {error}): run `evaluate judge` again "
            "with the same --out, which asks nothing twice"
        ) from None
    return found


def _choices(key_path: Path, answers: Sequence[Path]) -> dict[str, dict[tuple, str]]:
    """What most people chose, by question, then by (systems in order, story)."""
    _, pairs, people = read_answers(key_path, answers)
    votes: dict[str, dict[tuple, Counter]] = {}
    for given in people.values():
        for number, by_question in given.items():
            pair = pairs[number]
            item = (tuple(sorted((pair.left, pair.right))), pair.story)
            for question, choice in by_question.items():
                system = {"left": pair.left, "right": pair.right}.get(choice, "tie")
                votes.setdefault(question, {}).setdefault(item, Counter())[system] += 1
    return {question: {item: _most(count) for item, count in items.items()} for question, items in votes.items()}


def _most(count: Counter) -> str:
    (label, most), *rest = count.most_common()
    return "tie" if rest and rest[0][1] == most else label
