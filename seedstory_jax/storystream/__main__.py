"""StoryStream datasets: check them, count them, cut them, build your own.

validate DIR --clean=FILE --rejects=FILE   check every line and picture
stats DIR                                  images, resolution, story and text length, histograms
chunk FILE --out=FILE                      cut stories into pieces of 10
split FILE --out=DIR                       train and validation stories, by story
pack DIR --out=DIR                         pictures into ArrayRecord shards
tokenizer FILE --out=DIR                   a tokenizer of a dataset's own words, for small models
build VIDEO ... --out=DIR                  a dataset from videos or folders of frames
features FILE --workdir=DIR --out=DIR      a trained model's image features of every picture
import FORMAT DIR --out=SET                a benchmark's data as stories for sample.py --stories
export FORMAT STORIES --set=SET --out=DIR  generated stories in a benchmark's layout
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from seedstory_jax import cli
from seedstory_jax.data.storystream import StoryDataset, jsonl_files
from seedstory_jax.errors import UserError

PROG = "seedstory data"


def _validate(arguments: Sequence[str]) -> int:
    """Check every line and every picture of a dataset; exit code 1 if anything was rejected."""
    from seedstory_jax.storystream.validate import MAX_PIXELS, validate

    parser = cli.Parser(prog=f"{PROG} validate", description=_validate.__doc__)
    parser.add_argument("source", type=Path, metavar="DIR", help="folder with *.jsonl, or one file")
    parser.add_argument("--clean", type=Path, required=True, help="JSONL of the stories without a fault")
    parser.add_argument("--rejects", type=Path, required=True, help="JSONL of {file, line, id, reason}")
    parser.add_argument("--image_root", type=Path, help="what image paths are relative to (default: DIR)")
    parser.add_argument(
        "--strict", action="store_true", help="reject oddities too: colour modes, animations, repeated ids"
    )
    parser.add_argument("--workers", type=int, help="threads (default: one a core)")
    parser.add_argument("--max_pixels", type=int, default=MAX_PIXELS, help="largest picture that is decoded")
    flags, _ = parser.parse_strictly(arguments)
    if flags.image_root and not flags.image_root.is_dir():
        raise UserError(f"--image_root={flags.image_root} is no folder")
    summary = validate(
        flags.source,
        clean=flags.clean,
        rejects=flags.rejects,
        image_root=flags.image_root,
        strict=flags.strict,
        workers=flags.workers,
        max_pixels=flags.max_pixels,
    )
    print(summary)
    return 1 if summary.rejected else 0


def _stats(arguments: Sequence[str]) -> int:
    """A dataset in numbers: the row of the paper's Table 1, and histograms."""
    from seedstory_jax.storystream.stats import as_json, as_text, stats

    parser = cli.Parser(prog=f"{PROG} stats", description=_stats.__doc__)
    parser.add_argument("source", type=Path, metavar="DIR", help="folder with *.jsonl, or one file")
    parser.add_argument("--image_root", type=Path, help="what image paths are relative to (default: DIR)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    flags, _ = parser.parse_strictly(arguments)
    numbers = stats(flags.source, image_root=flags.image_root)
    print(as_json(numbers) if flags.json else as_text(numbers))
    return 0


def _chunk(arguments: Sequence[str]) -> int:
    """Cut stories into pieces; image paths stay relative to the same root."""
    from seedstory_jax.storystream.reshape import CHUNK, chunk

    parser = cli.Parser(prog=f"{PROG} chunk", description=_chunk.__doc__)
    parser.add_argument("source", type=Path, metavar="FILE", help="JSONL, or a folder of it")
    parser.add_argument("--out", type=Path, required=True, help="JSONL to write")
    parser.add_argument("--length", type=int, default=CHUNK, help="turns of a piece (10, as published)")
    parser.add_argument("--stride", type=int, help="turns between beginnings (default: the length, no overlap)")
    parser.add_argument("--rest", action="store_true", help="keep what is left over at the end (published: dropped)")
    parser.add_argument("--keep_ids", action="store_true", help="give pieces their story's id, as the release does")
    flags, _ = parser.parse_strictly(arguments)
    count = chunk(
        flags.source, flags.out, length=flags.length, stride=flags.stride, rest=flags.rest, keep_ids=flags.keep_ids
    )
    print(f"{count:,} pieces in {flags.out}")
    return 0


def _split(arguments: Sequence[str]) -> int:
    """Divide a dataset into train.jsonl, val.jsonl (and test.jsonl) by story; the same each time."""
    from seedstory_jax.storystream.reshape import split

    parser = cli.Parser(prog=f"{PROG} split", description=_split.__doc__)
    parser.add_argument("source", type=Path, metavar="FILE", help="JSONL, or a folder of it")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files; paths in them stay as they are")
    parser.add_argument("--val", type=float, default=0.05, help="share of stories to validate on")
    parser.add_argument("--test", type=float, default=0.0, help="share of stories to test on")
    parser.add_argument("--seed", type=int, default=0)
    flags, _ = parser.parse_strictly(arguments)
    shares = {"train": 1 - flags.val - flags.test, "val": flags.val, "test": flags.test}
    outs = {flags.out / f"{name}.jsonl": share for name, share in shares.items() if share != 0 or name == "train"}
    for path, count in split(flags.source, outs, seed=flags.seed).items():
        print(f"{count:>9,}  {path}")
    return 0


def _pack(arguments: Sequence[str]) -> int:
    """Copy pictures into ArrayRecord shards, with the JSONL files, under their names, that name them."""
    from itertools import islice

    from seedstory_jax.data.sources import pack_images
    from seedstory_jax.storystream.lines import write_jsonl

    parser = cli.Parser(prog=f"{PROG} pack", description=_pack.__doc__)
    parser.add_argument("source", type=Path, metavar="DIR", help="folder with *.jsonl, or one file")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards and the JSONL files, a new one")
    parser.add_argument("--image_root", type=Path, help="what image paths are relative to (default: DIR)")
    parser.add_argument("--images_per_shard", type=int, default=8192)
    flags, _ = parser.parse_strictly(arguments)
    if flags.out.exists():
        raise UserError(f"--out={flags.out} exists: name a new folder")
    dataset = StoryDataset(flags.source, flags.image_root)
    counts = {
        file.name.removesuffix(".gz"): len(StoryDataset(file, dataset.image_root)) for file in jsonl_files(flags.source)
    }
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=flags.out.parent, prefix=f".{flags.out.name}.") as partial:
        beside = Path(partial) / flags.out.name
        beside.mkdir()
        records = pack_images(dataset, beside, images_per_shard=flags.images_per_shard)
        for name, count in counts.items():
            packed = (record for record in islice(records, count) if record is not None)
            print(f"{write_jsonl(beside / name, packed):,} stories in {flags.out / name}")
        next(records, None)  # closes the last shard, says what was left out
        beside.replace(flags.out)
    return 0


def _tokenizer(arguments: Sequence[str]) -> int:
    """Train a tokenizer on a dataset's captions: for small models that are trained from nothing."""
    from seedstory_jax.data.text_tokenizer import train_tokenizer

    parser = cli.Parser(prog=f"{PROG} tokenizer", description=_tokenizer.__doc__)
    parser.add_argument("source", type=Path, metavar="FILE", help="JSONL, or a folder of it")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tokenizer, a new one")
    parser.add_argument("--vocab_size", type=int, default=4096, help="most tokens, the 66 of images not counted")
    flags, _ = parser.parse_strictly(arguments)
    if flags.out.exists():
        raise UserError(f"--out={flags.out} exists: name a new folder")
    tokenizer = train_tokenizer(StoryDataset(flags.source).captions(), flags.out, vocab_size=flags.vocab_size)
    print(f"{len(tokenizer)} tokens in {flags.out}; train with --config.model.story.llama.vocab_size={len(tokenizer)}")
    return 0


def _build(arguments: Sequence[str]) -> int:
    """Build a dataset from videos or folders of frames (--help shows all flags)."""
    from seedstory_jax.storystream.build.command import main as build

    return build(arguments)


def _features(arguments: Sequence[str]) -> int:
    """Image features of every picture, from the ViT of a trained workdir."""
    from seedstory_jax.storystream.features import main as features

    return features(arguments)


def _import(arguments: Sequence[str]) -> int:
    """A benchmark's data as a set of stories (--help shows all flags)."""
    from seedstory_jax.storystream.benchmarks.command import import_main

    return import_main(arguments)


def _export(arguments: Sequence[str]) -> int:
    """Generated stories in a benchmark's layout (--help shows all flags)."""
    from seedstory_jax.storystream.benchmarks.command import export_main

    return export_main(arguments)


COMMANDS = {
    "validate": _validate,
    "stats": _stats,
    "chunk": _chunk,
    "split": _split,
    "pack": _pack,
    "build": _build,
    "tokenizer": _tokenizer,
    "features": _features,
    "import": _import,
    "export": _export,
}


def main(arguments: Sequence[str]) -> int:
    """Run a sub-command; its exit code."""
    from seedstory_jax.config import nearest

    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(__doc__)
        return 0
    if arguments[0] not in COMMANDS:
        raise UserError(f"unknown command {arguments[0]!r}: {nearest(arguments[0], list(COMMANDS))}")
    return COMMANDS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    cli.run(main)
