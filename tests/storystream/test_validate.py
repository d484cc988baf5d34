import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seedstory_jax.storystream import validate as module
from seedstory_jax.storystream.__main__ import main
from seedstory_jax.storystream.validate import check_image, validate


@pytest.fixture
def root(tmp_path):
    """A folder with good pictures 0.png .. 3.png."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (130, 140, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


def story(*images, **changes):
    images = list(images) or ["0.png", "1.png"]
    return {"id": 1, "images": images, "captions": ["words"] * len(images)} | changes


def run(root, lines, strict=False, name="stories.jsonl", **options):
    text = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    (root / name).write_bytes(text)
    out = root.parent
    clean, rejects = out / "clean.jsonl", out / "rejects.jsonl"
    summary = validate(root, clean=clean, rejects=rejects, strict=strict, progress=False, workers=2, **options)
    return (
        summary,
        [json.loads(line) for line in clean.read_text().splitlines()],
        [json.loads(line) for line in rejects.read_text().splitlines()],
    )


def bomb(path: Path) -> None:
    """A PNG whose header promises 30,000 x 30,000 pixels."""

    def part(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", b"") + part(b"IEND", b""))


def test_clean_lines_keep_their_bytes(root):
    line = b'{"id": "x",  "images": ["0.png", "1.png"], "captions": ["a \xc3\xa9", "b"], "orders": [0, 1]}'
    summary, clean, rejects = run(root, [line])
    assert (root.parent / "clean.jsonl").read_bytes() == line + b"\n"
    assert summary.clean == 1 and summary.images == 2 and not rejects and clean[0]["orders"] == [0, 1]
    assert sorted(path.name for path in root.parent.iterdir()) == [
        ".written-by-seedstory",
        "clean.jsonl",
        "data",
        "rejects.jsonl",
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (story(captions=["one"]), "2 images but 1 captions"),
        (story("0.png"), "fewer than 2"),
        (story("0.png", "none.png"), "image 1 (none.png): does not exist"),
        (story("0.png", "empty.png"), "image 1 (empty.png): is empty"),
        (story("0.png", "cut.png"), "truncated or damaged"),
        (story("0.png", "cut.jpg"), "truncated or damaged"),
        (story("0.png", "text.png"), "is not a picture"),
        (story("0.png", "page.eps"), "is not a picture"),
        (story("0.png", "small.png"), "a side is shorter than 128"),
        (story("0.png", "long.png"), "the ratio"),
        (story("0.png", "/etc/hostname"), "absolute path"),
        (story("0.png", "../data/1.png"), "path with '..'"),
        (story("0.png", "out.png"), "by a symlink"),
        (story("0.png", "outdir/x.png"), "by a symlink"),
        (story("0.png", "loop.png"), "cannot be opened"),
        (story("0.png", "pipe.png"), "is no regular file"),
        (story("0.png", "folder.png"), "is no regular file"),
        (story("0.png", "bomb.png"), "more than 64,000,000"),
        (story("0.png", "x" * 5000), "cannot be opened"),
        (story("0.png", "0.png/1.png"), "cannot be opened"),
        (story(captions=["a", "  "]), "caption 1 is empty"),
        (story(captions=["a", 5]), "no text"),
        (story(captions=["a", "\ud800"]), "half a surrogate pair"),
        ({"images": ["0.png"] * 2, "captions": ["a"] * 2}, "missing key 'id'"),
        ({"id": 4, "captions": ["a"] * 2}, "missing key 'images'"),
        ({"id": 4, "images": ["0.png"] * 2}, "missing key 'captions'"),
        (story(id=True), "the id must be a number or a text"),
        (story(images="0.png"), "images and captions must be lists"),
        (story(images=["0.png", 7]), "image 1 is no path"),
        (story("0.png", "1.png\0"), "holds a zero byte"),
        (story("0.png", "..\\1.png"), "path with '..'"),
        (story("0.png", "C:\\1.png"), "absolute path"),
        (b'{"id": 1, "images": ["\xff"]}', "invalid UTF-8"),
        (b'{"id": 1, "images', "invalid JSON"),
        (b"[" * 200_000, "invalid JSON"),
        (b"7", "must be a JSON object"),
        (b" " * 100 + b"x" * (17 * 2**20), "longer than 16 MiB"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_faults_are_rejected_and_never_stop_it(root, tmp_path, line, reason):
    good = (root / "0.png").read_bytes()
    (root / "empty.png").write_bytes(b"")
    (root / "cut.png").write_bytes(good[: len(good) // 2])
    Image.open(root / "0.png").save(root / "whole.jpg")
    (root / "cut.jpg").write_bytes((root / "whole.jpg").read_bytes()[:3000])
    (root / "text.png").write_text("no picture")
    (root / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 200 200\n")
    Image.new("RGB", (127, 200)).save(root / "small.png")
    Image.new("RGB", (130, 700)).save(root / "long.png")
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (130, 130)).save(tmp_path / "elsewhere" / "x.png")
    (root / "out.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    (root / "outdir").symlink_to(tmp_path / "elsewhere")
    (root / "loop.png").symlink_to(root / "loop.png")
    os.mkfifo(root / "pipe.png")
    (root / "folder.png").mkdir()
    bomb(root / "bomb.png")
    summary, clean, rejects = run(root, [story(id=5), line, story("2.png", "3.png", id=6)])
    assert [record["id"] for record in clean] == [5, 6]
    assert (summary.clean, summary.rejected) == (2, 1)
    (reject,) = rejects
    assert reject["file"] == "stories.jsonl" and reject["line"] == 2 and reason in reject["reason"]
    assert sorted(reject) == ["file", "id", "line", "reason"]


def make_odd(root):
    picture = Image.open(root / "0.png")
    picture.convert("CMYK").save(root / "cmyk.jpg")
    picture.convert("P").save(root / "palette.png")
    picture.convert("RGBA").save(root / "alpha.png")
    Image.fromarray(np.zeros((130, 130), np.uint16)).save(root / "deep.png")
    picture.save(root / "moving.gif", save_all=True, append_images=[Image.open(root / "1.png")])


@pytest.mark.parametrize("name", ["cmyk.jpg", "palette.png", "alpha.png", "deep.png", "moving.gif"])
def test_oddities_warn_and_strict_rejects(root, name):
    make_odd(root)
    summary, clean, rejects = run(root, [story("0.png", name)])
    assert (summary.warned, len(clean), len(rejects)) == (1, 1, 0)
    assert any(reason.startswith("warning: ") for reason in summary.reasons)
    summary, clean, rejects = run(root, [story("0.png", name)], strict=True)
    assert (summary.warned, len(clean), len(rejects)) == (0, 0, 1)
    assert name in rejects[0]["reason"]


def test_repeated_ids_warn_and_strict_rejects_the_later_one(root):
    lines = [story(id=7), story("2.png", "3.png", id=7)]
    summary, clean, _ = run(root, lines)
    assert (summary.warned, len(clean)) == (1, 2)
    summary, clean, rejects = run(root, lines, strict=True)
    assert [len(clean), rejects[0]["line"]] == [1, 2] and "more than once" in rejects[0]["reason"]


def test_symlinks_that_stay_inside_are_fine(root):
    (root / "link.png").symlink_to(root / "1.png")
    assert check_image(root, "link.png") == (None, ())


def test_an_image_root_elsewhere(root, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "a.jsonl").write_text(json.dumps(story()) + "\n")
    options = {"clean": tmp_path / "c.jsonl", "rejects": tmp_path / "r.jsonl", "progress": False}
    assert validate(lists, **options).rejected == 1
    assert validate(lists, image_root=root, **options).clean == 1


def test_its_own_output_is_no_input(root):
    (root / "a.jsonl").write_text(json.dumps(story()) + "\n")
    options = {"clean": root / "clean.jsonl", "rejects": root / "rejects.jsonl", "progress": False}
    for _ in range(2):
        assert validate(root, **options).stories == 1


def test_resume_skips_what_the_journal_knows(root, tmp_path, monkeypatch):
    (root / "a.jsonl").write_text("".join(json.dumps(story(id=n)) + "\n" for n in range(40)))
    original = module.check_line
    options = {"clean": tmp_path / "c.jsonl", "rejects": tmp_path / "r.jsonl", "progress": False, "workers": 1}

    def stops(file, number, line, check):
        if number == 30:
            raise KeyboardInterrupt
        return original(file, number, line, check)

    monkeypatch.setattr(module, "check_line", stops)
    with pytest.raises(KeyboardInterrupt):
        validate(root, **options)
    with (tmp_path / "c.jsonl.journal").open("a") as file:
        file.write('{"file": "a.js')  # as if the process had been killed while writing
    seen = []
    monkeypatch.setattr(module, "check_line", lambda *a: seen.append(a[1]) or original(*a))
    assert validate(root, **options).clean == 40
    assert seen and seen[-1] == 40 and seen[0] > 20
    assert len((tmp_path / "c.jsonl").read_text().splitlines()) == 40


def test_a_changed_file_is_checked_anew(root, tmp_path, monkeypatch):
    options = {"clean": tmp_path / "c.jsonl", "rejects": tmp_path / "r.jsonl", "progress": False}
    (root / "a.jsonl").write_text(json.dumps(story()) + "\n")
    monkeypatch.setattr(module, "_write", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        validate(root, **options)
    monkeypatch.undo()
    (root / "a.jsonl").write_text(json.dumps(story("0.png", "gone.png")) + "\n")
    assert validate(root, **options).rejected == 1


def test_the_command(root, tmp_path, capsys):
    (root / "a.jsonl").write_text(json.dumps(story()) + "\n")
    flags = [str(root), f"--clean={tmp_path / 'c.jsonl'}", f"--rejects={tmp_path / 'r.jsonl'}"]
    assert main(["validate", *flags]) == 0
    assert "1 stories with 2 images: 1 clean, 0 rejected" in capsys.readouterr().out
    (root / "a.jsonl").write_text(json.dumps(story("0.png", "x.png")) + "\n")
    assert main(["validate", *flags]) == 1
    out = capsys.readouterr().out
    assert "1 rejected" in out and "does not exist" in out
