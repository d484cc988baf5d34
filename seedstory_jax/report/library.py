"""The library: one page that lists the stories of a folder, each with its first picture and a link to its storybook."""

import json
from collections.abc import Mapping
from pathlib import Path

from seedstory_jax.report.page import escape, href, picture, render_page, theme_button, write_text
from seedstory_jax.report.storybook import size_words, title_of_story

UP = "../index.html"  # from a story's page to the library


def write_library(out: Path, *, title: str = "Stories") -> Path:
    """Write `out/index.html` over all stories in `out/*/story.json`, by name; returns its path.

    Folders whose story.json is damaged, and the stories that `out/errors.jsonl` says failed, are named at the end.
    """
    out = Path(out)
    cards, damaged = [], []
    for folder in sorted((path.parent for path in out.glob("*/story.json")), key=_by_number):
        if folder.name.startswith("."):  # one that is being written
            continue
        try:
            cards.append(_card(folder, json.loads((folder / "story.json").read_text(encoding="utf-8"))))
        except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            damaged.append(f"{folder.name}: damaged ({type(error).__name__})")
    failed = [*_failures(out), *damaged]
    trouble = "".join(f"<li>{escape(line)}</li>" for line in failed)
    trouble = f"<section><h2>Not told</h2><ul class='failed'>{trouble}</ul></section>" if failed else ""
    count = "1 story" if len(cards) == 1 else f"{len(cards)} stories"
    body = (
        f'<header class="mast"><div class="tools">{theme_button()}</div><h1>{escape(title)}</h1>'
        f'<p class="lead">{count}. Given captions are marked in each of them.</p></header>'
        f'<main class="sheet"><ul class="cards shelf">{"".join(cards)}</ul>{trouble}</main>'
    )
    return write_text(out / "index.html", render_page(title, body, styles=("sheet.css",)))


def _by_number(folder: Path) -> tuple[int, str]:
    return (int(folder.name), "") if folder.name.isdecimal() else (1 << 62, folder.name)


def _card(folder: Path, story: Mapping) -> str:
    frames = story["frames"]
    title = title_of_story(story)
    image = next((frame["image"] for frame in frames if frame.get("image")), None)
    if image and not (folder / image).resolve().is_relative_to(folder.resolve()):
        raise ValueError(image)
    art = picture(folder, image, "", base=folder.name) if image else f"<i>{escape(frames[0]['text'])}</i>"
    facts = [size_words(frames), str(story.get("policy") or ""), _seconds(story.get("timing") or {})]
    given = sum(frame.get("source") == "caption" for frame in frames)
    facts.append(f"{given} {'caption' if given == 1 else 'captions'} given" if given else "")
    return (
        f'<li><a class="card" href="{href(folder.name)}/index.html">{art}<b>{escape(folder.name)}</b>'
        f"<span>{escape(title)}</span></a>"
        f'<p class="soft">{escape(" · ".join(filter(None, facts)))}</p></li>'
    )


def _seconds(timing: Mapping) -> str:
    """What the story itself took: told in a batch, its share."""
    parts = [sum(timing.get("llm_s") or ()), timing.get("render_s") or 0]
    return f"{sum(parts):.1f} s" if any(parts) else ""


def _failures(out: Path) -> list[str]:
    """`story: error` of every line of errors.jsonl."""
    path = out / "errors.jsonl"
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
            lines.append(f"{record['story']}: {record['error']}")
        except (ValueError, KeyError, TypeError):
            continue  # a line that was being written when the run was stopped
    return list(dict.fromkeys(lines))
