"""Mutated inputs of every kind that people hand around: each ends in its right answer or in a clear error.

SEED chooses the mutations (any number), CASES how many a kind (40, which a walk runs; 500 for all). What counts: a
clear error is a one-line UserError (or StoryFault, BadNarrative); a traceback is any other exception; a hang takes more
than 20 s; a silent acceptance is an answer that an independent reading of the same input does not give.
"""

import copy
import io
import json
import os
import re
import signal
import traceback
import warnings
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image, ImageOps

from seedstory_jax.data.images import decode_image
from seedstory_jax.data.storystream import Story, StoryDataset, StoryFault, parse_story
from seedstory_jax.errors import UserError
from seedstory_jax.evaluation.judge import Question, read_answer
from seedstory_jax.evaluation.stories import StoryFolder, read_stories
from seedstory_jax.evaluation.study import QUESTIONS, make_pairs, read_back, write_key
from seedstory_jax.report.study_page import write_study_page
from seedstory_jax.storystream.build.narrate import BadNarrative, read_narrative
from seedstory_jax.storystream.validate import check_image

SEED, CASES, LIMIT = int(os.environ.get("SEED", "0")), int(os.environ.get("CASES", "40")), 20
CLEAR = (UserError, StoryFault, BadNarrative)
TEXTS = [
    "",
    " ",
    "a",
    "[INST]",
    "<img>",
    "</s>",
    "\u202ex",
    "\u200b",
    "a\r\nb",
    "\ufeffa",
    "a\u2028b",
    "x\0",
    "😀",
    "<script>",
]
TEXTS += ["word " * 10_000, "..", "/etc/passwd", "../../x", "a|b", "[[A]]", "NaN", "C:\\x", "a" * 300, "%s{0}$x"]
VALUES = [None, True, False, 0, 1, -1, 10**40, 1.5, -0.0, [], {}, [[]], {"a": 1}, *TEXTS]


class Silent(Exception):
    """An answer was given that the input does not say."""


def same(found, right) -> None:
    if found != right:
        raise Silent(f"{str(found)[:100]} in place of {str(right)[:100]}")


def places(value, path=()):
    """Every place in a JSON value, as a path of keys."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def mutate_json(rng, value):
    """A copy with some places replaced, removed, doubled or exchanged."""
    value = copy.deepcopy(value)
    for _ in range(rng.integers(1, 4)):
        spots = [path for path in places(value) if path]
        if not spots:
            break
        *way, last = spots[rng.integers(len(spots))]
        inner = value
        for key in way:
            inner = inner[key]
        what = rng.integers(4)
        if what == 0:
            del inner[last]
        elif what == 1 and isinstance(inner, list):
            inner.insert(last, copy.deepcopy(inner[last]))
        else:
            inner[last] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
    return value


def mutate_bytes(rng, data: bytes) -> bytes:
    """Bits flipped, bytes replaced, cut, doubled or put in."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        if not data:
            break
        place, what = int(rng.integers(len(data))), rng.integers(6)
        if what == 0:
            data[place] ^= 1 << int(rng.integers(8))
        elif what == 1:
            data[place] = int(rng.integers(256))
        elif what == 2:
            del data[place:]
        elif what == 3:
            del data[place : place + int(rng.integers(1, 9))]
        elif what == 4:
            data[place:place] = data[place : place + int(rng.integers(1, 50))]
        else:
            odd = [
                b"\0",
                b"\xff",
                b"\xef\xbb\xbf",
                b"\r\n",
                b"\n",
                b'"',
                b"{}",
                b"NaN",
                b"\\ud800",
                b"9" * 5000,
                b"\x1f\x8b",
            ]
            data[place:place] = odd[rng.integers(len(odd))]
    return bytes(data)


def either(rng, value) -> bytes:
    """A JSON value's text, mutated in its structure, its bytes, both, or not at all."""
    what = rng.integers(4)
    if what == 3:
        return json.dumps(value, ensure_ascii=bool(rng.integers(2))).encode()
    text = json.dumps(mutate_json(rng, value) if what else value, ensure_ascii=bool(rng.integers(2)))
    data = text.encode("utf-8", "surrogatepass")
    return mutate_bytes(rng, data) if what != 1 else data


# The kinds: each makes one mutated input in `folder`, reads it, and compares with a reading of its own.


def jsonl(rng, folder):
    story = {
        "id": "s1",
        "images": ["a/0.png", "1.png"],
        "captions": ["one", "two"],
        "orders": [0, 1],
        "more": {"x": 1.5},
    }
    odd = [text for text in TEXTS if text.strip()]
    story["captions"] = [odd[number] for number in rng.integers(len(odd), size=2)]
    data = either(rng, story)
    (folder / "a.jsonl").write_bytes(data + b"\n")
    found = StoryDataset(folder).stories
    same([parse_story(line) for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if _is_story(line)], found)
    for story in found:
        if not all(isinstance(text, str) and text.strip() for text in story.captions):
            raise Silent(f"captions {story.captions}")
        for name in story.images:
            if os.path.isabs(name) or ".." in re.split(r"[\\/]", name) or "\0" in name:
                raise Silent(f"picture {name!r}")
    if len(found) == 1 and data.count(b"\n") == 0:
        record = json.loads(data.removeprefix(b"\xef\xbb\xbf"))
        same(found[0], Story(record["id"], tuple(record["images"]), tuple(record["captions"])))


def _is_story(line: bytes) -> bool:
    try:
        return parse_story(line) is not None
    except StoryFault:
        return False


MODES = ["RGB", "L", "RGBA", "LA", "P", "CMYK", "1", "I;16", "F"]
SAVED = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "PPM": "ppm"}


def pictures(rng, folder):
    pixels = np.kron(rng.integers(0, 256, (7, 8, 3)), np.ones((20, 20, 1))).astype(np.uint8)
    format, mode, exif = list(SAVED)[rng.integers(7)], MODES[rng.integers(len(MODES))], Image.Exif()
    exif[0x0112] = int(rng.integers(10))
    image = Image.fromarray(pixels)
    image = image.convert("L").convert(mode) if mode in ("I;16", "F") else image.convert(mode)
    data = io.BytesIO()
    try:
        image.save(data, format, **({"exif": exif} if format in ("PNG", "JPEG", "WEBP", "TIFF") else {}))
    except (OSError, ValueError):  # a format that has no such mode
        image.convert("RGB").save(data, format)
    data, name = data.getvalue(), f"x.{SAVED[format]}"
    damaged = mutate_bytes(rng, data) if rng.integers(2) else data
    (folder / name).write_bytes(damaged)
    (folder / "a.jsonl").write_text(json.dumps({"id": 1, "images": [name], "captions": ["a"]}))
    dataset = StoryDataset(folder)
    fault, _ = check_image(folder, name)
    try:
        found = dataset.picture(dataset[0], 0)
    except UserError:
        if fault is None:
            raise Silent("validate calls clean what training cannot read") from None
        raise
    if fault is not None and "a side is shorter" not in fault and "the ratio" not in fault:
        raise Silent(f"validate says {fault!r} of what training reads")
    same(found.mode, "RGB")
    with Image.open(io.BytesIO(damaged)) as opened:
        plain = opened.mode in ("RGB", "L", "1", "P", "CMYK") and "transparency" not in opened.info
        seen = ImageOps.exif_transpose(opened) if plain else None
        if seen is not None:
            same((found.size, found.tobytes()), (seen.size, seen.convert("RGB").tobytes()))


def stories(rng, folder):
    Image.new("RGB", (8, 8), (9, 9, 9)).save(folder / "0.png")
    (folder / "secret.txt").write_text("secret")
    (folder / "s").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "s" / "0.png")
    frames = [
        {"index": n, "text": f"text {n}", "image": "0.png", "source": "prompt", "kept": [["window", 0, 3]]}
        for n in (0, 1)
    ]
    names = ["../0.png", "/etc/passwd", "../secret.txt", "story.json", ".", "s", "0.png/x", "none.png", "0.png"]
    story = {"id": "s", "policy": "window", "frames": frames, "timing": {"llm_s": [1.0]}}
    if rng.integers(2):
        story["frames"][rng.integers(2)]["image"] = names[rng.integers(len(names))]
    data = either(rng, story) if rng.integers(3) else json.dumps(story).encode()
    (folder / "s" / "story.json").write_bytes(data)
    (found,) = read_stories(folder / "s")
    record = json.loads(data.removeprefix(b"\xef\xbb\xbf"))
    same(found.texts, tuple(str(frame["text"]) for frame in record["frames"]))
    for path in found.images:
        if path is not None and not path.resolve().is_relative_to((folder / "s").resolve()):
            raise Silent(f"{path} lies outside")
    found.pictures()
    other = StoryFolder(found.name, ("x",), (None,))
    page = write_study_page(
        folder / "page.html", make_pairs({"a": [found], "b": [other]}), {"a": [found], "b": [other]}, study="s"
    )
    text = page.read_text(encoding="utf-8")
    same((text.count("<script>"), b"secret" in page.read_bytes(), "onerror" in text), (1, False, False))


def judge_answers(rng, folder):
    marks = [
        "[[A]]",
        "[[B]]",
        "[[C]]",
        "[[ A ]]",
        "[[7]]",
        "[[7.5/10]]",
        "[[11]]",
        "[[-1]]",
        "[[\u0667]]",
        "[[" + "9" * 400 + "]]",
        "[[D]]",
        "[A]",
    ]
    text = "".join([*TEXTS, *marks][i] for i in rng.integers(len(TEXTS) + len(marks), size=rng.integers(1, 6)))
    if rng.integers(4) == 0:
        text = mutate_bytes(rng, text.encode()).decode("utf-8", "replace")
    compare = read_answer(Question("compare", "style", "s", ("x", "y"), ()), text)
    ends = [match.start() for match in re.finditer(r"(?=\]\])", text)]
    shown = [text[text.rfind("[[", 0, end) + 2 : end].strip() for end in ends if "[[" in text[:end]]
    letters = [one for one in shown if one in ("A", "B", "C")]
    same(compare, {"A": "x", "B": "y", "C": "tie"}[letters[-1]] if letters else None)
    score = read_answer(Question("score", "style", "s", ("x",), ()), text)
    if score is not None and not 0 <= score <= 10:
        raise Silent(f"score {score}")
    moments = [{"frame": n, "text": f"text {n}"} for n in (1, 2, 3)]
    answer = either(rng, moments).decode("utf-8", "replace")
    texts = read_narrative(answer, 3)
    if len(texts) != 3 or any(not one or "\n" in one or "<img" in one for one in texts):
        raise Silent(f"{texts}")


def study_answers(rng, folder):
    systems = {name: [StoryFolder(f"s{n}", ("a",), (None,)) for n in range(2)] for name in ("x", "y")}
    pairs = make_pairs(systems)
    write_key(folder / "key.json", pairs, "study", QUESTIONS)
    choices = ["left", "right", "same"]
    given = {str(pair.number): {q: choices[rng.integers(3)] for q in QUESTIONS} for pair in pairs}
    answers = {"study": "study", "person": "p", "answers": given}
    data = either(rng, answers)
    if rng.integers(3):
        (folder / "p.json").write_bytes(data)
    else:
        (folder / "key.json").write_bytes(either(rng, json.loads((folder / "key.json").read_text())))
        (folder / "p.json").write_text(json.dumps(answers))
    results = read_back(folder / "key.json", [folder / "p.json"])
    record = json.loads((folder / "p.json").read_bytes().removeprefix(b"\xef\xbb\xbf"))
    for result in results:
        same(result.people, 1)
        total = result.first.mean + result.second.mean + result.same.mean
        if abs(total - 1) > 1e-6:
            raise Silent(f"shares sum to {total}")
        if not any(result.question in one for one in record["answers"].values()):
            raise Silent(f"nobody answered {result.question!r}")


KINDS = {one.__name__: one for one in (jsonl, pictures, stories, judge_answers, study_answers)}


class Hang(BaseException):
    """Longer than the limit; no `except Exception` takes it."""


@contextmanager
def limited(seconds: int):
    def stop(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(kind, number, folder) -> tuple[str, str]:
    """(what one mutated input ended in, the story of it where it is a fault)."""
    rng = np.random.default_rng([SEED, list(KINDS).index(kind), number])
    try:
        with limited(LIMIT), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            KINDS[kind](rng, folder)
        return "right answer", ""
    except CLEAR as error:
        return ("clear error", "") if str(error) and "\n" not in str(error) else ("traceback", f"many lines: {error!r}")
    except Silent as error:
        return "silent acceptance", str(error)
    except Hang:
        return "hang", ""
    except Exception:
        return "traceback", traceback.format_exc(limit=-3)


@pytest.mark.walk
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_inputs_end_in_the_right_answer_or_a_clear_error(kind, tmp_path):
    counts, faults = Counter(), []
    for number in range(CASES):
        folder = tmp_path / str(number)
        folder.mkdir()
        ended, story = outcome(kind, number, folder)
        counts[ended] += 1
        if ended not in ("right answer", "clear error"):
            faults.append(f"SEED={SEED} {kind} {number}: {ended}: {story}")
    print(f"SEED={SEED} {kind}: " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    assert not faults, "\n".join(faults[:10]) + f"\n{len(faults)} of {CASES}"
    assert len(counts) == 2, f"{dict(counts)}: the mutations are too weak or too strong to show anything"


def test_the_harness_sees_what_it_counts(tmp_path, monkeypatch):
    """A reader with each of the faults is found out."""

    def waits(rng, folder):
        signal.pause()

    faulty = {
        "traceback": lambda rng, folder: {}["key"],
        "silent acceptance": lambda rng, folder: same(1, 2),
        "clear error": lambda rng, folder: decode_image(b"", "it"),
        "hang": waits,
        "right answer": lambda rng, folder: None,
    }
    monkeypatch.setitem(globals(), "LIMIT", 1)
    for ended, reader in faulty.items():
        monkeypatch.setitem(KINDS, "jsonl", reader)
        assert outcome("jsonl", 0, tmp_path)[0] == ended
