"""A folder has one owner; a dead owner's folder is taken over."""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time

import pytest

from seedstory_jax import locks
from seedstory_jax.errors import UserError
from seedstory_jax.locks import owned


def owner(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("beside", [False, True])
def test_a_second_owner_is_told_who_holds_the_folder_and_the_next_may_have_it(tmp_path, beside):
    folder = tmp_path / "a" / "run"
    path = tmp_path / "a" / ".run.lock" if beside else folder / ".lock"
    for _ in range(2):
        with owned(folder, by="train", beside=beside):
            assert owner(path)["pid"] == os.getpid()
            said = rf"run is held by `train`, process {os.getpid()} on {platform.node()}, seen 0 s ago: wait"
            with pytest.raises(UserError, match=said), owned(folder, by="other", beside=beside):
                pass
            assert owner(path)["by"] == "train"  # whoever was refused leaves the lock alone
        assert not path.exists()


def test_an_error_in_the_block_gives_the_folder_back(tmp_path):
    with pytest.raises(ZeroDivisionError), owned(tmp_path, by="train"):
        raise ZeroDivisionError
    with owned(tmp_path, by="train"):
        pass
    assert not list(tmp_path.iterdir())


def held(**changes):
    """An owner that lives: this process."""
    return {"by": "train", **locks._process(os.getpid()), **changes}


DEAD = {"a number that is gone": {"pid": 2**22 + 1}, "a number that is another's now": {"started": "boot 1"}}


@pytest.mark.parametrize("change", DEAD.values(), ids=DEAD)
def test_on_the_same_host_a_dead_owner_is_known_at_once(tmp_path, change):
    (tmp_path / ".lock").write_text(json.dumps(held(**change)))
    with owned(tmp_path, by="train"):
        assert owner(tmp_path / ".lock") == held()


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"namespace": "pid:[1]"}], ids=["host", "container"])
def test_elsewhere_the_heartbeat_tells(tmp_path, change):
    path = tmp_path / ".lock"
    path.write_text(json.dumps(held(**change, pid=2**22 + 1)))
    os.utime(path, (time.time() - 110,) * 2)
    with pytest.raises(UserError, match=r"seen 1[12]\d s ago"), owned(tmp_path, by="train"):
        pass
    os.utime(path, (time.time() - 130,) * 2)
    with owned(tmp_path, by="train"):
        assert owner(path) == held()


@pytest.mark.parametrize("text", ["", "{", '{"by": "train", "ho', "[]", "null", '{"by": 1}', "\0" * 99, "[" * 9999])
def test_a_torn_lock_is_nobodys(tmp_path, text):
    (tmp_path / ".lock").write_text(text)
    with owned(tmp_path, by="train"):
        assert owner(tmp_path / ".lock") == held()


def test_no_lock_can_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot be written"), owned(tmp_path / "file", by="train"):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_the_heartbeat_renews_and_restores_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.01)
    path = tmp_path / ".lock"

    def soon(holds):
        until = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < until
            time.sleep(0.005)

    with owned(tmp_path, by="train"):
        os.utime(path, (1, 1))
        soon(lambda: path.stat().st_mtime > 1)
        path.unlink()
        soon(lambda: path.exists() and path.read_text() and owner(path) == held())


def test_of_many_who_find_a_dead_owner_one_takes_over(tmp_path):
    (tmp_path / ".lock").write_text(json.dumps(held(pid=2**22 + 1)))
    start, done = threading.Barrier(16), threading.Barrier(16)
    got = []

    def attempt():
        start.wait()
        try:
            with owned(tmp_path, by="train"):
                got.append("owner")
                done.wait()
        except UserError:
            got.append("refused")
            done.wait()

    threads = [threading.Thread(target=attempt) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == ["owner"] + ["refused"] * 15


HOLD = """
import signal, sys, time
from pathlib import Path
from seedstory_jax import cli, locks
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background starts with it ignored
if len(sys.argv) > 2:
    locks.HEARTBEAT_S = float(sys.argv[2])
def main(arguments):
    with locks.owned(Path(arguments[0]), by="train"):
        print("held", flush=True)
        time.sleep(60)
cli.run(main)
"""


def holder(folder, *more):
    command = [sys.executable, "-c", HOLD, str(folder), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.walk
def test_two_processes(tmp_path):
    first = holder(tmp_path)
    assert first.stdout.readline() == "held\n"
    second = holder(tmp_path)
    out, err = second.communicate(timeout=60)
    assert second.returncode == 2 and out == "" and err.count("\n") == 1
    assert f"held by `train`, process {first.pid} on {platform.node()}" in err
    first.send_signal(signal.SIGKILL)  # unreaped, as a child of a shell that does not look may stay for long
    time.sleep(0.5)
    third = holder(tmp_path)
    assert third.stdout.readline() == "held\n"
    assert owner(tmp_path / ".lock")["pid"] == third.pid
    third.send_signal(signal.SIGINT)
    third.communicate(timeout=60)
    assert third.returncode == 130 and not (tmp_path / ".lock").exists()
    first.communicate(timeout=60)


@pytest.mark.walk
def test_who_was_taken_over_while_it_stood_still_ends(tmp_path):
    first = holder(tmp_path, "0.2")
    assert first.stdout.readline() == "held\n"
    first.send_signal(signal.SIGSTOP)
    (tmp_path / ".lock").write_text(json.dumps(held(host="elsewhere", pid=7)))
    first.send_signal(signal.SIGCONT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 75 and "was taken over by process 7 on elsewhere" in err and err.count("\n") == 1
    assert owner(tmp_path / ".lock")["host"] == "elsewhere"
