"""CBZ: a comic for readers of comics, a ZIP of cards with ComicInfo.xml."""

import io
import zipfile
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from seedstory_jax.export.cards import CardLayout, draw_card
from seedstory_jax.export.fonts import FontChoice
from seedstory_jax.export.reader import Book

WIDTH = 1200


def write_cbz(book: Book, path: Path, fonts: FontChoice) -> None:
    """Write the book's cards as JPEGs, in order, and what a reader's library shows of them."""
    layout = CardLayout(WIDTH)
    date = book.zip_date
    sizes = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as comic:
        for page in book.pages:
            data = io.BytesIO()
            draw_card(page, layout, fonts).save(data, "JPEG", quality=90, subsampling=0)
            sizes.append(len(data.getvalue()))
            comic.writestr(zipfile.ZipInfo(f"{page.number:04d}.jpg", date), data.getvalue())
        comic.writestr(zipfile.ZipInfo("ComicInfo.xml", date), _comic_info(book, layout, sizes))


def _comic_info(book: Book, layout: CardLayout, sizes: list[int]) -> str:
    pages = "".join(
        f'    <Page Image="{place}" Type="{"FrontCover" if place == 0 else "Story"}" ImageSize="{size}"'
        f' ImageWidth="{layout.width}" ImageHeight="{layout.height}" Bookmark={quoteattr(page.text[:100])}/>\n'
        for place, (page, size) in enumerate(zip(book.pages, sizes, strict=True))
    )
    summary = "\n".join(page.text for page in book.pages)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<ComicInfo xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        'xmlns:xsd="http://www.w3.org/2001/XMLSchema">\n'
        f"  <Title>{escape(book.title)}</Title>\n  <Summary>{escape(summary)}</Summary>\n"
        f"  <Notes>{escape(book.byline)}</Notes>\n"
        f"  <Year>{book.modified.year}</Year>\n  <Month>{book.modified.month}</Month>\n"
        f"  <Day>{book.modified.day}</Day>\n"
        f"  <PageCount>{len(book.pages)}</PageCount>\n  <LanguageISO>{escape(book.language)}</LanguageISO>\n"
        f"  <Manga>No</Manga>\n  <Pages>\n{pages}  </Pages>\n</ComicInfo>\n"
    )
