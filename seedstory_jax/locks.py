"""A folder that is written to has one owner at a time; a second one is told who holds it.

The owner is a small JSON file: host, process, its start, and a modification time that a thread renews as a heartbeat.
Owners that died leave it behind and it is taken over: on the same host as soon as the process is gone, from another
host once the heartbeat is older than `STALE_S`. The kernel's file lock is held only while the file is read and written,
so that two who find a dead owner at once do not both take over; it cannot replace the file, since not every shared file
system passes it on to other hosts.
"""

import contextlib
import fcntl
import json
import logging
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from seedstory_jax.errors import UserError

log = logging.getLogger(__name__)

STALE_S = 120.0  # seconds without a heartbeat after which another host's owner counts as dead
HEARTBEAT_S = 15.0
TAKEN_AWAY = 75  # exit code: the work can go on by the same command


@contextlib.contextmanager
def owned(folder: Path, *, by: str, beside: bool = False) -> Iterator[None]:
    """Owns `folder` for the block; `by` names the command to whoever finds it held.

    The lock is `folder/.lock`, or with `beside` a file next to the folder, where the content of the folder is outputs
    and nothing else. Raises UserError, which names the holder, if a living process owns it. If another host takes the
    folder over while this process stood still for `STALE_S`, the process ends with exit code 75 rather than write
    beside the new owner.
    """
    place = folder.absolute()
    path = place.with_name(f".{place.name[:100]}.lock") if beside and place.name else place / ".lock"
    own = {"by": by, **_process(os.getpid())}
    with _taken(path) as file:
        other, age = _read(file), _age(path)
        if other is not None and _lives(other, age):
            raise UserError(
                f"{folder} is held by `{other['by']}`, process {other['pid']} on {other['host']}, "
                f"seen {age:.0f} s ago: wait for it or stop it, or name another folder"
            )
        if other is not None:
            log.warning("%s: the lock of process %s on %s, which is dead, is taken over", path, *_who(other))
        _write(file, own)
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, own, ended), daemon=True, name="heartbeat")
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        with contextlib.suppress(OSError), _opened(path) as file:
            if _read(file) == own:
                path.unlink()


@contextlib.contextmanager
def _taken(path: Path) -> Iterator[IO[str]]:
    """`_opened`, in a folder that may not be there yet. Raises UserError if none can be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("a+")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): name a folder that can") from None
    opened.close()
    with _opened(path) as file:
        yield file


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """The lock file, made if it is not there, for this process alone."""
    while True:
        with path.open("a+", encoding="utf-8", errors="replace") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                same = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except FileNotFoundError:  # the owner before removed it between our opening and our locking
                continue
            if same:
                yield file
                return


def _read(file: IO[str]) -> dict[str, Any] | None:
    """The owner that the file names; None if it names none, as a file does whose writer was killed."""
    file.seek(0)
    try:
        owner = json.loads(file.read(10_000))
        return {**owner, "by": str(owner["by"]), "host": str(owner["host"]), "pid": int(owner["pid"])}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _write(file: IO[str], owner: Mapping[str, Any]) -> None:
    file.seek(0)
    file.truncate()
    file.write(json.dumps(owner) + "\n")
    file.flush()


def _beat(path: Path, own: Mapping[str, Any], ended: threading.Event) -> None:
    """Renews the file's time until the block ends."""
    while not ended.wait(HEARTBEAT_S):
        try:
            with _opened(path) as file:
                other = _read(file)
                if other is None:  # removed by hand, or emptied: nobody else holds it
                    _write(file, own)
                elif other != own:
                    who = "process {} on {}".format(*_who(other))
                    print(f"error: {path} was taken over by {who} while this process stood still", file=sys.stderr)
                    sys.stderr.flush()
                    os._exit(TAKEN_AWAY)
            os.utime(path)
        except OSError as error:  # a network file system that is away for a while
            log.warning("%s: no heartbeat: %s", path, error)


def _who(owner: Mapping[str, Any]) -> tuple[int, str]:
    return owner["pid"], owner["host"]


def _age(path: Path) -> float:
    """Seconds since the last heartbeat, by the clock of the file system, which all hosts share."""
    try:
        with tempfile.TemporaryFile(dir=path.parent) as now:
            return max(0.0, os.fstat(now.fileno()).st_mtime - path.stat().st_mtime)
    except OSError:
        return max(0.0, time.time() - path.stat().st_mtime)


def _lives(owner: Mapping[str, Any], age: float) -> bool:
    if owner["host"] != platform.node():
        return age <= STALE_S
    now = _process(owner["pid"])
    if owner.get("namespace") != now["namespace"]:  # a container whose processes cannot be seen from here
        return age <= STALE_S
    return now["started"] is not None and now["started"] == owner.get("started")


def _process(pid: int) -> dict[str, Any]:
    """What tells a process from all others: host, namespace, number, and start; `started` is None if it is dead."""
    namespace, started = "", None
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # from the state on
        started = None if fields[0] in "ZX" else f"{boot} {fields[19]}"
    except OSError:
        if not Path("/proc/self/stat").exists():  # not Linux: by number alone
            with contextlib.suppress(ProcessLookupError, OverflowError):
                with contextlib.suppress(PermissionError):  # another user's, alive
                    os.kill(pid, 0)
                started = "alive"
    return {"host": platform.node(), "namespace": namespace, "pid": pid, "started": started}
