"""A book read aloud: when each turn is shown, and one sound track for all, in steps of whole video frames."""

import math
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seedstory_jax.errors import UserError
from seedstory_jax.export.processes import need_program, run_program
from seedstory_jax.export.subtitles import SHORTEST, Cue, reading_seconds
from seedstory_jax.export.voices import Voice

RATE = 24_000  # samples a second, mono, 16 bits
BEFORE, AFTER = 0.5, 0.7  # seconds of silence around what is said


@dataclass(frozen=True)
class Narration:
    """Every turn's number of video frames, its caption's cue, and whether anything is said."""

    frames: tuple[int, ...]
    cues: tuple[Cue, ...]
    spoken: bool
    fps: int

    @property
    def seconds(self) -> float:
        """Of the whole book."""
        return sum(self.frames) / self.fps


def narrate(texts: Sequence[str], voice: Voice | None, folder: Path, *, fps: int) -> Narration:
    """Write `folder/narration.wav`, spoken by `voice` or silent (None), and time the turns by it.

    A spoken turn lasts as long as its sound with a pause around it, a silent one as long as its caption takes to read.
    """
    said = {}
    if voice is not None:
        speakable = [place for place, text in enumerate(texts) if any(character.isalnum() for character in text)]
        files = voice.speak([texts[place] for place in speakable], folder) if speakable else []
        said = {place: _samples(file, folder, voice) for place, file in zip(speakable, files, strict=True)}
    frames, cues, start = [], [], 0
    with wave.open(str(folder / "narration.wav"), "wb") as track:
        track.setparams((1, 2, RATE, 0, "NONE", "not compressed"))
        for place, text in enumerate(texts):
            sound = said.get(place, b"")
            spoken = len(sound) / 2 / RATE
            seconds = max(SHORTEST, BEFORE + spoken + AFTER) if sound else reading_seconds(text)
            count = math.ceil(seconds * fps)
            before = bytes(2 * round(BEFORE * RATE)) if sound else b""
            whole = 2 * (round((start + count) * RATE / fps) - round(start * RATE / fps))
            track.writeframes((before + sound).ljust(whole, b"\0"))
            frames.append(count)
            cues.append(Cue(start / fps, (start + count) / fps, text))
            start += count
    return Narration(tuple(frames), tuple(cues), bool(said), fps)


def _samples(file: Path, folder: Path, voice: Voice) -> bytes:
    """A sound file as raw samples of the narration's format."""
    command = [need_program("ffmpeg", "apt-get install ffmpeg"), "-v", "error", "-nostdin", "-i", str(file)]
    command += ["-f", "s16le", "-ac", "1", "-ar", str(RATE), "-"]
    samples = run_program(command, what=f"sound of voice {voice.name}", folder=folder)
    if len(samples) < RATE // 50:  # a hundredth of a second
        raise UserError(f"voice {voice.name} said nothing in {file.name}: choose another --voice")
    return samples[: len(samples) // 2 * 2]
