"""Cards: a turn's picture with its caption below, as one picture (what CBZ, GIF and WebP are made of)."""

from dataclasses import dataclass

from PIL import Image, ImageDraw

from seedstory_jax.export.fonts import FontChoice
from seedstory_jax.export.reader import Page
from seedstory_jax.export.typeset import fit_text
from seedstory_jax.report.page import PIXEL_ART_LIMIT

PAPER, INK, SOFT, LINE = "#faf6ee", "#2a2521", "#6f665c", "#e2d9c8"


@dataclass(frozen=True)
class CardLayout:
    """A card's size in pixels; every card of a book has the same, whatever its picture's shape."""

    width: int

    @property
    def margin(self) -> int:
        """Around the picture and the caption."""
        return round(self.width * 0.045)

    @property
    def side(self) -> int:
        """Of the square that holds the picture."""
        return self.width - 2 * self.margin

    @property
    def height(self) -> int:
        """Of the whole card; even, as some encoders ask."""
        return (round(self.width * 1.32) + 1) // 2 * 2


def draw_card(page: Page, layout: CardLayout, fonts: FontChoice) -> Image.Image:
    """One turn as a picture, RGB; a turn without one shows its caption in large letters."""
    card = Image.new("RGB", (layout.width, layout.height), PAPER)
    canvas = ImageDraw.Draw(card)
    margin, side = layout.margin, layout.side
    foot = max(9, round(layout.width * 0.024))
    bottom = layout.height - margin - round(foot * 1.2)
    if page.image:
        art = scaled(page.picture(), side, side)
        card.paste(art, (margin + (side - art.width) // 2, margin + (side - art.height) // 2))
        top, size = margin + side + round(margin * 0.55), round(layout.width * 0.047)
    else:
        top, size = margin, round(layout.width * 0.075)
    room = bottom - top - round(margin * 0.3)
    setting = fit_text(fonts, page.text, side, room, size)
    setting.draw(canvas, margin, top + (room - setting.height) / 2, side, INK)
    small = fit_text(fonts, f"{page.number}" + (f" · {page.given}" if page.given else ""), side, foot * 2, foot)
    small.draw(canvas, margin, bottom, side, SOFT)
    return card


def scaled(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The picture as large as it fits into `width` by `height`; pixel art is enlarged with hard edges."""
    factor = min(width / picture.width, height / picture.height)
    if max(picture.size) <= PIXEL_ART_LIMIT and factor > 1:
        times = int(-(-factor // 1))
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
        factor = min(width / picture.width, height / picture.height)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.LANCZOS) if size != picture.size else picture
