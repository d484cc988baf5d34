"""The storybook: one page that shows a written story, from its `story.json` and its pictures.

One frame at a time with keys, buttons and swipes; an overview; every frame with the strip of what the KV buffer held.
Without scripts, and on paper, all frames stand one below the other.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from seedstory_jax.report.buffer_strip import describe, legend_html, story_cells, strip_html
from seedstory_jax.report.page import escape, href, picture, render_page, theme_button, write_text

POLICY_WORDS = {
    "dense": "keeps everything",
    "window": "keeps the newest images and their text",
    "sink": "keeps the first tokens and the newest images",
    "multimodal_sink": "keeps the first tokens, the borders of every image and the newest images",
    "window_recompute": "forgets all and reads the window again",
    "random": "keeps the first tokens, older ones by chance and the newest images",
    "frame_sink": "keeps the first image with its text and the newest images",
    "text_sink": "keeps all text and the newest images",
    "story_sink": "keeps all text, the borders of every image and the newest images",
    "two_windows": "keeps the first tokens, the newest images and the text of more turns",
    "stride": "keeps every fourth image with its text and the newest images",
    "boi_only": "keeps the first tokens, the beginning of every image and the newest images",
    "eoi_only": "keeps the first tokens, the end of every image and the newest images",
    "pinned": "keeps the images that the user chose and the newest images",
    "tova": "keeps what the last token attends to, the first tokens and the newest images",
    "h2o": "keeps what was attended to most, the first tokens and the newest images",
    "snapkv": "keeps what the newest turn attends to, the first tokens and the newest images",
    "keydiff": "keeps the tokens whose keys differ most, the first ones and the newest images",
    "knorm": "keeps the tokens of the smallest keys, the first ones and the newest images",
}


def write_storybook(folder: Path, story: Mapping, *, up: str | None = None) -> Path:
    """Write `folder/index.html` for the story.json dict `story`, whose pictures lie in `folder`; returns its path.

    Beyond the keys of story.json, a frame may carry `kept`: run-length `[kind, frame, count]` of the buffer's tokens
    when the frame was written (see `buffer_strip`); and the story `title`. `up` links the page that lists this one, as
    "../index.html". Raises ValueError for a story without frames.
    """
    return write_text(Path(folder) / "index.html", storybook_html(folder, story, up=up))


def storybook_html(folder: Path, story: Mapping, *, up: str | None = None, language: str = "en") -> str:
    """The page that `write_storybook` writes; `language` is that of the captions."""
    folder = Path(folder)
    frames = list(story.get("frames") or ())
    if not frames:
        raise ValueError(f"the story for {folder} has no frames: story.json needs at least one in `frames`")
    title = title_of_story(story)
    header, footer = _header(title, story, frames, up), _footer(story)
    body = header + _pages(folder, story, frames) + _overview(folder, frames) + footer
    return render_page(str(title), body, styles=("storybook.css",), scripts=("storybook.js",), language=language)


def title_of_story(story: Mapping) -> str:
    """A story's title, or the beginning of its first caption."""
    return str(story.get("title") or _short(str(story["frames"][0].get("text", "")), 60) or "A story")


def given_words(frame: Mapping) -> str:
    """Which part of a frame was given rather than generated; "" if none was."""
    return {"prompt": "the beginning, given", "caption": "caption given"}.get(str(frame.get("source")), "")


def size_words(frames: Sequence[Mapping]) -> str:
    """How many turns a story has, and whether they have pictures."""
    drawn = sum(bool(frame.get("image")) for frame in frames)
    if drawn == len(frames):
        return f"{drawn} pictures" if drawn != 1 else "1 picture"
    turns = f"{len(frames)} turns" if len(frames) != 1 else "1 turn"
    return f"{turns}, {f'{drawn} with pictures' if drawn else 'text only'}"


def per_frame(values: Sequence | None, frames: Sequence[Mapping]) -> list:
    """A list kept per frame or per generated frame (timings, calls), lined up with all frames; None where unknown."""
    values = list(values or ())
    if len(values) == len(frames):
        return values
    generated = [place for place, frame in enumerate(frames) if frame.get("source") != "prompt"]
    line: list = [None] * len(frames)
    if len(values) == len(generated):
        for place, value in zip(generated, values, strict=True):
            line[place] = value
    return line


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rsplit(" ", 1)[0] + "…"


def _header(title: object, story: Mapping, frames: Sequence[Mapping], up: str | None) -> str:
    policy = str(story.get("policy", ""))
    chip = (
        f'<span class="chip" title="{escape(POLICY_WORDS.get(policy, "a policy of its own"))}">{escape(policy)}</span>'
    )
    brand = '<a href="#1" title="To the beginning">Story</a>'
    if up:
        brand = f'<a href="{href(up)}" title="The page that lists this story">&lsaquo; All stories</a>'
    return (
        f'<header class="bar"><p class="brand">{brand}</p>'
        f'<p class="about"><span class="count">{size_words(frames)} </span>{chip if policy else ""}</p>'
        '<div class="tools">'
        '<button type="button" class="tool" data-play aria-label="Play" aria-pressed="false" title="Play (P)">'
        '<svg viewBox="0 0 20 20" width="18" height="18" aria-hidden="true"><path class="go" d="M6 4l10 6-10 6z" '
        'fill="currentColor"/><path class="halt" d="M5 4h4v12H5zM11 4h4v12h-4z" fill="currentColor"/></svg></button>'
        '<button type="button" class="tool" data-overview-toggle aria-label="Overview of all pictures" '
        'aria-expanded="false" title="Overview (O)"><svg viewBox="0 0 20 20" width="18" height="18" aria-hidden="true">'
        '<path d="M3 3h6v6H3zM11 3h6v6h-6zM3 11h6v6H3zM11 11h6v6h-6z" fill="currentColor"/></svg></button>'
        f"{theme_button()}</div></header>\n<h1 class='unseen'>{escape(title)}</h1>\n"
    )


def _kind(frame: Mapping) -> str:
    return "Picture" if frame.get("image") else "Text"


def _alt(frame: Mapping, number: int) -> str:
    return f"{_kind(frame)} {number}: {frame.get('text', '')}"


def _pages(folder: Path, story: Mapping, frames: Sequence[Mapping]) -> str:
    count = len(frames)
    cells = story_cells([frame.get("kept") for frame in frames])
    seconds = per_frame((story.get("timing") or {}).get("llm_s"), frames)
    together = per_frame((story.get("timing") or {}).get("together"), frames)
    calls = per_frame(story.get("llm_calls"), frames)
    pages = []
    for place, frame in enumerate(frames):
        number = place + 1
        image = frame.get("image")
        art = f'<div class="art">{picture(folder, image, _alt(frame, number))}</div>' if image else ""
        given = given_words(frame)
        verb = "read" if given else "written"
        many = together[place] if isinstance(together[place], int) and together[place] > 1 else 0
        share = f", its share of {many} stories told together" if many else ""
        facts = [
            f"{verb} in {seconds[place]:.2f} s{share}" if isinstance(seconds[place], int | float) else "",
            f"{calls[place]} LLM calls{' for all of them' if many else ''}" if calls[place] is not None else "",
            "" if image else "text only, no picture",
        ]
        facts = [fact for fact in facts if fact]
        memory = ""
        if cells[place]:  # nothing to show under the first frame
            memory = (
                f'<div class="memory"><p class="what">What the buffer held</p>{strip_html(cells[place], count)}'
                f'<p class="held">{escape(describe(cells[place]))}</p>{legend_html()}</div>'
            )
        pages.append(
            f'<article class="page{"" if image else " wordy"}" id="{number}" '
            f'aria-label="{_kind(frame)} {number} of {count}">'
            f'{art}<div class="words"><p class="number"><b>{number}</b> of {count}'
            f"{f'<span class=given>{given}</span>' if given else ''}</p>"
            f'<p class="caption">{escape(frame.get("text", ""))}</p>{memory}'
            f"{'<p class=facts>' + escape(' · '.join(facts)) + '</p>' if facts else ''}</div></article>\n"
        )
    return (
        '<main class="book" tabindex="-1">'
        '<button type="button" class="turn back" aria-label="Previous page">&lsaquo;</button>'
        f'<div class="leaves">\n{"".join(pages)}</div>'
        '<button type="button" class="turn on" aria-label="Next page">&rsaquo;</button></main>\n'
        '<p class="unseen" role="status" aria-live="polite" data-said></p>\n'
    )


def _overview(folder: Path, frames: Sequence[Mapping]) -> str:
    """The film strip, which the overview opens into a grid with captions."""
    items = []
    for place, frame in enumerate(frames):
        number, image = place + 1, frame.get("image")
        thumb = picture(folder, image, "") if image else f"<em>{escape(_short(str(frame.get('text', '')), 70))}</em>"
        items.append(
            f'<li><a href="#{number}" aria-label="{escape(_alt(frame, number))}">{thumb}'
            f"<span>{number}</span><q>{escape(frame.get('text', ''))}</q></a></li>"
        )
    return f'<nav class="film" aria-label="All pictures"><ol>{"".join(items)}</ol></nav>\n'


def _footer(story: Mapping) -> str:
    timing = story.get("timing") or {}
    written = timing.get("llm_s")
    many = max((count for count in timing.get("together") or () if isinstance(count, int)), default=1)
    writing = f"writing, its share of {many} stories" if many > 1 else "writing"
    facts = {
        "policy": story.get("policy"),
        "seed": story.get("seed"),
        writing: f"{sum(written):.1f} s" if isinstance(written, list) and written else None,
        "drawing": f"{timing['render_s']:.1f} s" if isinstance(timing.get("render_s"), int | float) else None,
        "compiling": f"{timing['compile_s']:.1f} s" if isinstance(timing.get("compile_s"), int | float) else None,
        "buffer": f"{story['kv_slots']:,} slots" if isinstance(story.get("kv_slots"), int) else None,
    }
    items = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items() if v is not None)
    return f'<footer class="colophon"><dl>{items}</dl></footer>\n'
