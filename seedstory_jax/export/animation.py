"""Animated GIF and WebP: a card a turn, shown as long as its caption takes to read."""

from pathlib import Path

from PIL import Image

from seedstory_jax.export.cards import CardLayout, draw_card
from seedstory_jax.export.fonts import FontChoice
from seedstory_jax.export.reader import Book
from seedstory_jax.export.subtitles import reading_seconds

WIDTHS = {".gif": 480, ".webp": 720}


def write_animation(book: Book, path: Path, fonts: FontChoice) -> None:
    """Write an endless GIF or WebP, by the suffix of `path`."""
    kind = path.suffix.lower()
    layout = CardLayout(WIDTHS[kind])
    cards = [draw_card(page, layout, fonts) for page in book.pages]
    milliseconds = [round(1000 * reading_seconds(page.text)) for page in book.pages]
    if kind == ".gif":  # every card has a palette of its own
        cards = [card.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE) for card in cards]
        options = {"disposal": 1, "optimize": False}
    else:
        options = {"quality": 82, "method": 2}
    cards[0].save(
        path, kind[1:].upper(), save_all=True, append_images=cards[1:], duration=milliseconds, loop=0, **options
    )
