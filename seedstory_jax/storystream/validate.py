"""Check every line and every picture of a StoryStream folder.

A story with a fault is rejected; oddities (unusual colour modes, animations, ids that stand twice) are warned about and
rejected only with `strict`. What is known of each line goes to a journal beside the clean file as soon as it is known,
so an interrupted run goes on where it stopped.
"""

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seedstory_jax import outputs
from seedstory_jax.data.images import MAX_PIXELS, examine, shape_fault
from seedstory_jax.data.names import FileFault, path_below, read_regular
from seedstory_jax.data.storystream import StoryFault, iter_lines, jsonl_files, parse_story, whole_line
from seedstory_jax.data.text_tokenizer import MARKERS
from seedstory_jax.errors import UserError
from seedstory_jax.storystream.lines import written_whole

CACHED_IMAGES = 65_536
HIDDEN = ("Cc", "Cf", "Co", "Zl", "Zp")  # control, format (bidi, zero-width), private use, line separators
GENERAL = {
    "a side is shorter than 128": "a side is shorter than 128",
    "the ratio": "the ratio is outside [0.2, 5]",
    "absolute path": "absolute path",
    "path with '..'": "path with '..'",
    "by a symlink": "leads out of the image root by a symlink",
    "invalid JSON": "invalid JSON",
    "pixels, more than": "more pixels than allowed",
    "truncated or damaged": "is truncated or damaged",
    "invisible characters": "invisible characters in a caption",
    "read as plain words": "a story's markers in a caption",
}  # reasons without their numbers, for the summary, by what tells them


@dataclass(frozen=True)
class Verdict:
    """What is wrong with one line; faults reject it, oddities only under `strict`."""

    file: str
    line: int
    id: int | str | None
    images: int = 0
    faults: tuple[str, ...] = ()
    oddities: tuple[str, ...] = ()


@dataclass
class Summary:
    """The outcome of a validation."""

    stories: int = 0
    images: int = 0
    clean: int = 0
    rejected: int = 0
    warned: int = 0
    reasons: Counter = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [
            f"{self.stories:,} stories with {self.images:,} images: {self.clean:,} clean, {self.rejected:,} rejected, "
            f"{self.warned:,} with a warning"
        ]
        lines += [f"{count:>10,}  {reason}" for reason, count in self.reasons.most_common(20)]
        return "\n".join(lines)


def check_image(root: Path, name: str, max_pixels: int = MAX_PIXELS) -> tuple[str | None, tuple[str, ...]]:
    """(why a picture cannot be used or None, oddities), as training finds it: read and decoded by the same functions.

    Beyond that, a picture too small or too elongated to train on is faulty.
    """
    try:
        image, odd = examine(read_regular(path_below(root, name)), name, max_pixels=max_pixels)
    except FileFault as fault:
        return fault.reason, ()
    return shape_fault(*image.size), odd


def check_line(file: str, number: int, line: bytes | None, check) -> Verdict:
    """The verdict on one line; `check(name)` judges a picture."""
    try:
        story = parse_story(whole_line(line), min_images=2)
    except StoryFault as fault:
        return Verdict(file, number, _id_of(line), faults=(str(fault),))
    faults, oddities = [], []
    for place, name in enumerate(story.images):
        fault, odd = check(name)
        if fault:
            faults.append(f"image {place} ({name}): {fault}")
        oddities += [f"image {place} ({name}): {words}" for words in odd]
    for place, caption in enumerate(story.captions):
        oddities += [f"caption {place}: {words}" for words in odd_text(caption)]
    return Verdict(file, number, story.id, len(story.images), tuple(faults), tuple(oddities))


def odd_text(caption: str) -> list[str]:
    """What a reader does not see as it is: invisible characters, and words that look like a story's structure."""
    found = []
    hidden = {f"U+{ord(letter):04X}" for letter in caption if unicodedata.category(letter) in HIDDEN}
    if hidden:
        found.append(f"invisible characters {', '.join(sorted(hidden)[:5])}")
    marker = next((marker for marker in MARKERS if marker in caption), None)
    if marker:
        found.append(f"the marker {marker!r}, which is read as plain words")
    return found


def _id_of(line: bytes | None) -> int | str | None:
    try:
        found = json.loads(line or b"null")
        return found["id"] if isinstance(found, dict) and isinstance(found["id"], int | str) else None
    except (ValueError, KeyError, RecursionError):
        return None


def _without_numbers(reason: str) -> str:
    """A reason without its place, file and numbers, for the summary's counts."""
    head, found, tail = reason.partition("): ")
    words = tail if found and head.startswith("image ") else reason
    for general, short in GENERAL.items():
        if general in words:
            return short
    return words


class Journal:
    """Verdicts on disk, one a line, in no particular order; begun anew if the files or the settings changed."""

    def __init__(self, path: Path, about: dict[str, Any]):
        self.path = path
        self.verdicts: dict[tuple[str, int], Verdict] = {}
        header = json.dumps(about, sort_keys=True)
        kept = []
        if path.exists():
            if not path.is_file():
                raise UserError(f"{path} is in the way: the journal of this run is to be that file")
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
            if '"max_pixels": ' not in lines[0] or '"root": ' not in lines[0]:
                raise UserError(f"{path} is no journal of `validate`: move it away or name another clean file")
            if lines[0] == header:
                for text in lines[1:]:
                    try:
                        record = json.loads(text)
                        record |= {"faults": tuple(record["faults"]), "oddities": tuple(record["oddities"])}
                        verdict = Verdict(**record)
                    except (ValueError, KeyError, TypeError):
                        continue  # the line that was being written when the run stopped
                    self.verdicts[verdict.file, verdict.line] = verdict
                    kept.append(text)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([header, *kept]) + "\n", encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def add(self, verdict: Verdict) -> None:
        """Keep a verdict."""
        self.verdicts[verdict.file, verdict.line] = verdict
        self._file.write(json.dumps(asdict(verdict)) + "\n")

    def flush(self) -> None:
        """Make sure that what was added survives the process."""
        self._file.flush()

    def close(self, *, remove: bool) -> None:
        """End; with `remove` the journal has done its work."""
        self._file.close()
        if remove:
            self.path.unlink()


def validate(
    folder: Path,
    *,
    clean: Path,
    rejects: Path,
    image_root: Path | None = None,
    strict: bool = False,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: bool = True,
) -> Summary:
    """Check the stories of every *.jsonl in a folder (or of one file); write the clean lines and the rejects.

    Image paths are relative to the folder or to image_root. Clean lines keep their bytes and order; rejects are
    {"file", "line", "id", "reason"}. A clean or rejects file of an earlier run inside the folder is not read as input.
    Raises UserError if there is no JSONL file, and if a file to write is one that is read, or somebody else's.
    """
    folder, outs = Path(folder), [clean, rejects]
    files = [
        file
        for file in jsonl_files(folder)
        if not (
            file.resolve() in {out.resolve() for out in outs}
            and folder.is_dir()
            and outputs.is_written(file, "validate")
        )
    ]
    outputs.claim(*outs, by="validate", inputs=files)
    root = Path(image_root) if image_root is not None else (folder if folder.is_dir() else folder.parent)
    workers = workers or os.cpu_count() or 1
    about = {
        "root": str(root.resolve()),
        "max_pixels": max_pixels,
        "files": [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files],
    }
    journal = Journal(clean.with_name(clean.name + ".journal"), about)
    try:
        _judge(files, root, journal, workers, max_pixels, progress)
        summary = _write(files, journal, clean, rejects, strict)
    except BaseException:
        journal.close(remove=False)
        raise
    journal.close(remove=True)
    return summary


def _judge(files: list[Path], root: Path, journal: Journal, workers: int, max_pixels: int, progress: bool) -> None:
    check = lru_cache(CACHED_IMAGES)(lambda name: check_image(root, name, max_pixels))
    total = sum(file.stat().st_size for file in files)
    bar = tqdm(total=total, unit="B", unit_scale=True, desc="validate", mininterval=1.0, disable=not progress)
    with ThreadPoolExecutor(workers) as pool, bar:
        waiting: list[tuple[Future, int]] = []

        def finish(count: int) -> None:
            for future, size in waiting[:count]:
                journal.add(future.result())
                bar.update(size)
            journal.flush()
            del waiting[:count]

        try:
            for file in files:
                for number, line in iter_lines(file):
                    if (file.name, number) in journal.verdicts:
                        bar.update(len(line or b""))
                        continue
                    waiting.append((pool.submit(check_line, file.name, number, line, check), len(line or b"")))
                    if len(waiting) >= 8 * workers:
                        finish(4 * workers)
            finish(len(waiting))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _write(files: list[Path], journal: Journal, clean: Path, rejects: Path, strict: bool) -> Summary:
    summary, seen = Summary(), set()
    by = "validate"
    with written_whole(clean, by=by) as clean_file, written_whole(rejects, by=by) as rejects_file:
        for file, number, line in _all_lines(files):
            verdict = journal.verdicts[file.name, number]
            oddities = list(verdict.oddities)
            if not verdict.faults and str(verdict.id) in seen:  # 7 and "7" make one folder
                oddities.append(f"the id {verdict.id!r} stands more than once")
            seen.add(str(verdict.id))
            summary.stories += 1
            summary.images += verdict.images
            reasons = [*verdict.faults, *(oddities if strict else ())]
            if reasons:
                summary.rejected += 1
                more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
                record = {"file": file.name, "line": number, "id": verdict.id, "reason": "; ".join(reasons[:3]) + more}
                rejects_file.write(json.dumps(record) + "\n")
            else:
                summary.clean += 1
                summary.warned += bool(oddities)
                clean_file.write(line.decode("utf-8").rstrip("\r\n") + "\n")
            kinds = {_without_numbers(reason) for reason in reasons}
            kinds |= set() if strict else {f"warning: {_kind_of(reason)}" for reason in oddities}
            summary.reasons.update(kinds)
    return summary


def _kind_of(oddity: str) -> str:
    return "the id stands more than once" if oddity.startswith("the id") else _without_numbers(oddity)


def _all_lines(files: list[Path]) -> Iterator[tuple[Path, int, bytes | None]]:
    for file in files:
        for number, line in iter_lines(file):
            yield file, number, line
