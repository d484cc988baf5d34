import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from seedstory_jax.data.names import FileFault, folder_name, path_below, read_regular, story_id
from seedstory_jax.data.storystream import StoryDataset
from seedstory_jax.errors import UserError

ODD = ["", ".", "..", "/", "a/b", "a\\b", "con", "CON.txt", "nul", "Ab", "ab", "AB", "a ", "a.", "~", "+a", "%41", "\0"]
ODD += [
    "x" * 300,
    "X" * 300,
    "é" * 200,
    "\ud800",
    "../../../../../ESCAPED",
    "a\nb",
    "-rf",
    "COM1",
    "LPT9.x",
    "a:b",
    "*?",
]


@given(st.lists(st.one_of(st.text(), st.sampled_from(ODD), st.integers()), min_size=2, max_size=6))
def test_ids_make_different_names_that_every_file_system_stores(ids):
    texts = list({str(one) for one in ids})
    names = [folder_name(text) for text in texts]
    assert len({name.lower() for name in names}) == len(names) and len(set(names)) == len(names)
    for text, name in zip(texts, names):
        assert name.isascii() and 0 < len(name) <= 200 and name == name.lower() == os.path.basename(name)
        assert not set(name) & set('<>:"/\\|?* \0\n') and not name.startswith(".") and not name.endswith((".", " "))
        assert name.split(".")[0] not in ("con", "prn", "aux", "nul", "com1", "lpt9")
        assert "~" in name or story_id(name) == text


@pytest.mark.parametrize("one", ODD)
def test_odd_ids_make_folders(tmp_path, one):
    (tmp_path / folder_name(one)).mkdir()
    assert len(list(tmp_path.iterdir())) == 1


def test_names_of_others_stay():
    for name in ("episode one-000", "Story A", "a+B", "100%", "%zz", "x~y", "ü"):
        assert story_id(name) == name
    assert [folder_name(one) for one in (12, "12/0", "Ab")] == ["12", "12%2f0", "+ab"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/passwd", "absolute path"),
        ("\\\\host\\x", "absolute path"),
        ("C:\\x.png", "absolute path"),
        ("a/../../x", "path with '..'"),
        ("a\\..\\x", "path with '..'"),
        ("http://evil/x.png", "an address"),
        ("x\0.png", "zero byte"),
        ("\ud800.png", "half a surrogate pair"),
        ("link.png", "by a symlink"),
        ("links/x.png", "by a symlink"),
        ("folder", "is no regular file"),
        ("pipe", "is no regular file"),
        ("loop", "cannot be opened"),
        ("empty", "is empty"),
        ("none", "does not exist"),
        ("file/none", "cannot be opened|does not exist"),
        ("x" * 5000, "cannot be opened"),
        ("large", "bytes, more than"),
    ],
)
def test_only_regular_files_below_the_root_are_read(tmp_path, name, reason):
    root, other = tmp_path / "root", tmp_path / "other"
    (root / "folder").mkdir(parents=True)
    other.mkdir()
    (other / "x.png").write_text("secret")
    (root / "link.png").symlink_to(other / "x.png")
    (root / "links").symlink_to(other)
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe")
    (root / "empty").write_text("")
    (root / "file").write_text("x")
    (root / "large").write_bytes(b"12345678901")
    with pytest.raises(FileFault, match=reason) as error:
        read_regular(path_below(root, name), max_bytes=10)
    assert "\n" not in str(error.value) and "secret" not in str(error.value)


def test_links_and_spellings_that_stay_inside_are_followed(tmp_path):
    root = tmp_path / "root"
    (root / "000219").mkdir(parents=True)
    (tmp_path / "also").symlink_to(root)
    decomposed = unicodedata.normalize("NFD", "Übung é.png")
    (root / "000219" / decomposed).write_text("it")
    (root / "inside").symlink_to(root / "000219" / decomposed)
    names = [
        "inside",
        f"000219/{decomposed}",
        f"000219\\{decomposed}",
        unicodedata.normalize("NFC", f"000219/{decomposed}"),
    ]
    for one in (root, tmp_path / "also"):  # the root itself may be a link
        assert [read_regular(path_below(one, name)) for name in names] == [b"it"] * 4


def test_a_dataset_opens_nothing_but_pictures_below_its_root(tmp_path):
    Image.new("RGB", (130, 130)).save(tmp_path / "good.png")
    (tmp_path / "leads_out.png").symlink_to("/etc/passwd")
    line = '{"id": 1, "images": ["good.png", "leads_out.png"], "captions": ["a", "b"]}\n'
    (tmp_path / "a.jsonl").write_text(line)
    data = StoryDataset(tmp_path)
    assert data.picture(data[0], 0).size == (130, 130)
    with pytest.raises(UserError, match="by a symlink"):
        data.picture(data[0], 1)
