from importlib import metadata

import jax
import pytest

from seedstory_jax import __version__, environment
from seedstory_jax.errors import UserError


def test_versions_devices_and_flags(capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=there")
    monkeypatch.setenv("NVIDIA_API_KEY", "secret")
    assert environment.main([]) == 0
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["seedstory_jax"] == __version__ and facts["flax"] == metadata.version("flax")
    assert facts["jaxlib"] == metadata.version("jaxlib")
    assert facts["devices"] == f"{jax.device_count()} x cpu"
    assert facts["XLA_FLAGS"] == "--xla_dump_to=there"
    assert "secret" not in facts.values()


def test_an_accelerator_that_cannot_be_reached_is_reported(monkeypatch):
    def refuse():
        raise RuntimeError("Unable to initialize backend 'tpu'\nmore")

    monkeypatch.setattr(jax, "devices", refuse)
    assert environment.environment()["devices"] == "none: Unable to initialize backend 'tpu'"


def test_what_is_not_installed_is_said():
    assert environment.version_of("no-such-package") == "not installed"


def test_a_wrong_flag():
    with pytest.raises(UserError, match="unknown flag '--al'"):
        environment.main(["--al"])
