import shutil
import sys
import wave

import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.export import voices
from seedstory_jax.export.voices import Command, Espeak, Flite, Piper, choose_voice, has_flite, piper_model

ENGLISH, GERMAN, CHINESE = ["The dog waves."], ["Der Hund läuft über die Wiese."], ["猴子在公园里挥手。"]


@pytest.fixture
def installed(monkeypatch):
    """Which programs seem to be there."""

    def only(*names, languages=("en", "de", "cmn"), flite=True):
        monkeypatch.setattr(voices, "find_program", lambda name: name if name in names else None)
        monkeypatch.setattr(voices, "espeak_voice", lambda tag: tag if tag in languages else None)
        monkeypatch.setattr(voices, "has_flite", lambda: flite and "ffmpeg" in names)

    monkeypatch.setattr(voices, "piper_model", lambda language: None)
    return only


def test_auto_takes_who_speaks_the_language(installed):
    installed("ffmpeg", "espeak-ng")
    assert isinstance(choose_voice("auto", ENGLISH), Flite)
    assert isinstance(choose_voice("auto", GERMAN, language="de"), Espeak)
    assert isinstance(choose_voice("auto", ["A naïve café in Zürich, very naïve indeed."]), Espeak)
    assert choose_voice("auto", CHINESE) is None  # English was said, Chinese is there
    assert choose_voice("auto", ENGLISH, language="tlh") is None
    installed("ffmpeg", flite=False)
    assert choose_voice("auto", ENGLISH) is None


def test_a_voice_that_was_asked_for_must_be_there(installed):
    installed("ffmpeg", flite=False)
    for name, words in (("flite", "built without"), ("espeak", "apt-get"), ("piper", "pip install piper-tts")):
        with pytest.raises(UserError, match=words):
            choose_voice(name, ENGLISH)
    assert choose_voice("none", ENGLISH) is None


def test_piper_needs_a_model(installed, tmp_path):
    installed("piper", "ffmpeg")
    assert isinstance(choose_voice("auto", ENGLISH), Flite)
    assert choose_voice("auto", ENGLISH, model=tmp_path / "v.onnx") == Piper(tmp_path / "v.onnx")


@pytest.mark.skipif(not has_flite(), reason="needs ffmpeg with flite")
def test_flite_reads_any_text_from_files(tmp_path):
    texts = ["The dog waves.", "it's 'x':voice=kal, [a]; %{b} \\ " + "word " * 20]
    short, long = (duration(file) for file in Flite().speak(texts, tmp_path))
    assert 0.5 < short < 3 < long


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")
def test_espeak_reads_other_languages(tmp_path):
    assert voices.espeak_voice("zh") == "cmn" and voices.espeak_voice("tlh") is None
    german, empty = Espeak("de").speak([*GERMAN, "-v zz --help"], tmp_path)
    assert duration(german) > 1 and duration(empty) > 0.3


@pytest.mark.skipif(shutil.which("piper") is None or piper_model("en") is None, reason="needs piper and a voice")
def test_piper_reads_all_texts_in_order(tmp_path):
    texts = ["Go.", "This is a much longer sentence, and it is read to its end.", "Go."]
    lengths = [duration(file) for file in choose_voice("piper", texts).speak(texts, tmp_path)]
    assert len(lengths) == 3 and lengths[1] > 2 * max(lengths[0], lengths[2])


WRITE = (
    "import sys, wave; text = open(sys.argv[1]).read() if len(sys.argv) > 2 else sys.stdin.read();"
    "w = wave.open(sys.argv[-1], 'wb'); w.setparams((1, 2, 8000, 0, 'NONE', ''));"
    "w.writeframes(bytes(16000 * len(text.split())))"
)


@pytest.mark.parametrize("arguments", ["{text} {wav}", "{wav}"])
def test_a_command_reads_a_file_or_its_input_and_no_shell(tmp_path, arguments):
    voice = Command(f'{sys.executable} -c "{WRITE}" {arguments}')
    one, three = voice.speak(["one", "one $(touch owned) three"], tmp_path)
    assert duration(one) == 1 and duration(three) == 4
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("espeak", "must say where the sound goes"),
        ("'open {wav}", "cannot be taken apart"),
        ("no-such-program {wav}", "was not found"),
    ],
)
def test_commands_that_cannot_work_are_refused_early(line, words):
    with pytest.raises(UserError, match=words):
        choose_voice("auto", ENGLISH, command=line)


def test_a_command_that_fails_or_says_nothing(tmp_path):
    failing = f"""{sys.executable} -c "import sys; sys.exit('no voice today')" {{wav}}"""
    with pytest.raises(UserError, match="failed with 1: no voice today"):
        Command(failing).speak(["a"], tmp_path)
    with pytest.raises(UserError, match="wrote no sound"):
        Command(f'{sys.executable} -c "" {{wav}}').speak(["a"], tmp_path)


def duration(path) -> float:
    with wave.open(str(path)) as sound:
        return sound.getnframes() / sound.getframerate()
