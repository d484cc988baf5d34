"""Voices that read captions aloud. Each is a program of its own: nothing here imports a synthesiser.

A voice turns texts into sound files that ffmpeg can read; `choose_voice` takes one that speaks the book's language.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Protocol, runtime_checkable

from seedstory_jax.errors import UserError
from seedstory_jax.export.processes import find_program, need_program, run_program

FOREIGN = 0.3  # share of letters beyond ASCII from which captions are not English
NAMES = ("auto", "flite", "espeak", "piper", "none")


@runtime_checkable
class Voice(Protocol):
    """Something that reads texts aloud."""

    name: str

    def speak(self, texts: Sequence[str], folder: Path) -> list[Path]:
        """A sound file in `folder` a text; UserError if one cannot be spoken."""


@dataclass(frozen=True)
class Flite:
    """flite inside ffmpeg: English only, plain, and there wherever Debian's ffmpeg is."""

    name: str = "flite"

    def speak(self, texts: Sequence[str], folder: Path) -> list[Path]:
        """Texts as WAV; they reach ffmpeg in files, never inside the filter's description."""
        files = []
        for number, text in enumerate(texts):
            (folder / f"say{number}.txt").write_text(_ascii(text) + "\n", encoding="ascii")
            source = f"flite=textfile=say{number}.txt:voice=slt"
            command = [need_program("ffmpeg", "flite speaks through it"), "-v", "error", "-y", "-f", "lavfi"]
            run_program([*command, "-i", source, f"say{number}.wav"], what="voice flite", folder=folder)
            files.append(folder / f"say{number}.wav")
        return files


@dataclass(frozen=True)
class Espeak:
    """espeak-ng: a hundred languages, synthetic."""

    language: str
    name: str = "espeak"

    def speak(self, texts: Sequence[str], folder: Path) -> list[Path]:
        """Texts as WAV."""
        program = need_program("espeak-ng", "apt-get install espeak-ng, or choose another --voice")
        files = []
        for number, text in enumerate(texts):
            file = f"say{number}.wav"
            command = [program, "-v", espeak_voice(self.language), "-s", "150", "-w", file, "--stdin"]
            run_program(command, what="voice espeak", folder=folder, stdin=text.encode())
            files.append(folder / file)
        return files


@dataclass(frozen=True)
class Piper:
    """piper: a neural voice from a model file; loaded once for all texts."""

    model: Path
    name: str = "piper"

    def speak(self, texts: Sequence[str], folder: Path) -> list[Path]:
        """Texts as WAV, in an order that their file names keep."""
        program = need_program("piper", "pip install piper-tts and a voice, or choose another --voice")
        said = folder / "piper"
        said.mkdir()
        lines = "".join(" ".join(text.split()) + "\n" for text in texts)
        command = [program, "-m", str(self.model), "-d", str(said), "--output-dir-naming", "timestamp"]
        run_program(command, what="voice piper", folder=folder, stdin=lines.encode(), seconds=60 + 10 * len(texts))
        files = sorted(said.glob("*.wav"), key=lambda file: int(file.stem))
        if len(files) != len(texts):
            raise UserError(f"voice piper spoke {len(files)} of {len(texts)} captions: choose another --voice")
        return files


@dataclass(frozen=True)
class Command:
    """A command line of the user's, run once a text: `{text}` is a text file, `{wav}` the sound file to write.

    Without `{text}` the text comes on standard input.
    """

    line: str
    name: str = "command"

    def __post_init__(self):
        try:
            parts = shlex.split(self.line)
        except ValueError as error:
            raise UserError(f"--voice_command={self.line!r} cannot be taken apart into words ({error})") from None
        if not parts or "{wav}" not in self.line:
            raise UserError(f"--voice_command={self.line!r} must say where the sound goes: put {{wav}} into it")
        if find_program(parts[0]) is None:
            raise UserError(f"--voice_command: {parts[0]!r} was not found; give a program's path")

    def speak(self, texts: Sequence[str], folder: Path) -> list[Path]:
        """Texts as whatever sound the program writes."""
        files = []
        for number, text in enumerate(texts):
            file, wav = folder / f"say{number}.txt", folder / f"say{number}.wav"
            file.write_text(text + "\n", encoding="utf-8")
            words = [p.replace("{text}", str(file)).replace("{wav}", str(wav)) for p in shlex.split(self.line)]
            program = need_program(words[0], "give a program's path")
            stdin = b"" if "{text}" in self.line else text.encode()
            run_program([program, *words[1:]], what="--voice_command", folder=folder, stdin=stdin)
            if not wav.is_file() or not wav.stat().st_size:
                raise UserError(f"--voice_command wrote no sound to {{wav}} for {text[:40]!r}")
            files.append(wav)
        return files


def choose_voice(
    name: str, texts: Sequence[str], *, language: str = "en", command: str | None = None, model: Path | None = None
) -> Voice | None:
    """The voice for a book's captions; None is silence, also of "auto" where no voice here speaks them.

    Args:
        name: of `NAMES`; "auto" takes piper, flite or espeak, the first that is installed and speaks the language.
        texts: the captions: no voice is asked to read letters that it does not know.
        language: a BCP 47 tag.
        command: a command line, which goes before any name.
        model: piper's .onnx file; by default one that an installed package brings along.
    """
    if command is not None:
        return Command(command)
    if name == "none":
        return None
    english = language.lower().split("-")[0] == "en"
    letters = [character for text in texts for character in text if character.isalpha()]
    foreign = sum(not character.isascii() for character in letters) / max(1, len(letters))
    if name == "auto" and english and foreign > FOREIGN:
        return None  # they are not in the language that was said
    for candidate in [name] if name != "auto" else ["piper", "flite", "espeak"]:
        if candidate == "piper" and find_program("piper"):
            found = model or piper_model(language)
            if found is not None:
                return Piper(Path(found).resolve())
        if candidate == "flite" and has_flite() and (name == "flite" or (english and not foreign)):
            return Flite()
        if candidate == "espeak" and find_program("espeak-ng") and espeak_voice(language):
            return Espeak(language)
    if name == "auto":
        return None
    needs = {
        "piper": "pip install piper-tts and a voice, and name its file with --voice_model=FILE.onnx",
        "flite": "ffmpeg on this machine was built without it",
        "espeak": f"apt-get install espeak-ng; it must know language {language!r}",
    }
    raise UserError(f"--voice={name} is not there: {needs[name]}")


@cache
def has_flite() -> bool:
    """Whether ffmpeg is there and was built with flite."""
    ffmpeg = find_program("ffmpeg")
    if ffmpeg is None:
        return False
    return b" flite " in run_program([ffmpeg, "-hide_banner", "-filters"], what="ffmpeg -filters", folder=Path.cwd())


@cache
def espeak_voice(language: str) -> str | None:
    """The name that espeak-ng has for a language's voice; None where it has none."""
    listed = run_program(
        [need_program("espeak-ng", "apt-get install espeak-ng"), "--voices"],
        what="espeak-ng --voices",
        folder=Path.cwd(),
    )
    tags = [line.split()[1].lower() for line in listed.decode("utf-8", "replace").splitlines()[1:] if line.split()]
    alias = {"zh": "cmn", "no": "nb"}
    wanted = language.lower()
    short = wanted.split("-")[0]
    for tag in (wanted, short, alias.get(short, short), f"{short}-us", f"{short}-gb"):
        if tag in tags:
            return tag
    return next((tag for tag in tags if tag.split("-")[0] == short), None)


@cache
def piper_model(language: str) -> Path | None:
    """A voice of the language (`en_US-name-quality.onnx`) that an installed package brings along; None without one."""
    short = language.lower().split("-")[0]
    for package in metadata.distributions():
        for file in package.files or ():
            if file.suffix == ".onnx" and file.name.lower().startswith(f"{short}_") and "-" in file.name:
                path = Path(package.locate_file(file))
                if path.with_name(path.name + ".json").is_file():
                    return path
    return None


_TYPOGRAPHY = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": " - ", "\u2026": "..."}
)


def _ascii(text: str) -> str:
    return text.translate(_TYPOGRAPHY).encode("ascii", "ignore").decode()
