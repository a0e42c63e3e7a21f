"""The lease: one measurement at a time on a board, whoever asks and from wherever, in the order of asking.

Everybody who wants to measure has a ticket: a file whose name tells when it was drawn (the machine's monotonic clock)
and which its process keeps locked. The kernel drops that lock however the process ends, so a dead holder's lease ends
with it. A ticket also carries a heartbeat; one that is silent for ``HUNG_S`` counts no more, and its process, if it is
ours to end, is ended. Nobody needs to write what another user owns.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from typing import Any, Callable

from bench_remote import processes
from bench_remote.store import Refusal

HUNG_S = 30.0
BEAT_S = 5.0
TICKET_BYTES = 512
FOLDER = "edgecompress"


class Lost(Exception):
    """We were stopped for so long that the lease may be another's now."""


class Ticket:
    """Somebody's ticket as others see it."""

    def __init__(self, name: str, said: dict[str, Any]) -> None:
        self.name = name
        who, beat = said.get("who"), said.get("beat")
        self.who = "".join(c for c in who if c.isprintable())[:128] if isinstance(who, str) else "somebody"
        self.running = said.get("running") is True
        self.hung = isinstance(beat, (int, float)) and time.monotonic() - beat > HUNG_S
        self.process = (said.get("pid"), said.get("started"))

    def end_hung(self) -> None:
        """End the process that hangs, where that is allowed to us."""
        pid, started = self.process
        if isinstance(pid, int) and isinstance(started, int) and pid > 1:
            processes.end(pid, started)


class Lease:
    """Ours: draw a ticket by ``take``, keep it alive by ``beat``, give it back by ``close`` (or by dying)."""

    def __init__(self, parents: list[str], cache: str, who: str) -> None:
        self.folder = shared_folder(parents, cache)
        self.name, self._who, self._running = "", who, False
        self._cache, self._ticket, self._locks = cache, -1, []  # type: ignore[var-annotated]
        self._beat = 0.0

    def take(self, wait_s: float, pause: Callable[[float], None], tell: Callable[[str, int], None]) -> None:
        """Wait until it is our turn. ``tell`` hears who measures now and how many are before us, when that changes.

        Raises:
            Refusal: ``lock``, after ``wait_s``; it names the holder.
        """
        self._draw()
        until, told = time.monotonic() + wait_s, None
        while True:
            others = self._others()
            hung = [ticket for ticket in others if ticket.hung]
            for ticket in hung:
                ticket.end_hung()
            before = [one for one in others if not one.hung and (one.running or one.name < self.name)]
            if not before and self._lock(any(ticket.running for ticket in hung)):
                self._running = True
                self._write()
                return
            holder = next((one.who for one in before if one.running), before[0].who if before else "another session")
            if time.monotonic() >= until:
                self.close()
                raise Refusal("lock", f"{holder} measures on this device (waited {wait_s:.0f} s)")
            if told != (holder, len(before)):
                told = (holder, len(before))
                tell(holder, max(len(before), 1))
            self.beat()
            pause(0.2)

    def beat(self) -> None:
        """Say that we are alive, every ``BEAT_S`` at most. Lost when the last time was ``HUNG_S`` ago."""
        since = time.monotonic() - self._beat
        if self._running and since > HUNG_S:
            raise Lost(f"stopped for {since:.0f} s: the lease may be another's now")
        if since > BEAT_S:
            self._write()

    def close(self) -> None:
        """Give it back. Safe to call twice."""
        if self._ticket >= 0:
            _unlink(os.path.join(self.folder, self.name))
            os.close(self._ticket)
            self._ticket = -1
        for lock in self._locks:
            os.close(lock)
        self._locks = []

    def _draw(self) -> None:
        self.name = f"{time.monotonic_ns():020d}.{os.getpid()}"
        path = os.path.join(self.folder, self.name)
        self._ticket = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._ticket, fcntl.LOCK_EX)
        os.fchmod(self._ticket, 0o644)
        self._write()

    def _write(self) -> None:
        self._beat = time.monotonic()
        pid = os.getpid()
        said = {"who": self._who[:128], "running": self._running, "beat": self._beat, "pid": pid}
        text = json.dumps(dict(said, started=processes.start_time(pid)))
        os.pwrite(self._ticket, text.encode("ascii").ljust(TICKET_BYTES)[:4096], 0)

    def _others(self) -> list[Ticket]:
        """Tickets whose processes live, in order. Those of the dead are cleared away where we may."""
        found = []
        for name in sorted(os.listdir(self.folder)):
            path = os.path.join(self.folder, name)
            if name == self.name or not name[:20].isdigit():
                continue
            try:
                ticket = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError:
                continue
            try:
                if _lock_now(ticket, fcntl.LOCK_SH):
                    if abs(time.monotonic_ns() - int(name[:20])) > 10**10:  # a fresh one may not be locked yet
                        _unlink(path)
                    continue
                said = json.loads(os.pread(ticket, 4096, 0).decode("ascii"))
                found.append(Ticket(name, said if isinstance(said, dict) else {}))
            except (OSError, ValueError):
                found.append(Ticket(name, {}))
            finally:
                os.close(ticket)
        return found

    def _lock(self, by_force: bool) -> bool:
        """The board's own lock and the cache's (which older agents know). A hung holder of the first is passed by."""
        taken = []
        for path in (os.path.join(self.folder, "lock"), os.path.join(self._cache, "lock")):
            lock = _open_lock(path)
            taken.append(lock)
            if not _lock_now(lock, fcntl.LOCK_EX) and not by_force:
                for one in taken:
                    os.close(one)
                return False
        self._locks = taken
        return True


def shared_folder(parents: list[str], cache: str) -> str:
    """Where tickets are drawn: a folder that all users share below the first of ``parents`` that lets us, else ours."""
    for parent in parents:
        place = os.path.join(parent, FOLDER)
        try:
            os.mkdir(place)
            os.chmod(place, 0o1777)
        except OSError:
            pass  # it is there, or cannot be
        if os.path.isdir(place) and not os.path.islink(place) and os.access(place, os.R_OK | os.W_OK | os.X_OK):
            return place
    place = os.path.join(cache, "lease")
    os.makedirs(place, mode=0o700, exist_ok=True)
    return place


def _open_lock(path: str) -> int:
    """Open for reading is enough to lock, and the kernel lets nobody create over another's file in a shared folder."""
    for flags in (os.O_RDONLY, os.O_RDONLY | os.O_CREAT | os.O_EXCL, os.O_RDONLY):
        try:
            return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        except FileExistsError:
            pass
    raise OSError(errno.EAGAIN, "the lock file comes and goes", path)


def _lock_now(stream: int, kind: int) -> bool:
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
        return True
    except OSError as why:
        if why.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # another user's, or another was first
