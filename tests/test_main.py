import contextlib
import importlib
import subprocess
import sys

import pytest

from seedstory_jax import __version__
from seedstory_jax.__main__ import COMMANDS, COMPUTING, main
from seedstory_jax.errors import UserError


def test_help_lists_every_command_in_order(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(COMMANDS)
    assert main([]) == 2


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"seedstory_jax {__version__}\n"


def test_a_wrong_command_names_the_nearest():
    with pytest.raises(UserError, match="'trian': did you mean 'train'"):
        main(["trian"])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_main_and_tells_its_flags(name, monkeypatch, capsys):
    monkeypatch.setattr("seedstory_jax.cli.tune_allocator", lambda: None)
    monkeypatch.setattr(sys, "argv", ["seedstory", name, "--help"])
    try:
        code = main([name, "--help"])
    except SystemExit as stop:
        code = stop.code
    assert code == 0 and capsys.readouterr().out
    assert callable(importlib.import_module(COMMANDS[name]).main)


def test_only_what_computes_starts_again_with_another_allocator(monkeypatch, capsys):
    tuned = []
    monkeypatch.setattr("seedstory_jax.cli.tune_allocator", lambda: tuned.append(sys.argv[1]))
    for name in COMMANDS:
        monkeypatch.setattr(sys, "argv", ["seedstory", name])
        with contextlib.suppress(SystemExit):
            main([name, "--help"])
    assert tuple(tuned) == COMPUTING


@pytest.mark.walk
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["sample", "--help"], ["env"]])
def test_nothing_but_the_answer_is_printed(arguments):
    done = subprocess.run([sys.executable, "-m", "seedstory_jax", *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout


@pytest.mark.walk
def test_help_and_version_need_no_jax():
    program = "import sys; from seedstory_jax.__main__ import main; main(['--version']); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL).returncode == 0
