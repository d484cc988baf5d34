import json

import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.export import export

pytest.importorskip("fpdf")
pypdf = pytest.importorskip("pypdf")


def read(path):
    return pypdf.PdfReader(path)


def test_a_turn_a_page_with_text_pictures_bookmarks_and_alt_texts(story_dir, tmp_path):
    written = export(story_dir, tmp_path / "book.pdf", title="The dog")
    book = read(written.path)
    assert len(book.pages) == 1 + 3 and book.metadata.title == "The dog"
    assert [float(side) for side in book.pages[0].mediabox[2:]] == pytest.approx([595.28, 841.89], abs=0.1)
    pages = [" ".join(page.extract_text().split()) for page in book.pages]
    assert "The dog" in pages[0] and "2 of 3 captions were given" in pages[0]
    assert "The dog waves." in pages[1] and "the beginning, given" in pages[1] and "caption given" in pages[2]
    assert "<script>x</script>" in pages[3]
    assert [len(page.images) for page in book.pages] == [0, 1, 1, 1]
    assert book.pages[1].images[0].image.size == (200, 200)
    assert len(book.outline) == 3 and book.outline[0].title == "1. The dog waves."
    assert b"Picture 1: The dog waves." in b"".join(
        str(o.get_object().get("/Alt", "")).encode()
        for o in book.trailer["/Root"]["/StructTreeRoot"]["/K"][0].get_object()["/K"]
    )
    assert book.trailer["/Root"]["/Lang"] == "en"
    fonts = [font.get_object() for page in book.pages for font in page["/Resources"]["/Font"].get_object().values()]
    kinds = {font["/DescendantFonts"][0].get_object()["/FontDescriptor"].get_object().keys() for font in []} or fonts
    assert kinds and all(
        {"/FontFile2", "/FontFile3"} & font["/DescendantFonts"][0].get_object()["/FontDescriptor"].get_object().keys()
        for font in fonts
    )


def test_a_grid_has_several_turns_a_page(tmp_path, make_story):
    folder = make_story(tmp_path / "s", [f"Turn {number} of many." for number in range(1, 15)])
    written = export(folder, tmp_path / "book.pdf", layout="grid", paper="a5")
    book = read(written.path)
    assert len(book.pages) == 3 and [len(page.images) for page in book.pages] == [6, 6, 2]
    assert "14. Turn 14 of many." in book.pages[2].extract_text()


def test_pixel_art_keeps_its_edges(tmp_path, make_story):
    written = export(make_story(tmp_path / "s", size=64), tmp_path / "book.pdf")
    assert read(written.path).pages[1].images[0].image.size == (1024, 1024) and written.notes == ()
    large = export(make_story(tmp_path / "l", size=200), tmp_path / "large.pdf")
    assert "dpi" in large.notes[0]


def test_a_story_of_text_only_becomes_a_book_of_text(tmp_path, make_story):
    written = export(make_story(tmp_path / "s", size=None), tmp_path / "book.pdf")
    assert written.notes == ("the story has no pictures: the book is text only",)
    book = read(written.path)
    assert sum(len(page.images) for page in book.pages) == 0 and "The dog waves." in book.pages[1].extract_text()


def test_a_caption_as_long_as_the_engine_allows_stays_on_its_page(tmp_path, make_story):
    words = [f"word{number}" for number in range(400)]
    written = export(make_story(tmp_path / "s", [" ".join(words)] * 2), tmp_path / "book.pdf")
    pages = read(written.path).pages
    assert len(pages) == 3 and "word399" in pages[1].extract_text()


def test_missing_glyphs_are_named(tmp_path, make_story):
    written = export(make_story(tmp_path / "s", ["A private one: \ue123."]), tmp_path / "book.pdf")
    assert "U+E123" in written.notes[-1] and "--font" in written.notes[-1]


def test_equal_stories_make_equal_pages(story_dir, tmp_path):
    one, two = (export(story_dir, tmp_path / name).path.read_bytes() for name in ("a.pdf", "b.pdf"))
    assert one == two


def test_without_fpdf2_the_extra_is_named(story_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fpdf", None)
    with pytest.raises(UserError, match=r"seedstory_jax\[book\]"):
        export(story_dir, tmp_path / "book.pdf")
    assert json.loads((story_dir / "story.json").read_text()) and not (tmp_path / "book.pdf").exists()
