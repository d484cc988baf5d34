"""What the judge's answers come to: win rates (figure 6) with position bias, and mean scores (table 7)."""

from collections.abc import Sequence
from dataclasses import dataclass

from seedstory_jax.evaluation.bootstrap import Interval, bootstrap_mean
from seedstory_jax.evaluation.judge_client import Answer


@dataclass(frozen=True)
class Duel:
    """Two systems under one aspect. A story counts for a system if both orders agree on it, else as a tie.

    first_chosen: share of single answers that chose the story shown first, ties left out; .5 is fair.
    disagreed: share of stories whose two orders named different systems: position decided them.
    unread: answers that never came or were off the format; a story with one counts nowhere.
    """

    systems: tuple[str, str]
    aspect: str
    wins: tuple[int, int]
    ties: int
    rates: tuple[Interval, Interval]
    first_chosen: Interval
    disagreed: Interval
    unread: int


def duels(answers: Sequence[Answer]) -> list[Duel]:
    """All pairs of systems and aspects, in the order they were asked."""
    groups: dict[tuple, dict[str, list[Answer]]] = {}
    for answer in answers:
        question = answer.question
        if question.kind == "compare":
            key = (frozenset(question.systems), question.aspect)
            groups.setdefault(key, {}).setdefault(question.story, []).append(answer)
    found = []
    for (_, aspect), stories in groups.items():
        pair = next(iter(stories.values()))[0].question.systems
        verdicts = {story: agreed for story, own in stories.items() if (agreed := _agreed(own)) is not None}
        wins = tuple(sum(v == name for v in verdicts.values()) for name in pair)
        rates = tuple(bootstrap_mean({s: [v == name] for s, v in verdicts.items()}) for name in pair)
        choices = {
            s: [a.verdict == a.question.systems[0] for a in own if a.verdict not in (None, "tie")]
            for s, own in stories.items()
        }
        torn = {s: [{a.verdict for a in stories[s]} == set(pair)] for s in verdicts}
        unread = sum(answer.verdict is None for own in stories.values() for answer in own)
        ties = len(verdicts) - sum(wins)
        found.append(Duel(pair, aspect, wins, ties, rates, bootstrap_mean(choices), bootstrap_mean(torn), unread))
    return found


def story_verdicts(answers: Sequence[Answer]) -> list[dict]:
    """What both orders agree on (else "tie"), as {systems, aspect, story, verdict}, of every story that was read."""
    groups: dict[tuple, list[Answer]] = {}
    for answer in answers:
        question = answer.question
        if question.kind == "compare":
            key = (tuple(sorted(question.systems)), question.aspect, question.story)
            groups.setdefault(key, []).append(answer)
    found = [
        {"systems": list(systems), "aspect": aspect, "story": story, "verdict": _agreed(own)}
        for (systems, aspect, story), own in groups.items()
    ]
    return [one for one in found if one["verdict"] is not None]


def _agreed(answers: Sequence[Answer]) -> str | None:
    """The verdict that the orders share, "tie" where they differ, None where one was not read."""
    read = [answer.verdict for answer in answers]
    if None in read:
        return None
    return read[0] if len(set(read)) == 1 else "tie"


def mean_scores(answers: Sequence[Answer]) -> dict[str, dict[str, Interval]]:
    """Mean score by system and aspect (table 7)."""
    groups: dict[str, dict[str, dict[str, list]]] = {}
    for answer in answers:
        question = answer.question
        if question.kind == "score":
            by_aspect = groups.setdefault(question.systems[0], {})
            by_aspect.setdefault(question.aspect, {}).setdefault(question.story, []).append(answer.verdict)
    return {
        system: {aspect: bootstrap_mean(stories) for aspect, stories in by_aspect.items()}
        for system, by_aspect in groups.items()
    }


def duels_markdown(found: Sequence[Duel]) -> str:
    """The win-rate table."""
    lines = ["| systems | aspect | wins | ties | losses | win rate | first shown chosen | orders disagree | unread |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for duel in found:
        names = f"{duel.systems[0]} against {duel.systems[1]}".replace("|", "\\|")
        figures = f"{duel.wins[0]} | {duel.ties} | {duel.wins[1]} | {duel.rates[0]}"
        lines.append(
            f"| {names} | {duel.aspect} | {figures} | {duel.first_chosen} | {duel.disagreed} | {duel.unread} |"
        )
    return "\n".join(lines) + "\n"


def scores_markdown(scores: dict[str, dict[str, Interval]]) -> str:
    """Table 7."""
    aspects = list(dict.fromkeys(aspect for by_aspect in scores.values() for aspect in by_aspect))
    lines = ["| system | " + " | ".join(aspects) + " |", "|---|" + "---|" * len(aspects)]
    for system, by_aspect in scores.items():
        cells = " | ".join(str(by_aspect.get(aspect, "-")) for aspect in aspects)
        lines.append(f"| {system.replace('|', chr(92) + '|')} | {cells} |")
    return "\n".join(lines) + "\n"
