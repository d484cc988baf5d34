"""Nothing of the user is lost: whatever a command writes over, it wrote itself, and nobody changed it since."""

import json
import threading

import pytest

from seedstory_jax import outputs
from seedstory_jax.errors import UserError
from seedstory_jax.report.page import write_text
from seedstory_jax.storystream.__main__ import main


def test_what_a_command_wrote_it_may_write_again(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    for text in ("one", "two"):
        with outputs.written_whole(path, by="x") as beside:
            beside.write_text(text)
        assert path.read_text() == text and outputs.is_written(path, "x")
    with pytest.raises(UserError, match="was not written by `y`"):
        outputs.claim(path, by="y")
    path.write_text("edited")
    with pytest.raises(UserError, match="or was changed since"), outputs.written_whole(path, by="x"):
        pass
    assert path.read_text() == "edited"


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    with outputs.written_whole(path, by="x") as beside:
        beside.write_text("old")
    with pytest.raises(ZeroDivisionError), outputs.written_whole(path, by="x") as beside:
        beside.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and sorted(p.name for p in tmp_path.iterdir()) == [outputs.LIST, "a.txt"]


def test_links_folders_and_names_in_the_list_are_no_files_of_ours(tmp_path):
    (tmp_path / "own").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "own")
    (tmp_path / "folder").mkdir()
    (tmp_path / "in").mkdir()
    outputs.record(tmp_path / "in", {"../own": tmp_path / "own"}, "x")  # a list that somebody sends
    for name in ("own", "link", "folder"):
        with pytest.raises(UserError, match="name another place to write"):
            outputs.claim(tmp_path / name, by="x")
    beside = tmp_path / "new"
    beside.mkdir()
    (beside / "a").write_text("a")
    outputs.put_in_place(beside, tmp_path / "in", by="x", last="a")
    assert (tmp_path / "own").read_text() == "mine" and (tmp_path / "in" / "a").read_text() == "a"


def test_a_torn_list_and_many_writers(tmp_path):
    outputs.record(tmp_path, {}, "x")
    with (tmp_path / outputs.LIST).open("a") as file:
        file.write('\n{"file": "0.txt", "sha')

    def write(number):
        with outputs.written_whole(tmp_path / f"{number}.txt", by="x") as beside:
            beside.write_text(str(number))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(outputs.is_written(tmp_path / f"{number}.txt", "x") for number in range(20))


def test_settings_are_noted_and_compared(tmp_path):
    outputs.agree(tmp_path, "s.json", {"policy": "dense", "seed": (1, 2)}, by="x")
    outputs.agree(tmp_path, "s.json", {"policy": "dense", "seed": (1, 2)}, by="x")
    with pytest.raises(UserError, match="outputs of another policy, more: give another"):
        outputs.agree(tmp_path, "s.json", {"policy": "window", "seed": (1, 2), "more": 1}, by="x")
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        outputs.agree(tmp_path, "s.json", {}, by="x")


def test_a_folder_of_a_commands_own(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_text("a")
    with pytest.raises(UserError, match="holds files that `x` did not write"):
        outputs.claim_folder(tmp_path / "mine", by="x")
    for _ in range(2):
        outputs.claim_folder(tmp_path / "new", by="x")
        (tmp_path / "new" / "a").write_text("a")


@pytest.fixture
def data(tmp_path):
    from PIL import Image

    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (140, 140), (number, 0, 0)).save(folder / f"{number}.png")
    stories = [{"id": n, "images": ["0.png", "1.png", "2.png"], "captions": ["a", "b", "c"]} for n in range(20)]
    (folder / "train.jsonl").write_text("".join(json.dumps(story) + "\n" for story in stories))
    return folder


# Every command that reads stories and writes files, as (arguments); {d} is the data's folder, {o} one beside it. What a
# new command reads and would write over goes here.
DESTROYERS = [
    "chunk {d}/train.jsonl --length=2 --out={d}/train.jsonl",
    "chunk {d} --length=2 --out={d}/train.jsonl",
    "chunk {d} --length=2 --out={d}/chunks.jsonl",
    "chunk {d}/train.jsonl --length=2 --out={d}/0.png",
    "chunk {d}/train.jsonl --length=2 --out={o}/link.jsonl",
    "chunk {d}/train.jsonl --length=2 --out={o}/hard.jsonl",
    "chunk {d}/train.jsonl --length=2 --out={o}/other.jsonl",
    "split {d}/train.jsonl --val=0.2 --out={d}",
    "split {d} --val=0.2 --out={d}",
    "split {d}/train.jsonl --val=0.2 --out={o}",
    "validate {d}/train.jsonl --clean={d}/train.jsonl --rejects={o}/r.jsonl",
    "validate {d} --clean={d}/train.jsonl --rejects={o}/r.jsonl",
    "validate {d}/train.jsonl --clean={o}/c.jsonl --rejects={d}/train.jsonl",
    "validate {d} --clean={o}/c.jsonl --rejects={o}/c.jsonl",
    "validate {d} --clean={o}/other.jsonl --rejects={o}/r.jsonl",
    "validate {d} --clean={o}/journalled --rejects={o}/r.jsonl",
    "pack {d} --out={d}",
    "pack {d} --out={o}",
    "tokenizer {d} --out={o}",
    "build {d} --out={d} --captions={o}/other.jsonl",
    "build {d} --out={o} --dry_run",
]


@pytest.mark.parametrize("command", DESTROYERS)
def test_no_command_writes_over_what_it_reads_or_did_not_write(data, tmp_path, command):
    other = tmp_path / "other"
    other.mkdir()
    (other / "link.jsonl").symlink_to(data / "train.jsonl")
    (other / "hard.jsonl").hardlink_to(data / "train.jsonl")
    for name in ("other.jsonl", "val.jsonl", "journalled.journal"):
        (other / name).write_text("mine\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for _ in range(2):
        with pytest.raises(UserError) as error:
            main(command.format(d=data, o=other).split())
        assert "\n" not in str(error.value)
        after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert after.items() >= before.items()


@pytest.mark.parametrize(
    "command",
    [
        "chunk {d}/train.jsonl --length=2 --out={o}/c.jsonl",
        "split {d}/train.jsonl --val=0.2 --out={o}",
        "validate {d} --clean={d}/clean.jsonl --rejects={d}/rejects.jsonl",
    ],
)
def test_the_same_command_twice_gives_the_same(data, tmp_path, command):
    found = []
    for _ in range(2):
        assert main(command.format(d=data, o=tmp_path / "o").split()) == 0
        found.append({p: p.read_bytes() for p in tmp_path.rglob("*.jsonl")})
    assert found[0] == found[1] and len(found[0]) > 1


def test_pages_do_not_write_over_a_file_of_the_user(tmp_path):
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(UserError, match="was not written by `report`"):
        write_text(tmp_path / "index.html", "page")
    assert (tmp_path / "index.html").read_text() == "mine"
