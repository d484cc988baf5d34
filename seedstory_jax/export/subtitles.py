"""Captions in time: how long one takes to read, and the files SRT and WebVTT."""

import html
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

WORDS_A_SECOND = 2.6
WIDE_CHARACTERS_A_SECOND = 5.0
SHORTEST = 2.5  # seconds a turn is shown at least


@dataclass(frozen=True)
class Cue:
    """A caption, shown from `start` to `end` seconds."""

    start: float
    end: float
    text: str


def reading_seconds(text: str) -> float:
    """Seconds in which a caption is read: by its words, or by its characters where a script has no spaces."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    words = len(text.split())
    return max(SHORTEST, 1.0 + words / WORDS_A_SECOND + wide / WIDE_CHARACTERS_A_SECOND)


def srt(cues: Sequence[Cue]) -> str:
    """SubRip. It has no escapes, so what players would take for marks is written with look-alikes."""
    marks = str.maketrans("<>{}", "\u2039\u203a\u2774\u2775")
    blocks = [
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{cue.text.translate(marks)}\n"
        for number, cue in enumerate(cues, 1)
    ]
    return "\n".join(blocks)


def vtt(cues: Sequence[Cue]) -> str:
    """WebVTT, with its escapes."""
    blocks = [
        f"{number}\n{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{html.escape(cue.text, quote=False)}\n"
        for number, cue in enumerate(cues, 1)
    ]
    return "WEBVTT\n\n" + "\n".join(blocks)


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
