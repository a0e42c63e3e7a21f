"""Processes of one job: found by a mark in their environment, ended for certain, never a stranger's recycled number."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from typing import Callable, Iterable

MARK = "EDGECOMPRESS_JOB"  # in the environment of whatever a job starts: it survives double forks and new sessions
ROUNDS = 200
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def boot_id(root: str = "/") -> str:
    """Names this start of the machine; "" where the kernel does not say."""
    try:
        with open(os.path.join(root, "proc/sys/kernel/random/boot_id"), encoding="ascii") as stream:
            return stream.read(64).strip()
    except OSError:
        return ""


def start_time(pid: int) -> int | None:
    """Clock ticks after boot at which a running process began; None when there is none, or only its zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            fields = stream.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def end(pid: int, started: int) -> bool:
    """SIGKILL for process ``pid`` if it still is the one that began at ``started``; whether it may be."""
    return _kill(pid, lambda: start_time(pid) == started)


def end_marked(mark: str, spare: Iterable[int] = ()) -> bool:
    """SIGKILL for every process with this mark but those in ``spare``, until there is none. Whether none is left."""
    spared = set(spare) | {os.getpid()}
    for attempt in range(ROUNDS):
        left = [pid for pid in _ours() if pid not in spared and _marked(pid, mark)]
        if not left:
            return True
        for pid in left:
            _kill(pid, lambda pid=pid: _marked(pid, mark))  # type: ignore[misc]
        time.sleep(min(0.01 * attempt, 0.05))
    return False


def adopt_orphans() -> None:
    """Children of our children come to us when those end, so that they can be reaped."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent(parent: int) -> None:
    """The kernel kills us when ``parent``, who started us, ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _ours() -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.stat(f"/proc/{name}").st_uid == os.getuid():
                    found.append(int(name))
            except OSError:
                pass  # it has ended meanwhile
    return found


def _marked(pid: int, mark: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as stream:
            return f"{MARK}={mark}".encode() in stream.read(1 << 20).split(b"\0")
    except OSError:
        return False


def _kill(pid: int, still: Callable[[], bool]) -> bool:
    """SIGKILL if ``still`` holds. With a pidfd (Python 3.9) the number cannot change hands in between."""
    try:
        if hasattr(os, "pidfd_open"):
            handle = os.pidfd_open(pid)
            try:
                if not still():
                    return False
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)
        elif still():
            os.kill(pid, signal.SIGKILL)
    except OSError:
        return False
    return True
