import json
import shutil
import subprocess
import sys
import wave
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.export import export, processes
from seedstory_jax.export.narration import AFTER, BEFORE, narrate
from seedstory_jax.export.reader import read_book
from seedstory_jax.export.subtitles import SHORTEST, reading_seconds
from seedstory_jax.export.video import FADE, FPS
from seedstory_jax.export.voices import Flite, has_flite

pytest.importorskip("fontTools")
pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
SMALL = {"size": (160, 128)}


def probe(path) -> dict:
    command = ["ffprobe", "-v", "error", "-show_format", "-show_streams", "-of", "json", str(path)]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def frame_at(path, seconds: float) -> np.ndarray:
    """The middle pixel of the film at a moment."""
    command = ["ffmpeg", "-v", "error", "-ss", f"{seconds:.3f}", "-i", str(path), "-frames:v", "1", "-f", "rawvideo"]
    raw = subprocess.run([*command, "-pix_fmt", "rgb24", "-"], capture_output=True, check=True).stdout
    width, height = SMALL["size"]
    return np.frombuffer(raw, np.uint8).reshape(height, width, 3)[height // 3, width // 2].astype(int)


def starts(srt: str) -> list[float]:
    lines = [line for line in srt.splitlines() if " --> " in line]
    ends = [line.split(" --> ") for line in lines]
    clock = [
        [sum(float(p.replace(",", ".")) * u for p, u in zip(t.split(":"), (3600, 60, 1))) for t in e] for e in ends
    ]
    assert all(one[1] == two[0] for one, two in pairwise(clock))
    return [clock[0][0], *(end for _, end in clock)]


@pytest.mark.parametrize("subtitles", ["burn", "soft", "none"])
def test_a_silent_film_is_timed_by_reading_speed(story_dir, tmp_path, subtitles):
    heard = []
    written = export(
        story_dir,
        tmp_path / "film.mp4",
        voice="none",
        subtitles=subtitles,
        progress=lambda *at: heard.append(at),
        **SMALL,
    )
    facts = probe(written.path)
    expected = sum(np.ceil(FPS * reading_seconds(page.text)) / FPS for page in read_book(story_dir).pages)
    assert written.duration == pytest.approx(expected)
    assert float(facts["format"]["duration"]) == pytest.approx(expected, abs=0.1)
    kinds = [stream["codec_type"] for stream in facts["streams"]]
    assert kinds == ["video", "audio", *(["subtitle"] if subtitles == "soft" else [])]
    assert all(float(stream["duration"]) == pytest.approx(expected, abs=0.1) for stream in facts["streams"][:2])
    assert (facts["streams"][0]["width"], facts["streams"][0]["height"]) == SMALL["size"]
    assert facts["format"]["tags"]["title"] == "The dog waves."
    assert [path.suffix for path in written.beside] == ([] if subtitles == "none" else [".srt", ".vtt"])
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(
        [written.path.name, *(path.name for path in written.beside)]
    )
    assert heard[-1] == (round(expected * FPS), round(expected * FPS))


def test_every_turn_is_seen_while_its_caption_is_read_and_fades_in(colour, story_dir, tmp_path):
    written = export(story_dir, tmp_path / "film.mp4", voice="none", **SMALL)
    times = starts(written.beside[0].read_text())
    assert len(times) == 4 and times[-1] == pytest.approx(written.duration, abs=0.002)
    for index, (start, end) in enumerate(pairwise(times)):
        assert np.abs(frame_at(written.path, (start + end) / 2) - colour(index)).max() < 12
    halfway = frame_at(written.path, times[1] + FADE / 2 / FPS)
    mean = (np.array(colour(0)) + np.array(colour(1))) / 2
    assert np.abs(halfway - mean).max() < 12
    assert starts(written.beside[1].read_text().replace("WEBVTT\n\n", "")) == times


def test_soft_subtitles_say_what_was_written(story_dir, tmp_path):
    written = export(story_dir, tmp_path / "film.mp4", voice="none", subtitles="soft", **SMALL)
    command = ["ffmpeg", "-v", "error", "-i", str(written.path), "-map", "0:s", "-f", "webvtt", "-"]
    text = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    assert "Then the dog runs home as fast as it can." in text and "00:02.520" in text


@pytest.mark.skipif(not has_flite(), reason="needs ffmpeg with flite")
def test_a_spoken_turn_lasts_as_long_as_it_is_spoken(story_dir, tmp_path):
    texts = [page.text for page in read_book(story_dir).pages]
    said = Flite().speak(texts, tmp_path)
    expected = []
    for file in said:
        with wave.open(str(file)) as sound:
            seconds = sound.getnframes() / sound.getframerate()
        expected.append(np.ceil(FPS * max(SHORTEST, BEFORE + seconds + AFTER)) / FPS)
    written = export(story_dir, tmp_path / "film.mp4", voice="flite", **SMALL)
    assert np.diff(starts(written.beside[0].read_text())) == pytest.approx(expected, abs=1.01 / FPS)
    assert float(probe(written.path)["format"]["duration"]) == pytest.approx(sum(expected), abs=0.1)
    assert written.notes[0] == "spoken by flite" and not list(Path.cwd().glob("owned"))


def test_the_sound_track_is_silent_around_what_is_said(tmp_path):
    class Tone:
        name = "tone"

        def speak(self, texts, folder):
            for number, _ in enumerate(texts):
                with wave.open(str(folder / f"{number}.wav"), "wb") as sound:
                    sound.setparams((2, 2, 8000, 0, "NONE", ""))
                    sound.writeframes((np.ones(8000 * 4, np.int16) * 9000).tobytes())  # two channels, two seconds
            return [folder / f"{number}.wav" for number, _ in enumerate(texts)]

    narration = narrate(["one", "...", "three"], Tone(), tmp_path, fps=25)
    assert narration.frames == (80, 63, 80) and narration.spoken
    with wave.open(str(tmp_path / "narration.wav")) as track:
        rate = track.getframerate()
        loud = np.abs(np.frombuffer(track.readframes(track.getnframes()), np.int16).astype(int)) > 4000
    assert len(loud) / rate == pytest.approx(narration.seconds, abs=1e-4)
    assert not loud[: int(0.49 * rate)].any() and loud[int(0.55 * rate) : int(2.45 * rate)].all()
    assert not loud[int(2.55 * rate) : int((3.2 + 2.52 + 0.49) * rate)].any()


def test_a_voice_that_fails_leaves_nothing(story_dir, tmp_path):
    command = f"""{sys.executable} -c "import sys; sys.exit('hoarse')" {{wav}}"""
    with pytest.raises(UserError, match="hoarse"):
        export(story_dir, tmp_path / "film.mp4", voice_command=command, **SMALL)
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_without_ffmpeg_the_way_out_is_said(story_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "find_program", lambda name: None)
    with pytest.raises(UserError, match="apt-get install ffmpeg"):
        export(story_dir, tmp_path / "film.mp4", voice="none", **SMALL)


def test_ffmpeg_that_fails_is_one_line(story_dir, tmp_path, monkeypatch):
    bad = tmp_path / "bin" / "ffmpeg"
    bad.parent.mkdir()
    bad.write_text("#!/bin/sh\necho 'no such encoder' >&2\nexit 3\n")
    bad.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bad.parent}:/usr/bin:/bin")
    with pytest.raises(UserError, match="ffmpeg failed with 3: no such encoder"):
        export(story_dir, tmp_path / "film.mp4", voice="none", **SMALL)
    assert not (tmp_path / "film.mp4").exists()
