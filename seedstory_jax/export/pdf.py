"""PDF for print: a turn a page, or a grid of panels; text as text, with its fonts, bookmarks and alt texts."""

import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from seedstory_jax.errors import UserError
from seedstory_jax.export.fonts import Font, FontChoice, carried
from seedstory_jax.export.pictures import encode
from seedstory_jax.export.reader import Book, Page, shorten
from seedstory_jax.export.typeset import LEADING, largest_size
from seedstory_jax.report.page import PIXEL_ART_LIMIT

PAPERS = {"a4": (210.0, 297.0), "a5": (148.0, 210.0), "letter": (215.9, 279.4), "square": (210.0, 210.0)}  # mm
LAYOUTS = ("page", "grid")
MM_A_POINT = 25.4 / 72
SMALLEST = 5  # points
SMALLEST_PANEL = 0.58  # of a column's width, which a picture of the grid takes at least
PRINT_DPI = 140  # below this a picture looks soft on paper
INK, SOFT = (42, 37, 33), (111, 102, 92)


@dataclass(frozen=True)
class Box:
    """A rectangle on a page in millimetres."""

    x: float | int
    y: float | int
    width: float | int
    height: float | int


def write_pdf(book: Book, path: Path, fonts: FontChoice, *, layout: str = "page", paper: str = "a4") -> list[str]:
    """Write the book as `layout` "page" or "grid" on `paper`; returns notes about what will not print well."""
    with tempfile.TemporaryDirectory(prefix="fonts-") as folder:
        press = _Press(book, fonts, PAPERS[paper], Path(folder))
        if layout == "page":
            press.title_page()
            for page in book.pages:
                press.turn_page(page)
        else:
            press.grid()
        press.pdf.output(str(path))
    lowest = min(press.dpi, default=PRINT_DPI)
    soft = f"the pictures print at {lowest:.0f} dpi on {paper}, less than {PRINT_DPI}: they will look soft"
    return [soft] if lowest < PRINT_DPI else []


class _Press:
    """An fpdf2 document and the pen that sets pictures and captions on it."""

    def __init__(self, book: Book, fonts: FontChoice, size: tuple[float, float], folder: Path):
        try:
            from fpdf import FPDF
        except ImportError:
            raise UserError("PDF needs fpdf2: pip install 'seedstory_jax[book]', or export to .epub or .html") from None
        self.book, self.fonts, self.folder = book, fonts, folder
        self.width, self.height = size
        self.margin = round(min(size) * 0.085, 1)
        self.dpi: list[float] = []
        self.families: dict[Font, str] = {}
        self.pdf = FPDF(unit="mm", format=size)
        self.pdf.set_auto_page_break(False)
        self.pdf.set_margin(0)
        self.pdf.c_margin = 0
        self.pdf.set_title(book.title)
        self.pdf.set_subject(book.byline)
        self.pdf.set_creator("seedstory_jax")
        self.pdf.set_lang(book.language)
        self.pdf.set_creation_date(book.modified)
        for text in ("0123456789 · …", book.title, book.byline, *(page.text for page in book.pages)):
            for font, _ in fonts.runs(text):
                self._add(font)
        self.pdf.set_fallback_fonts(list(self.families.values()), exact_match=False)
        if find_spec("uharfbuzz"):  # joins Arabic and Indic letters; without it they stand one by one
            self.pdf.set_text_shaping(True)

    def _add(self, font: Font) -> None:
        if font in self.families:
            return
        family = self.families[font] = f"font{len(self.families)}"
        file = font.path or self.folder / "carried.ttf"  # fpdf2 reads files alone
        if font.path is None:
            file.write_bytes(carried())
        self.pdf.add_font(family, fname=file)

    def title_page(self) -> None:
        """The title, and below it how the story came to be."""
        self.pdf.add_page()
        inner, middle = self.width - 2 * self.margin, self.height * 0.42
        self.text(self.book.title, Box(self.margin, self.margin, inner, middle - self.margin), 30, bottom=True)
        self.text(self.book.byline, Box(self.margin, middle + 6, inner, 20), 11, color=SOFT)

    def turn_page(self, page: Page) -> None:
        """A turn on a page of its own: the picture, the caption below, and the number at the foot."""
        self.pdf.add_page()
        self._bookmark(page)
        foot = Box(self.margin, self.height - self.margin * 0.8, self.width - 2 * self.margin, 6)
        self.text(f"{page.number}" + (f" · {page.given}" if page.given else ""), foot, 9, color=SOFT)
        body = Box(self.margin, self.margin, self.width - 2 * self.margin, foot.y - self.margin - 4)
        if not page.image:
            self.text(page.text, body, 24)
            return
        side = min(body.width, body.height * 0.78)
        self.picture(page, Box(self.margin + (body.width - side) / 2, body.y, side, side))
        below = Box(body.x, body.y + side + 5, body.width, body.height - side - 5)
        self.text(page.text, below, 17)

    def grid(self) -> None:
        """Panels in reading order, two columns; each picture with its caption below."""
        columns, gap, head = 2, 6.0, 13.0
        width = (self.width - 2 * self.margin - (columns - 1) * gap) / columns
        caption = min(20.0, 0.26 * width)
        height = self.height - 2 * self.margin - head + gap  # of rows, each with a gap below
        rows = max(1, int(height // (SMALLEST_PANEL * width + caption + gap)))
        side = min(width, height / rows - gap - caption)
        for place, page in enumerate(self.book.pages):
            slot = place % (columns * rows)
            if slot == 0:
                self.pdf.add_page()
                heading = Box(self.margin, self.margin * 0.7, self.width - 2 * self.margin, head)
                first = place == 0
                self.text(
                    self.book.title if first else str(self.pdf.page),
                    heading,
                    15 if first else 9,
                    color=INK if first else SOFT,
                )
                if first:
                    foot = Box(self.margin, self.height - self.margin * 0.75, self.width - 2 * self.margin, 5)
                    self.text(self.book.byline, foot, 8, color=SOFT)
            self._bookmark(page)
            x = self.margin + (slot % columns) * (width + gap)
            y = self.margin + head + (slot // columns) * (side + caption + gap)
            label = f" ({page.given})" if page.given else ""
            if page.image:
                self.picture(page, Box(x + (width - side) / 2, y, side, side))
                self.text(
                    f"{page.number}. {page.text}{label}", Box(x, y + side + 1.5, width, caption - 1.5), 10, top=True
                )
            else:
                self.text(f"{page.number}. {page.text}{label}", Box(x, y, width, side), 13)

    def picture(self, page: Page, box: Box) -> None:
        """The turn's picture, as large as it fits the box, centred."""
        art = page.picture()
        factor = min(box.width / art.width, box.height / art.height)
        width, height = art.width * factor, art.height * factor
        if max(art.size) > PIXEL_ART_LIMIT:  # pixel art stays crisp at any size
            self.dpi.append(art.width / (width / 25.4))
        data = encode(art).data
        x, y = box.x + (box.width - width) / 2, box.y + (box.height - height) / 2
        self.pdf.image(data, x=x, y=y, w=width, h=height, alt_text=page.alt)

    def text(self, text: str, box: Box, points: int, *, color=INK, top: bool = False, bottom: bool = False) -> None:
        """Centred text in the largest size up to `points` that fits the box, in its middle or at its top or bottom."""
        runs = self.fonts.runs(text)
        text = "".join(part for _, part in runs)
        if not text:
            return
        family = self.families[runs[0][0]]
        self.pdf.set_text_color(*color)

        def set_in(half_points: int) -> float:
            """Sets the font; the lines' height together."""
            self.pdf.set_font(family, size=half_points / 2)
            lines = self.pdf.multi_cell(box.width, 1, text, align="C", dry_run=True, output="LINES")
            return len(lines) * half_points / 2 * MM_A_POINT * LEADING

        half_points = largest_size(lambda size: set_in(size) <= box.height, 2 * SMALLEST, 2 * points)
        free = max(0.0, box.height - set_in(half_points))
        self.pdf.set_xy(box.x, box.y + (0 if top else free if bottom else free / 2))
        self.pdf.multi_cell(box.width, half_points / 2 * MM_A_POINT * LEADING, text, align="C")

    def _bookmark(self, page: Page) -> None:
        self.pdf.start_section(f"{page.number}. {shorten(page.text, 60)}")
