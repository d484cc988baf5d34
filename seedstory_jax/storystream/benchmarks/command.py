"""`storystream import` and `storystream export`: flags in, one call."""

from collections.abc import Sequence
from pathlib import Path

from seedstory_jax import cli
from seedstory_jax.errors import UserError
from seedstory_jax.storystream.benchmarks import FORMATS, format_of
from seedstory_jax.storystream.benchmarks.exports import METHOD, export_benchmark
from seedstory_jax.storystream.benchmarks.story_set import MAX_WORDS, SKIPPED, STORIES, Options, write_set

PROG = "seedstory data"


def import_main(arguments: Sequence[str]) -> int:
    """A benchmark's data as a set of stories that sample.py --stories takes."""
    parser = cli.Parser(prog=f"{PROG} import", description=import_main.__doc__)
    parser.add_argument("format", metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("source", type=Path, metavar="DIR", help="the benchmark's data")
    parser.add_argument("--out", type=Path, required=True, help="folder of the set, a new one")
    parser.add_argument("--given", type=int, default=0, help="most given turns that are kept (0: all)")
    parser.add_argument("--max_words", type=int, default=MAX_WORDS, help="of a caption, cut at a sentence (0: whole)")
    parser.add_argument("--tasks", default="", help="names of tasks, by comma, or all (default: those of stories)")
    parser.add_argument("--pictures", type=Path, help="first pictures of stories that have none, by story name")
    parser.add_argument("--language", default="en", help="en or ch (vistorybench)")
    parser.add_argument("--fields", default="plot", help="plot or all: what a caption says (vistorybench)")
    parser.add_argument("--references", default="all", help="all characters' pictures are given, or one (vistorybench)")
    parser.add_argument("--split", default="full", help="full or lite (vistorybench)")
    flags, _ = parser.parse_strictly(arguments)
    module = format_of(flags.format)
    if not flags.source.exists():
        raise UserError(f"{flags.source} does not exist: give the folder of {flags.format}'s data")
    if flags.pictures and not flags.pictures.is_dir():
        raise UserError(f"--pictures={flags.pictures} is no folder")
    options = Options(
        language=flags.language,
        fields=flags.fields,
        references=flags.references,
        split=flags.split,
        tasks=tuple(task.strip() for task in flags.tasks.split(",") if task.strip()),
        pictures=flags.pictures,
    )
    counts = write_set(module.read(flags.source, options), flags.out, max_words=flags.max_words, given=flags.given)
    print(f"{counts.written} stories in {flags.out / STORIES}", end="")
    print(f"; {counts.skipped} cannot begin (see {flags.out / SKIPPED})" if counts.skipped else "", end="")
    print(f"; {counts.cut} captions cut to {flags.max_words} words" if counts.cut else "")
    print(
        f"the longest has {counts.longest} turns: sample.py --stories={flags.out / STORIES} --length={counts.longest}"
    )
    return 0


def export_main(arguments: Sequence[str]) -> int:
    """Generated stories in a benchmark's own layout of outputs."""
    parser = cli.Parser(prog=f"{PROG} export", description=export_main.__doc__)
    parser.add_argument("format", metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("generated", type=Path, metavar="STORIES", help="the --out of sample.py --stories")
    parser.add_argument("--set", type=Path, required=True, help="the imported set that they were generated from")
    parser.add_argument("--out", type=Path, required=True, help="its outputs; the run is a new folder in it")
    parser.add_argument("--method", default=METHOD, help="the system's name")
    parser.add_argument("--mode", help="the run's name (default: the policy, and how the set was made)")
    parser.add_argument("--time", help="YYYYMMDD_HHMMSS (default: now)")
    flags, _ = parser.parse_strictly(arguments)
    done = export_benchmark(
        flags.format, flags.generated, flags.set, flags.out, method=flags.method, mode=flags.mode, time=flags.time
    )
    print(f"{done.stories} stories, {done.shots} turns in {done.folder}", end="")
    print(f"; missing: {done.missing_stories} stories and {done.missing_shots} turns of the others")
    return 0
