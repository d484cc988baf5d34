"""The human study's page: pairs of stories side by side, blind; answers stay in the browser until they are exported.

One file: the pictures are inside it, so that no file name tells which system drew them.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from seedstory_jax.data.images import open_image
from seedstory_jax.evaluation.stories import StoryFolder
from seedstory_jax.evaluation.study import CHOICES, QUESTIONS, Pair
from seedstory_jax.report.contact_sheet import spread
from seedstory_jax.report.page import PIXEL_ART_LIMIT, escape, render_page, theme_button, write_text


def write_study_page(
    path: Path,
    pairs: Sequence[Pair],
    systems: Mapping[str, Sequence[StoryFolder]],
    *,
    study: str,
    questions: Mapping[str, str] = QUESTIONS,
    frames: int = 10,
) -> Path:
    """Write the page; a story shows `frames` frames, from its first to its last evenly spread.

    `study` names the export and keeps answers apart.
    """
    stories = {(system, story.name): story for system, own in systems.items() for story in own}
    sheets = []
    for place, pair in enumerate(pairs):
        sides = "".join(
            f'<section class="side" aria-label="{side} story"><h2>{side}</h2>'
            f"{_story(stories[system, pair.story], frames)}</section>"
            for side, system in (("Left", pair.left), ("Right", pair.right))
        )
        asked = "".join(_question(pair.number, name, words) for name, words in questions.items())
        sheets.append(
            f'<article class="pair" data-pair="{pair.number}" aria-label="Pair {place + 1} of {len(pairs)}">'
            f'<div class="sides">{sides}</div><form class="asked">{asked}</form></article>'
        )
    body = (
        f'<div id="study" data-study="{escape(study)}" data-questions="{len(questions)}">'
        '<header class="bar"><h1>Which story is better?</h1><p data-progress role="status"></p>'
        f'<div class="tools">{theme_button()}</div></header>'
        '<p class="how">Two stories told from the same beginning. Read both, then answer the questions below them. '
        "There is no right answer. Your answers stay in this browser until you save them as a file at the end.</p>"
        f"<main>{''.join(sheets)}</main>"
        '<nav class="steps"><button type="button" data-back>Back</button><button type="button" data-next>Next</button>'
        '<button type="button" data-export>Save my answers</button>'
        '<button type="button" data-forget>Start over</button>'
        "</nav><noscript><p>This page needs scripts to keep your answers.</p></noscript></div>"
    )
    html = render_page("Which story is better?", body, styles=("study.css",), scripts=("study.js",))
    return write_text(Path(path), html)


def _question(number: int, name: str, words: str) -> str:
    labels = {"left": "left", "right": "right", "same": "no difference"}
    options = "".join(
        f'<label><input type="radio" name="{number}:{escape(name)}" value="{choice}">{labels[choice]}</label>'
        for choice in CHOICES
    )
    return f'<fieldset data-question="{escape(name)}"><legend>{escape(words)}</legend>{options}</fieldset>'


def _story(story: StoryFolder, frames: int) -> str:
    items = []
    for frame in spread(len(story), frames):
        picture, text = _inside(story.images[frame]) if story.images[frame] else "", escape(story.texts[frame])
        items.append(f"<figure>{picture}<figcaption>{text}</figcaption></figure>")
    return "".join(items)


def _inside(path: Path) -> str:
    """A picture written into the page: its pixels alone, as whatever else the file holds may name a system."""
    shown = open_image(path)
    kind = "jpeg" if path.suffix.lower() in (".jpg", ".jpeg") else "png"
    data = io.BytesIO()
    shown.save(data, kind, **({"quality": 95} if kind == "jpeg" else {}))
    css = ' class="pixels"' if max(shown.size) <= PIXEL_ART_LIMIT else ""
    inside = base64.b64encode(data.getvalue()).decode()
    return f'<img src="data:image/{kind};base64,{inside}" alt="the picture of this text"{css}>'
