"""What every page of the report shares: one self-contained HTML file, no network, dark and light.

A page is a string made of escaped text, the shared style sheet and (where it moves) a script, both read from
`assets/` and written into the page, so that it opens from disk, from a zip or from a mail.
"""

import html
import os
import struct
from importlib import resources
from pathlib import Path
from urllib.parse import quote

from seedstory_jax import outputs
from seedstory_jax.data.names import path_below, read_regular
from seedstory_jax.errors import UserError

PIXEL_ART_LIMIT = 160  # pictures up to this side are scaled up with hard edges: they are the toy's pixel art


def escape(text: object) -> str:
    """Text made safe for both an element's content and a quoted attribute."""
    return html.escape(str(text), quote=True)


def asset(name: str) -> str:
    """The text of one file of `seedstory_jax/report/assets`."""
    return resources.files("seedstory_jax.report").joinpath("assets", name).read_text(encoding="utf-8")


def href(path: str | os.PathLike) -> str:
    """A relative file path as an escaped URL (spaces, `#`, `?` and `%` in file names survive)."""
    return escape(quote(Path(path).as_posix()))


def render_page(
    title: str, body: str, *, styles: tuple[str, ...] = (), scripts: tuple[str, ...] = (), language: str = "en"
) -> str:
    """A whole HTML document around `body`; `styles` and `scripts` name assets added after the shared ones."""
    css = "\n".join(asset(name) for name in ("base.css", *styles))
    js = "\n".join(asset(name) for name in ("theme.js", *scripts))
    return (
        f'<!doctype html>\n<html lang="{escape(language)}">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n<style>\n{css}</style>\n</head>\n'
        f"<body>\n{body}\n<script>\n{js}</script>\n</body>\n</html>\n"
    )


def theme_button() -> str:
    """The button that switches between dark and light; hidden where scripts do not run."""
    return (
        '<button type="button" class="tool" data-theme-toggle aria-label="Switch between dark and light" '
        'title="Dark or light (T)"><svg viewBox="0 0 20 20" width="18" height="18" aria-hidden="true">'
        '<circle cx="10" cy="10" r="7" fill="none" stroke="currentColor" stroke-width="1.6"/>'
        '<path d="M10 3a7 7 0 0 1 0 14z" fill="currentColor"/></svg></button>'
    )


def write_text(path: Path, text: str) -> Path:
    """Write a file whole or not at all; UserError where a file lies that no report wrote."""
    with outputs.written_whole(path, by="report") as beside:
        beside.write_text(text, encoding="utf-8")
    return path


def png_size(path: Path) -> tuple[int, int] | None:
    """(width, height) of a PNG in pixels, read from its first 24 bytes; None where it is no PNG."""
    try:
        head = read_regular(path)[:24]
    except UserError:
        return None
    if len(head) < 24 or head[:8] != b"\x89PNG\r\n\x1a\n":
        return None
    return struct.unpack(">II", head[16:24])


def picture(folder: Path, name: str, alt: str, *, base: str = "", css: str = "") -> str:
    """An `<img>` of `folder/name`, linked as `base/name`; small pictures keep hard pixel edges.

    Raises UserError for a name that leads out of the folder: a page links and reads nothing else.
    """
    size = png_size(path_below(folder, name))
    small = size is not None and max(size) <= PIXEL_ART_LIMIT
    dimensions = f' width="{size[0]}" height="{size[1]}"' if size else ""
    classes = " ".join(filter(None, (css, "pixels" if small else "")))
    lazy = "" if small or css == "sample" else ' loading="lazy"'
    source = href(os.path.join(base, name))
    return f'<img src="{source}" alt="{escape(alt)}"{dimensions} class="{classes}" decoding="async"{lazy}>'
