"""What is written appears whole or not at all, and replaces no folder."""

import stat
import threading

import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.files import atomic_folder, atomic_path, read_json, write_json, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.png"
    with atomic_path(path) as beside:
        assert beside.suffix == ".png" and beside.name.startswith(".")
        beside.write_bytes(b"half")
        assert not path.exists()
    assert path.read_bytes() == b"half" and names(path.parent) == ["a.png"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444  # not private, as temporary files are


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
    path = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as beside:
        beside.write_text("new")
        raise ZeroDivisionError
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_two_writers_do_not_mix(tmp_path):
    texts = [letter * 100_000 for letter in "abcd"]
    writers = [threading.Thread(target=write_text, args=(tmp_path / "a", text)) for text in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert (tmp_path / "a").read_text() in texts and names(tmp_path) == ["a"]


def test_a_long_name_has_room_for_its_temporary_one(tmp_path):
    path = write_text(tmp_path / ("x" * 250), "text")
    assert path.read_text() == "text"


def test_a_folder_appears_whole_and_replaces_none(tmp_path):
    with atomic_folder(tmp_path / "new") as folder:
        (folder / "file").write_text("1")
        assert not (tmp_path / "new").exists()
    assert names(tmp_path) == ["new"]
    with pytest.raises(UserError, match="exists: name a new folder"), atomic_folder(tmp_path / "new"):
        pass
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "other") as folder:
        (folder / "file").write_text("1")
        raise ZeroDivisionError
    assert names(tmp_path) == ["new"] and (tmp_path / "new" / "file").read_text() == "1"


def test_json_comes_back_and_what_is_none_is_refused(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, "b"]})
    assert read_json(tmp_path / "a.json") == {"a": [1, "b"]}
    for text, reason in (("[1]", "holds no JSON object"), ("{", "cannot be read as JSON")):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(UserError, match=reason):
            read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_json(tmp_path / "none.json")
