import pytest

from seedstory_jax.export.subtitles import SHORTEST, Cue, reading_seconds, srt, vtt

CUES = [Cue(0.0, 2.5, "The dog waves."), Cue(2.5, 3661.04, "<b>a</b> --> {b} & c")]


def test_srt():
    first, second = srt(CUES).split("\n\n")
    assert first == "1\n00:00:00,000 --> 00:00:02,500\nThe dog waves."
    assert second.splitlines()[1] == "00:00:02,500 --> 01:01:01,040"
    assert not set(second.splitlines()[2]) & set("<>{}")


def test_vtt():
    text = vtt(CUES)
    assert text.startswith("WEBVTT\n\n1\n00:00:00.000 --> 00:00:02.500\nThe dog waves.\n\n2\n")
    assert "&lt;b&gt;a&lt;/b&gt; --&gt; {b} &amp; c" in text


def test_reading_time_grows_with_words_and_with_characters():
    assert reading_seconds("") == reading_seconds("Go!") == SHORTEST
    assert reading_seconds("word " * 26) == pytest.approx(11.0)
    assert reading_seconds("猴" * 50) == pytest.approx(11.4, abs=0.1)
