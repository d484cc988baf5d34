import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.storystream.build.subtitles import (
    Cue,
    find_subtitles,
    parse_subtitles,
    read_subtitles,
    said_between,
    seconds,
)

SRT = """1
00:00:01,000 --> 00:00:03,500
<i>Hello,</i>
world

2
00:01:02,250 --> 00:01:04,000 X1:40
{\\an8}Up &amp; away

3
nonsense

4
00:00:09,000 --> 00:00:08,000
backwards

5
00:00:05,000 --> 00:00:06,000

"""
VTT = "WEBVTT - title\r\n\r\nNOTE a note\r\n\r\nintro\r\n"
VTT += "00:01.000 --> 00:03.500 align:start\r\n<v Ann>Hello,\r\nworld\r\n"


def test_srt():
    assert parse_subtitles(SRT) == [Cue(1, 3.5, "Hello, world"), Cue(62.25, 64, "Up & away")]


def test_vtt():
    assert parse_subtitles("\ufeff" + VTT) == [Cue(1, 3.5, "Hello, world")]


@pytest.mark.parametrize(
    ("stamp", "value"), [("00:00:01,5", 1.5), ("1:02:03.045", 3723.045), ("02:03.4", 123.4), ("00:07", 7)]
)
def test_seconds(stamp, value):
    assert seconds(stamp) == pytest.approx(value)


def test_said_between():
    cues = [Cue(0, 2, "a"), Cue(1, 4, "b"), Cue(9, 11, "c")]
    assert said_between(cues, 0, 5) == "a b" and said_between(cues, 2, 5) == "b" and said_between(cues, 10, 99) == "c"


def test_files(tmp_path):
    video = tmp_path / "a.mp4"
    assert find_subtitles(video) is None
    (tmp_path / "a.en.srt").write_bytes("1\n00:00:01,000 --> 00:00:02,000\ncaf\xe9\n".encode("latin-1"))
    assert find_subtitles(video) == tmp_path / "a.en.srt"
    assert read_subtitles(tmp_path / "a.en.srt")[0].text == "café"
    (tmp_path / "a.en.srt").write_text("nothing")
    with pytest.raises(UserError, match="holds no subtitle"):
        read_subtitles(tmp_path / "a.en.srt")
