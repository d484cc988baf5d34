"""What is asked about frames, and how the answers are read and checked."""

import base64
import io
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from seedstory_jax.chat_client import ChatClient, NoAnswer
from seedstory_jax.data.images import open_image
from seedstory_jax.data.text_tokenizer import MARKERS
from seedstory_jax.errors import UserError

OWN_PROMPTS = Path(__file__).parent / "prompts"
PLACES = {"describe": (), "narrate": ("count", "frames")}


@dataclass(frozen=True)
class Prompts:
    """The questions' texts, with $title and $background filled in."""

    describe: str
    narrate: str


def read_prompts(folder: Path | None, *, title: str, background: str) -> Prompts:
    """Prompts from a folder a user can edit; files that are not there yet are written for them to edit.

    Raises UserError if a prompt lacks a place that the answer depends on.
    """
    texts = {}
    for name, places in PLACES.items():
        own = OWN_PROMPTS / f"{name}.txt"
        path = own
        if folder is not None:
            path = folder / f"{name}.txt"
            if not path.exists():
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(own, path)
        text = path.read_text(encoding="utf-8")
        for place in places:
            if f"${place}" not in text:
                raise UserError(f"{path} lacks ${place}, which is where the {place} go: put it back")
        texts[name] = Template(text).safe_substitute(title=title, background=background).strip()
    return Prompts(**texts)


def picture_message(text: str, path: Path, *, longest_side: int = 768) -> dict[str, Any]:
    """A user message of a text and a picture, scaled down and sent inside."""
    image = open_image(path)
    image.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90)
    address = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
    content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": address}}]
    return {"role": "user", "content": content}


def describe(endpoint: ChatClient, prompts: Prompts, picture: Path) -> str:
    """A description of one picture, on one line."""
    return " ".join(endpoint.ask([picture_message(prompts.describe, picture)], max_tokens=300).split())


def narrate_question(prompts: Prompts, moments: Sequence[tuple[str, str]]) -> str:
    """The question for a group's narrative; moments: (description, what is said) of each frame."""
    lines = [
        f"[{number}] {description}" + (f' (Said: "{said}")' if said else "")
        for number, (description, said) in enumerate(moments, 1)
    ]
    return Template(prompts.narrate).safe_substitute(count=len(moments), frames="\n".join(lines))


class BadNarrative(ValueError):
    """What is wrong with an answer, in words that the model can act on."""


def read_narrative(answer: str, count: int) -> list[str]:
    """The texts of frames 1 to count: each exactly once, in order, none empty.

    Takes a JSON list of {"frame", "text"}, also inside a code fence or other words, or lines like "[3] text".
    Raises BadNarrative.
    """
    entries = _json_entries(answer)
    if entries is None:
        lines = re.findall(r"^\s*(?:\[([0-9]{1,6})\]|([0-9]{1,6})[.):])\s*(.+?)\s*$", answer, re.MULTILINE)
        entries = [(int(number or other), text) for number, other, text in lines]
    if not entries:
        raise BadNarrative("the answer is no JSON list of entries with frame and text")
    numbers = [number for number, _ in entries]
    expected = list(range(1, count + 1))
    if numbers != expected:
        missing = [str(number) for number in expected if number not in numbers]
        twice = sorted({str(number) for number in numbers if numbers.count(number) > 1}, key=int)
        extra = [str(number) for number in numbers if number not in expected]
        faults = [
            f"{words} {', '.join(found)}"
            for words, found in (("missing:", missing), ("more than once:", twice), ("not asked for:", extra))
            if found
        ]
        raise BadNarrative(
            f"frames must be 1 to {count}, each once, in order ({'; '.join(faults) or 'order is wrong'})"
        )
    texts = [" ".join(text.split()) for _, text in entries]
    for number, text in enumerate(texts, 1):
        if not text:
            raise BadNarrative(f"the text of frame {number} is empty")
        if any(marker in text for marker in MARKERS):
            raise BadNarrative(f"the text of frame {number} holds markup")
    return texts


def _json_entries(answer: str) -> list[tuple[int, str]] | None:
    """Entries of the first JSON list of objects in a text, or None if there is none."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"\[", answer):
        try:
            found, _ = decoder.raw_decode(answer, match.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(found, list) and found and all(isinstance(entry, dict) for entry in found):
            entries = []
            for entry in found:
                number, text = entry.get("frame"), entry.get("text")
                if isinstance(number, str) and re.fullmatch("[0-9]{1,6}", number):
                    number = int(number)
                if not isinstance(number, int) or isinstance(number, bool) or not isinstance(text, str):
                    raise BadNarrative('every entry must be {"frame": number, "text": "..."}')
                entries.append((number, text))
            return entries
    return None


def narrate(endpoint: ChatClient, prompts: Prompts, moments: Sequence[tuple[str, str]], *, asks: int = 3) -> list[str]:
    """The narrative of a group, a text a frame; a faulty answer is sent back with what is wrong with it.

    Raises NoAnswer when `asks` answers were faulty.
    """
    messages = [{"role": "user", "content": narrate_question(prompts, moments)}]
    fault = ""
    for _ in range(asks):
        answer = endpoint.ask(messages, max_tokens=200 + 120 * len(moments))
        try:
            return read_narrative(answer, len(moments))
        except BadNarrative as error:
            fault = str(error)
            complaint = f"That cannot be used: {fault}. Answer again with the whole JSON list and nothing else."
            messages = [
                messages[0],
                {"role": "assistant", "content": answer[:20_000]},
                {"role": "user", "content": complaint},
            ]
    raise NoAnswer(f"no usable narrative in {asks} answers; the last: {fault}")
