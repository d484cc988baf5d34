import io
import os
import zipfile
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from seedstory_jax.errors import UserError
from seedstory_jax.export import export

pytest.importorskip("fontTools")


def test_pages_in_order_and_comic_info(colour, story_dir, tmp_path):
    path = export(story_dir, tmp_path / "book.cbz", title="Dog & co", language="fr").path
    with zipfile.ZipFile(path) as comic:
        assert comic.testzip() is None
        assert comic.namelist() == ["0001.jpg", "0002.jpg", "0003.jpg", "ComicInfo.xml"]
        info = ElementTree.fromstring(comic.read("ComicInfo.xml"))
        cards = [Image.open(io.BytesIO(comic.read(name))) for name in comic.namelist()[:3]]
        sizes = [comic.getinfo(name).file_size for name in comic.namelist()[:3]]
    assert info.findtext("Title") == "Dog & co" and info.findtext("LanguageISO") == "fr"
    assert info.findtext("PageCount") == "3" and "2 of 3 captions were given" in info.findtext("Notes")
    pages = info.findall("Pages/Page")
    assert [page.get("Type") for page in pages] == ["FrontCover", "Story", "Story"]
    assert [int(page.get("ImageSize")) for page in pages] == sizes
    assert {card.size for card in cards} == {(1200, 1584)}
    for index, card in enumerate(cards):
        assert np.abs(np.asarray(card)[500, 600].astype(int) - colour(index)).max() < 6
        words = np.asarray(card.convert("L"))[1180:1480, 60:1140]
        assert (words < 90).mean() > 0.001  # a caption stands below the picture


def test_a_story_older_than_zip_dates(story_dir, tmp_path):
    os.utime(story_dir / "story.json", (0, 0))
    with zipfile.ZipFile(export(story_dir, tmp_path / "book.cbz").path) as comic:
        assert comic.getinfo("0001.jpg").date_time[0] == 1980


def test_text_only_is_refused_with_a_way_out(tmp_path, make_story):
    folder = make_story(tmp_path / "s", size=None)
    for name in ("book.cbz", "book.gif", "book.webp", "book.mp4"):
        with pytest.raises(UserError, match=r"text only.*\.pdf, \.epub or \.html"):
            export(folder, tmp_path / name)
