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
    fields = _fields(pid)
    return None if not fields or fields[0] in ("Z", "X") else int(fields[19])


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


def below(pid: int) -> list[tuple[int, int]]:
    """Children of ``pid``, their children and so on, as (process, start time)."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            parent = _fields(int(name))[1:2]
            parents.setdefault(int(parent[0]) if parent else 0, []).append(int(name))
    found, todo = [], parents.get(pid, [])
    while todo:
        child = todo.pop()
        todo += parents.get(child, [])
        started = start_time(child)
        if started is not None:
            found.append((child, started))
    return found


def end_below(pid: int) -> bool:
    """SIGKILL for all that is below ``pid``, also without our mark, until there is nothing. Whether there is nothing."""
    for attempt in range(ROUNDS):
        left = below(pid)
        if not left:
            return True
        for child, started in left:
            end(child, started)
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


def _fields(pid: int) -> list[str]:
    """``/proc/<pid>/stat`` behind the name, which may hold anything: state, parent, ...; empty when there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            return stream.read().rpartition(")")[2].split()
    except OSError:
        return []


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
    """SIGKILL if ``still`` holds. With a pidfd (Python 3.9, Linux 5.3) the number cannot change hands in between."""
    handle = None
    try:
        if hasattr(os, "pidfd_open"):
            handle = os.pidfd_open(pid)
    except OSError:
        pass  # gone, or an older kernel; kill() will tell
    try:
        if not still():
            return False
        if handle is None:
            os.kill(pid, signal.SIGKILL)
        else:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        return True
    except OSError:
        return False
    finally:
        if handle is not None:
            os.close(handle)
