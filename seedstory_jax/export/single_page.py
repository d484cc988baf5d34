"""The storybook as one HTML file with its pictures inside, to be mailed or opened anywhere."""

import base64
import re
from html import unescape
from pathlib import Path
from urllib.parse import unquote

from PIL import Image

from seedstory_jax.errors import UserError
from seedstory_jax.export.pictures import encode
from seedstory_jax.export.reader import Book
from seedstory_jax.report.storybook import storybook_html

THUMB = 2 * 88  # pixels of the film strip's pictures: twice their side, and more than pixel art has
_IMAGE = re.compile(r'<img src="([^"]*)"')  # captions cannot hold it: their quotes are escaped


def write_single_page(book: Book, path: Path) -> None:
    """Write the storybook's page; every picture once in full and once small."""
    turns = [
        {
            **turn,
            "text": page.text,
            "image": page.image.relative_to(book.folder.resolve()).as_posix() if page.image else None,
        }
        for turn, page in zip(book.story["frames"], book.pages, strict=True)
    ]
    story = {**book.story, "title": book.title, "frames": turns}
    try:
        html = storybook_html(book.folder, story, language=book.language)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{book.folder / 'story.json'} is damaged ({type(error).__name__}: {error})") from None
    pages, film, rest = html.partition('<nav class="film"')
    images = {page.image.relative_to(book.folder.resolve()).as_posix(): page for page in book.pages if page.image}

    def inlined(text: str, limit: int | None) -> str:
        def source(match: re.Match) -> str:
            picture = images[unquote(unescape(match[1]))].picture()
            if limit and max(picture.size) > limit:
                picture = picture.copy()
                picture.thumbnail((limit, limit), Image.Resampling.LANCZOS)
            encoded = encode(picture, crisp=False)
            return f'<img src="data:{encoded.media_type};base64,{base64.b64encode(encoded.data).decode()}"'

        return _IMAGE.sub(source, text)

    path.write_text(inlined(pages, None) + film + inlined(rest, THUMB), encoding="utf-8")
