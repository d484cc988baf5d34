"""Evaluate stories of any system: measures, a language model as judge, a human study, and where the model looks.

    seedstory evaluate compare ours=out/a theirs=out/b --out=DIR [--workdir=runs/toy]
    seedstory evaluate judge ours=out/a theirs=out/b --model=NAME [--base_url=URL] --out=DIR [--dry_run]
    seedstory evaluate study ours=out/a theirs=out/b --out=DIR
    seedstory evaluate study --key=DIR/key.json ANSWERS.json ... --out=DIR
    seedstory evaluate agreement --judge=DIR/judge.json --key=DIR/key.json ANSWERS.json ... --out=DIR
    seedstory evaluate read-scores RESULTS ... --out=DIR [--exports=DIR]
    seedstory evaluate attention --workdir=runs/toy --out=DIR

A system is a folder with a folder for each story: ours (story.json), or pictures with captions.txt, captions.json or a
.txt beside each picture. Stories of two systems are matched by their folders' names. Folders as other systems' public
code leaves them are known too (docs/benchmarks.md).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from seedstory_jax import cli, outputs
from seedstory_jax.chat_client import KEY_VARIABLE, check_address
from seedstory_jax.config import nearest
from seedstory_jax.data.names import folder_name, read_regular
from seedstory_jax.data.storystream import StoryFault, strict_json
from seedstory_jax.errors import UserError
from seedstory_jax.evaluation import agreement, judge_tables, study
from seedstory_jax.evaluation.attention_statistics import attention_statistics
from seedstory_jax.evaluation.clip_score import ClipScore
from seedstory_jax.evaluation.field_scores import read_scores
from seedstory_jax.evaluation.judge import ASPECTS, SEGMENTS, Question, comparison_questions, score_questions
from seedstory_jax.evaluation.judge_client import Answer, Judge, JudgeConfig
from seedstory_jax.evaluation.layouts import read_published
from seedstory_jax.evaluation.measure import Tools, measure
from seedstory_jax.evaluation.perplexity import Perplexity
from seedstory_jax.evaluation.pretrained import find_aesthetic, find_encoders
from seedstory_jax.evaluation.prompts import open_dataset, true_stories
from seedstory_jax.evaluation.stories import StoryFolder, common_stories, read_stories
from seedstory_jax.pipeline import load
from seedstory_jax.report.agreement_page import write_agreement_page
from seedstory_jax.report.attention_page import write_attention_page
from seedstory_jax.report.contact_sheet import write_contact_sheet
from seedstory_jax.report.figures_page import section_of, write_figures
from seedstory_jax.report.judge_page import write_judge_page
from seedstory_jax.report.page import write_text
from seedstory_jax.report.study_page import write_study_page


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    if arguments[0] not in COMMANDS:
        raise UserError(f"unknown command {arguments[0]!r}: {nearest(arguments[0], list(COMMANDS))}")
    return COMMANDS[arguments[0]](arguments[1:])


def compare(arguments: Sequence[str]) -> int:
    """Tables and curves of some systems over the stories they share, as an ablation has them."""
    parser = _parser("compare", compare)
    parser.add_argument("systems", nargs="+", help="NAME=FOLDER, one or more")
    parser.add_argument("--captions", type=Path, help="a story set: texts of systems that write pictures alone")
    parser.add_argument("--workdir", type=Path, help="a run whose ViT measures pictures")
    parser.add_argument(
        "--reference", type=Path, help="true stories (.jsonl); default: the workdir's validation stories"
    )
    parser.add_argument("--clip", type=Path, help="a local CLIP folder, for the CLIP score")
    parser.add_argument("--inception", type=Path, help="local Inception weights, for FID")
    parser.add_argument("--perplexity", action="store_true", help="of captions, by SmolLM2-135M (docs/benchmarks.md)")
    parser.add_argument("--weights", type=Path, help="local weights of dino, clip, csd and aesthetic, a folder each")
    parser.add_argument("--out", type=Path, required=True)
    flags, _ = parser.parse_strictly(arguments)
    outputs.claim(
        *(flags.out / name for name in ("comparison.json", "comparison.md", "comparison.csv", "index.html")),
        by="report",
    )
    systems = _shared(read_systems(flags.systems, flags.captions))
    clip = ClipScore(flags.clip) if flags.clip else None
    encoders, aesthetic = find_encoders(flags.weights), find_aesthetic(flags.weights)
    perplexity = Perplexity() if flags.perplexity else None
    system = load(flags.workdir) if flags.workdir else None
    names = [story.name for story in next(iter(systems.values()))]
    reference: list[StoryFolder] = []
    if flags.reference or system is not None:
        reference = (
            read_stories(flags.reference) if system is None else true_stories(open_dataset(system, flags.reference))
        )
        matching = [story for story in reference if story.name in names]
        reference = matching or reference[: len(names)]
    tools = Tools(
        encode=system.encode if system else None,
        clip=clip,
        inception=flags.inception,
        encoders=encoders,
        aesthetic=aesthetic,
        perplexity=perplexity,
    )
    with tqdm(total=len(systems) * len(names), desc="measuring", unit="story") as bar:
        measured = measure(systems, tools, reference=reference, progress=lambda *_: bar.update(1))
    sheets = {}
    for name, stories in systems.items():
        sheet = write_contact_sheet(flags.out / "sheets" / f"{folder_name(name)}.png", stories)
        sheets |= {name: sheet} if sheet else {}
    length = max(len(story) for stories in systems.values() for story in stories)
    section = section_of(f"{len(names)} stories that all have", measured, length, stories=systems, sheets=sheets)
    print(f"open {write_figures(flags.out, 'comparison', ' against '.join(systems), [section])}")
    return 0


def judge(arguments: Sequence[str]) -> int:
    """Comparative and single scores by a language model behind any OpenAI-compatible endpoint."""
    parser = _parser("judge", judge)
    parser.add_argument("systems", nargs="+", help="NAME=FOLDER, one or more (one alone is only scored)")
    parser.add_argument("--captions", type=Path, help="a story set: texts of systems that write pictures alone")
    parser.add_argument("--model", required=True, help="the judge's name at the endpoint")
    parser.add_argument("--base_url", default="", help=f"the endpoint; its key comes from {KEY_VARIABLE}")
    parser.add_argument("--proxy", default="", help="address of a proxy; the environment's are not used")
    parser.add_argument("--aspects", default=",".join(ASPECTS))
    parser.add_argument("--segments", type=int, default=SEGMENTS, help="captions and pictures shown of a story")
    parser.add_argument("--text_only", action="store_true", help="send no pictures")
    parser.add_argument("--num_stories", type=int, default=0, help="0 takes all")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--attempts", type=int, default=6, help="of one call")
    parser.add_argument("--dry_run", action="store_true", help="count calls and tokens, ask nothing")
    parser.add_argument("--out", type=Path, required=True)
    flags, _ = parser.parse_strictly(arguments)
    outputs.claim(*(flags.out / name for name in ("judge.json", "judge.md", "index.html")), by="report")
    for what, address in (("--base_url", flags.base_url), ("--proxy", flags.proxy)):
        if address:
            check_address(address, what)
    systems = _shared(read_systems(flags.systems, flags.captions), flags.num_stories)
    if flags.segments < 1:
        raise UserError(f"--segments={flags.segments}: show at least 1")
    options = {"aspects": flags.aspects.split(","), "segments": flags.segments, "pictures": not flags.text_only}
    questions: list[Question] = score_questions(systems, **options)
    questions += comparison_questions(systems, **options) if len(systems) > 1 else []
    config = JudgeConfig(
        flags.model, flags.base_url, concurrency=flags.concurrency, attempts=flags.attempts, proxy=flags.proxy
    )
    asker = Judge(config, flags.out / "answers.jsonl")
    plan = asker.plan(questions)
    print(f"{plan.calls} calls of about {plan.tokens:,} tokens in all, {plan.cached} answers are there already")
    if flags.dry_run:
        return 0
    with tqdm(total=len(questions), unit="answer") as bar:
        answers = asker.ask(questions, lambda done, of: bar.update(done - bar.n))
    unread = [answer for answer in answers if answer.verdict is None]
    print(f"open {write_judgement(flags.out, answers)}" + (f"; {len(unread)} answers failed" if unread else ""))
    return 1 if unread else 0


def write_judgement(out: Path, answers: Sequence[Answer]) -> Path:
    """`judge.json`, `judge.md` and the page."""
    duels, scores = judge_tables.duels(answers), judge_tables.mean_scores(answers)
    faults = [{"story": a.question.story, "systems": a.question.systems, "aspect": a.question.aspect, "fault": a.fault}
              for a in answers if a.verdict is None]  # fmt: skip
    content = {
        "duels": [asdict(duel) for duel in duels],
        "scores": {system: {aspect: asdict(i) for aspect, i in own.items()} for system, own in scores.items()},
        "verdicts": judge_tables.story_verdicts(answers),
        "faults": faults,
    }
    write_text(out / "judge.json", json.dumps(content, indent=1) + "\n")
    tables = [judge_tables.duels_markdown(duels)] if duels else []
    write_text(out / "judge.md", "\n".join([*tables, judge_tables.scores_markdown(scores)]))
    return write_judge_page(out / "index.html", duels, scores, len(faults))


def human_study(arguments: Sequence[str]) -> int:
    """A page that shows pairs of stories blind and asks five questions; with --key, its answers as a table."""
    parser = _parser("study", human_study)
    parser.add_argument("inputs", nargs="+", help="NAME=FOLDER, two or more; with --key: exported answers")
    parser.add_argument("--captions", type=Path, help="a story set: texts of systems that write pictures alone")
    parser.add_argument("--key", type=Path, help="key.json of a study: read its answers back")
    parser.add_argument("--pairs", type=int, default=20, help="how many pairs people see; 0: all there are")
    parser.add_argument("--frames", type=int, default=10, help="frames shown of a story, evenly spread")
    parser.add_argument("--questions", type=Path, help="JSON object of other questions, by name")
    parser.add_argument("--name", default="stories", help="the study's name, kept in every answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    flags, _ = parser.parse_strictly(arguments)
    if flags.key:
        outputs.claim(flags.out / "study.json", flags.out / "study.md", by="report")
        results = study.read_back(flags.key, [Path(path) for path in flags.inputs])
        asked = study.read_questions(flags.key)
        write_text(flags.out / "study.json", json.dumps([asdict(result) for result in results], indent=1) + "\n")
        write_text(flags.out / "study.md", study.results_markdown(results, asked))
        print(study.results_markdown(results, asked))
        return 0
    outputs.claim(flags.out / "study.html", by="report")
    outputs.claim(flags.out / "key.json", by="study")
    systems = read_systems(flags.inputs, flags.captions)
    questions = _questions(flags.questions) if flags.questions else study.QUESTIONS
    pairs = study.make_pairs(systems, seed=flags.seed, limit=flags.pairs)
    page = write_study_page(
        flags.out / "study.html", pairs, systems, study=flags.name, questions=questions, frames=flags.frames
    )
    study.write_key(flags.out / "key.json", pairs, flags.name, questions)
    print(f"{len(pairs)} pairs in {page}; give people that file alone and keep {flags.out / 'key.json'} to yourself")
    return 0


def attention(arguments: Sequence[str]) -> int:
    """Which keys a model attends to, and the sink counts that would keep most of it."""
    parser = _parser("attention", attention)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--stories", type=Path, help="a StoryStream .jsonl; default: the workdir's validation stories")
    parser.add_argument("--image_root", type=Path)
    parser.add_argument("--num_stories", type=int, default=8)
    parser.add_argument("--length", type=int, default=0, help="frames read of a story; 0: all")
    parser.add_argument("--window", type=int, help="frames that count as recent; default: the config's")
    parser.add_argument("--out", type=Path, required=True)
    flags, _ = parser.parse_strictly(arguments)
    outputs.claim(flags.out / "attention.json", flags.out / "index.html", by="report")
    system = load(flags.workdir)
    stories = true_stories(open_dataset(system, flags.stories, flags.image_root), flags.num_stories, flags.length)
    window = flags.window or system.config.sample.window
    inputs = [(story.texts, system.encode(list(story.images))) for story in tqdm(stories, "reading", unit="story")]
    statistics = attention_statistics(system.story_model, system.tokenizer, inputs, window=window)
    content = {**asdict(statistics), "heat": np.round(statistics.heat, 6).tolist()}
    write_text(flags.out / "attention.json", json.dumps(content, indent=1) + "\n")
    print(f"open {write_attention_page(flags.out / 'index.html', statistics, window)}")
    return 0


def judge_agreement(arguments: Sequence[str]) -> int:
    """How far a judge and the people of a study agree on the same stories: Cohen's kappa by question."""
    parser = _parser("agreement", judge_agreement)
    parser.add_argument("answers", nargs="+", type=Path, help="answers that the study's page exported")
    parser.add_argument("--judge", type=Path, required=True, help="judge.json of `evaluate judge`")
    parser.add_argument("--key", type=Path, required=True, help="key.json of the study")
    parser.add_argument("--out", type=Path, required=True)
    flags, _ = parser.parse_strictly(arguments)
    found = agreement.judge_and_study(flags.judge, flags.key, flags.answers)
    write_text(flags.out / "agreement.json", json.dumps([asdict(one) for one in found], indent=1) + "\n")
    write_text(flags.out / "agreement.md", agreement.markdown(found))
    print(agreement.markdown(found))
    print(f"open {write_agreement_page(flags.out / 'index.html', found)}")
    return 0


def read_field_scores(arguments: Sequence[str]) -> int:
    """What a benchmark's own evaluators wrote, as tables and as curves by turn and policy."""
    parser = _parser("read-scores", read_field_scores)
    parser.add_argument("results", nargs="+", type=Path, help="bench_results, or MMIE's or OpenING's file of results")
    parser.add_argument("--exports", type=Path, help="where the stories were exported to: says which shots were there")
    parser.add_argument("--out", type=Path, required=True)
    flags, _ = parser.parse_strictly(arguments)
    found = read_scores(flags.results, flags.exports)
    notes = ["Turn 1 is the given one; shot 1 of the benchmark is turn 2.", *found.notes]
    section = section_of("Scores by the benchmark's own evaluators", found.measured, found.length)
    print(f"open {write_figures(flags.out, 'field_scores', 'Scored by the field', [section], notes=notes)}")
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "compare": compare,
    "judge": judge,
    "study": human_study,
    "agreement": judge_agreement,
    "read-scores": read_field_scores,
    "attention": attention,
}


def read_systems(arguments: Sequence[str], captions: Path | None = None) -> dict[str, list[StoryFolder]]:
    """Stories by system from NAME=FOLDER, ours or in a layout of others (`layouts`); UserError for anything else."""
    systems: dict[str, list[StoryFolder]] = {}
    for argument in arguments:
        name, equals, folder = argument.partition("=")
        if not equals or not name or not folder:
            raise UserError(f"{argument!r} names no system: write NAME=FOLDER, as in ours=out/stories")
        if name in systems:
            raise UserError(f"system {name!r} is given twice; names must differ")
        systems[name] = read_published(Path(folder), captions) or read_stories(Path(folder))
    return systems


def _shared(systems: dict[str, list[StoryFolder]], limit: int = 0) -> dict[str, list[StoryFolder]]:
    """Only the stories that all systems have, in one order."""
    shared = common_stories(systems)
    names = list(shared)[: limit or None]
    return {system: [shared[name][system] for name in names] for system in systems}


def _questions(path: Path) -> dict[str, str]:
    try:
        found = strict_json(read_regular(path).decode("utf-8-sig"))
    except (StoryFault, UnicodeDecodeError) as error:
        raise UserError(f"--questions={path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict) or not found or not all(isinstance(words, str) for words in found.values()):
        raise UserError(f"--questions={path} must be a JSON object of names and questions")
    return found


def _parser(name: str, command: Callable) -> cli.Parser:
    return cli.Parser(prog=f"seedstory evaluate {name}", description=command.__doc__)


if __name__ == "__main__":
    cli.tune_allocator()
    cli.run(main)
