"""EPUB 3 in fixed layout, by zipfile: a page a turn with its picture and alt text, the caption as real text."""

import hashlib
import unicodedata
import uuid
import zipfile
from dataclasses import dataclass
from html import escape
from pathlib import Path

from seedstory_jax.export.pictures import encode
from seedstory_jax.export.reader import Book, Page, shorten

WIDTH, HEIGHT, MARGIN = 1200, 1600, 60  # CSS pixels of a page
WORDS_HEIGHT = 330  # of these, what is left for a caption below a square picture
LARGEST, SMALLEST = 54, 16

CONTAINER = """<?xml version="1.0" encoding="utf-8"?>
<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container">
  <rootfiles><rootfile full-path="EPUB/package.opf" media-type="application/oebps-package+xml"/></rootfiles>
</container>
"""

STYLE = f"""html, body {{ margin: 0; padding: 0; background: #faf6ee; color: #2a2521; }}
body {{ font-family: Georgia, "Noto Serif", "DejaVu Serif", serif; }}
.page {{ position: relative; width: {WIDTH}px; height: {HEIGHT}px; overflow: hidden; }}
.art {{ position: absolute; left: {MARGIN}px; top: {MARGIN}px; width: {WIDTH - 2 * MARGIN}px;
  height: {WIDTH - 2 * MARGIN}px; object-fit: contain; }}
.words {{ position: absolute; left: {MARGIN}px; top: {WIDTH - MARGIN // 2}px; width: {WIDTH - 2 * MARGIN}px;
  height: {WORDS_HEIGHT}px; display: flex; align-items: center; justify-content: center; text-align: center; }}
.alone {{ top: {MARGIN}px; height: {HEIGHT - 3 * MARGIN}px; }}
.words p {{ margin: 0; line-height: 1.36; }}
.foot {{ position: absolute; left: 0; bottom: 34px; width: {WIDTH}px; margin: 0; text-align: center; color: #6f665c;
  font-size: 26px; }}
nav ol {{ list-style: none; padding: 0 1em; }}
.flow {{ margin: 1.5em; line-height: 1.5; }}
.flow .foot {{ position: static; width: auto; font-size: .8em; }}
"""


@dataclass(frozen=True)
class _Item:
    """A file of the book as the package lists it."""

    id: str
    name: str
    media_type: str
    data: bytes
    properties: str = ""


def write_epub(book: Book, path: Path) -> None:
    """Write the book; without any picture its text flows, as in a novel. Equal stories make equal files."""
    fixed = book.has_pictures
    images, pages = [], []
    for page in book.pages:
        image = None
        if page.image:
            encoded = encode(page.picture())
            cover = "cover-image" if not images else ""
            image = _Item(
                f"i{page.number}", f"{page.number:04d}{encoded.suffix}", encoded.media_type, encoded.data, cover
            )
            images.append(image)
        pages.append(_xhtml(f"p{page.number}", book, _page_body(page, image, fixed), fixed))
    pages.append(_xhtml("colophon", book, _colophon_body(book, fixed), fixed))
    nav = _xhtml("nav", book, _nav_body(book), False, properties="nav")
    style = _Item("style", "style.css", "text/css", STYLE.encode())
    items = [nav, style, *pages, *images]
    digest = hashlib.sha256(b"".join(item.data for item in items)).digest()
    package = _package(book, items, [item.id for item in pages], uuid.UUID(bytes=digest[:16], version=4), fixed)
    date = book.zip_date
    with zipfile.ZipFile(path, "w") as file:

        def add(name: str, data: bytes | str, how: int = zipfile.ZIP_DEFLATED) -> None:
            file.writestr(zipfile.ZipInfo(name, date), data, how)

        add("mimetype", "application/epub+zip", zipfile.ZIP_STORED)  # first and uncompressed, or it is no EPUB
        add("META-INF/container.xml", CONTAINER)
        add("EPUB/package.opf", package)
        for item in items:
            add(f"EPUB/{item.name}", item.data, zipfile.ZIP_STORED if item in images else zipfile.ZIP_DEFLATED)


def font_size(text: str, width: int, height: int, largest: int = LARGEST) -> int:
    """CSS pixels in which `text` fits a box, whatever serif the reader has (a letter is taken as half an em wide)."""
    letters = sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
    for size in range(largest, SMALLEST, -2):
        a_line = width / (0.54 * size)
        if -(-letters * 1.06 // a_line) * size * 1.36 <= height:
            return size
    return SMALLEST


def _page_body(page: Page, image: _Item | None, fixed: bool) -> str:
    foot = escape(f"{page.number}" + (f" · {page.given}" if page.given else ""))
    if not fixed:
        return f'<section class="flow"><p class="foot">{foot}</p><p>{escape(page.text)}</p></section>'
    height, largest = (WORDS_HEIGHT, LARGEST) if image else (HEIGHT - 3 * MARGIN, 3 * LARGEST // 2)
    size = font_size(page.text, WIDTH - 2 * MARGIN, height, largest)
    art = f'<img class="art" src="{image.name}" alt="{escape(page.alt)}"/>' if image else ""
    return (
        f'<section class="page">{art}<div class="words{"" if image else " alone"}">'
        f'<p style="font-size: {size}px">{escape(page.text)}</p></div><p class="foot">{foot}</p></section>'
    )


def _colophon_body(book: Book, fixed: bool) -> str:
    words = f"<p>{escape(book.title)}<br/><small>{escape(book.byline)}</small></p>"
    if not fixed:
        return f'<section class="flow">{words}</section>'
    return f'<section class="page"><div class="words alone" style="font-size: 36px">{words}</div></section>'


def _nav_body(book: Book) -> str:
    links = "".join(
        f'<li><a href="p{page.number}.xhtml">{page.number}. {escape(shorten(page.text, 70)) or "…"}</a></li>\n'
        for page in book.pages
    )
    return f'<nav epub:type="toc" id="toc"><h1>{escape(book.title)}</h1>\n<ol>\n{links}</ol></nav>'


def _xhtml(name: str, book: Book, body: str, fixed: bool, properties: str = "") -> _Item:
    viewport = f'<meta name="viewport" content="width={WIDTH}, height={HEIGHT}"/>' if fixed else ""
    language = escape(book.language)
    text = (
        '<?xml version="1.0" encoding="utf-8"?>\n<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml" '
        f'xmlns:epub="http://www.idpf.org/2007/ops" lang="{language}" xml:lang="{language}">\n<head>'
        f"<title>{escape(book.title)}</title>{viewport}"
        f'<link rel="stylesheet" type="text/css" href="style.css"/></head>\n<body>{body}</body>\n</html>\n'
    )
    return _Item(name, f"{name}.xhtml", "application/xhtml+xml", text.encode(), properties)


def _package(book: Book, items: list[_Item], spine: list[str], identifier: uuid.UUID, fixed: bool) -> str:
    def manifest(item: _Item) -> str:
        properties = f' properties="{item.properties}"' if item.properties else ""
        return f'    <item id="{item.id}" href="{item.name}" media-type="{item.media_type}"{properties}/>\n'

    layout = '    <meta property="rendition:layout">pre-paginated</meta>\n' if fixed else ""
    modes = ["textual", "visual"] if fixed else ["textual"]
    features = ["readingOrder", "tableOfContents", *(["alternativeText"] if fixed else [])]
    facts = [("accessMode", mode) for mode in modes] + [("accessModeSufficient", "textual")]
    facts += [("accessibilityFeature", name) for name in features] + [("accessibilityHazard", "none")]
    summary = "Every picture is described by its caption." if fixed else "Text only."
    access = "".join(
        f'    <meta property="schema:{n}">{v}</meta>\n' for n, v in (*facts, ("accessibilitySummary", summary))
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<package xmlns="http://www.idpf.org/2007/opf" version="3.0" '
        f'unique-identifier="id" xml:lang="{escape(book.language)}">\n'
        '  <metadata xmlns:dc="http://purl.org/dc/elements/1.1/">\n'
        f'    <dc:identifier id="id">urn:uuid:{identifier}</dc:identifier>\n'
        f"    <dc:title>{escape(book.title)}</dc:title>\n    <dc:language>{escape(book.language)}</dc:language>\n"
        f"    <dc:description>{escape(book.byline)}</dc:description>\n"
        f'    <meta property="dcterms:modified">{book.modified:%Y-%m-%dT%H:%M:%SZ}</meta>\n{layout}{access}'
        f"  </metadata>\n  <manifest>\n{''.join(map(manifest, items))}  </manifest>\n  <spine>\n"
        f"{''.join(f'    <itemref idref={chr(34)}{name}{chr(34)}/>{chr(10)}' for name in spine)}"
        "  </spine>\n</package>\n"
    )
