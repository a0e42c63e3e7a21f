"""The keeper of a detached job: waits for the lease, runs the supervisor as its child, and sees to it that all ends.

The job ends by itself, by its deadline, when nobody has followed it for ``orphan_s``, or when its keeper is told to
(SIGTERM). However it ends, nothing of it runs any more, its files are gone, and the journal's last event says how.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from typing import Any, Callable, NoReturn

from bench_remote import oom, processes
from bench_remote.journal import FULL, Journal
from bench_remote.lease import Lease, Lost
from bench_remote.place import Place
from bench_remote.store import JobFolder, Refusal

TICK_S = 1.0
LATE_S = 5.0  # the supervisor ends itself at the deadline; when it does not (stopped), the keeper does so much later
MAX_WORD_BYTES = 64 << 10
ORPHAN_S = 900.0

Run = Callable[["dict[str, Any]", str, Journal], "dict[str, Any]"]


class End(Exception):
    """The job ends here: ``kind`` and message of its last event."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.event = {"event": "failed", "kind": kind, "message": message}


def keep(place: Place, hello: dict[str, Any], run: Run) -> int:
    """Keep the job of ``place``, whose lock we have. ``run(job, folder, journal)`` gives its last event."""
    processes.adopt_orphans()
    signal.signal(signal.SIGTERM, _told_to_end)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        return _keep(place, hello, run)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _keep(place: Place, hello: dict[str, Any], run: Run) -> int:
    journal, lease = Journal(place.journal, place.id), None
    try:
        with open(place.job, encoding="ascii") as stream:
            job = json.load(stream)
        journal.keep_reserve()
        place.write_status("running")
        journal.write(hello, sync=True)
        watch = Watch(place, job)
        lease = Lease(job.get("lease", []), place.cache, str(job.get("who", "")))
        lease.take(job["busy_wait_s"], watch.pause, lambda who, n: journal.write(_waiting(who, n)))
        place.write_status("running", lease=lease.name)
        with JobFolder(place.cache, job["files"], place.id) as folder:
            last = _run(watch, lease, lambda: run(job, folder, journal))
    except Refusal as why:
        last = {"event": "refused", "need": why.need, "message": why.message}
    except End as why:
        last = why.event
    except Lost as why:
        last = End("lease", str(why)).event
    except OSError as why:
        if why.errno not in FULL:
            raise
        last = {"event": "refused", "need": "disk", "message": "no space left on the device"}
    finally:
        journal.close()
    place.finish(last)
    if lease is not None:
        lease.close()
    try:
        place.write_status("finished" if last["event"] == "done" else "failed")
    except OSError:
        pass  # the journal has its end, and that is what counts
    return 0


class Watch:
    """Looks after a job once a second: its time, and whether anybody still wants it."""

    def __init__(self, place: Place, job: dict[str, Any]) -> None:
        self._place, now = place, time.monotonic()
        self._until = now + float(job["deadline_s"]) + LATE_S
        self._orphan_s = float(job.get("orphan_s", ORPHAN_S))
        self._touched, self._seen = 0, now

    def look(self) -> None:
        """End when the job's time is over, or when nobody has followed it for long. By the monotonic clock alone."""
        now = time.monotonic()
        try:
            touched = os.stat(self._place.followed).st_mtime_ns
        except OSError:
            touched = self._touched
        if touched != self._touched:
            self._touched, self._seen = touched, now
        if now > self._until:
            raise End("deadline", "the job's time limit passed on the device")
        if now - self._seen > self._orphan_s:
            raise End("orphan", f"nobody has followed the job for {self._orphan_s:.0f} s")
        self._place.trim_log()
        _reap()

    def pause(self, seconds: float) -> None:
        """Sleep, looking."""
        self.look()
        time.sleep(seconds)


def _run(watch: Watch, lease: Lease, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The supervisor as a child; its last event, or what can be said for it when it died without one."""
    before, us = oom.kills(), os.getpid()
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reads)
        _be_supervisor(us, writes, run)
    os.close(writes)
    said = b""
    while True:
        ready = select.select([reads], [], [], TICK_S)[0]
        watch.look()
        lease.beat()
        if ready:
            block = os.read(reads, MAX_WORD_BYTES)
            said += block
            if not block or len(said) > MAX_WORD_BYTES:
                break
    os.close(reads)
    try:
        event = json.loads(said.decode("ascii"))
        return dict(event) if isinstance(event, dict) and "event" in event else _unsaid(before)
    except ValueError:
        return _unsaid(before)


def _be_supervisor(parent: int, writes: int, run: Callable[[], dict[str, Any]]) -> NoReturn:
    status = 1
    try:
        processes.end_with_parent(parent)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.write(writes, json.dumps(run()).encode("ascii"))
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def _unsaid(before: dict[str, int]) -> dict[str, Any]:
    memory = oom.reason(before, oom.kills(), None)
    if memory:
        return End("memory", f"out of memory: the job's supervisor was killed ({memory})").event
    return End("lost", "the job's supervisor was killed on the device").event


def _waiting(who: str, before: int) -> dict[str, Any]:
    return {"event": "waiting", "holder": who, "before": before}


def _reap() -> None:
    """Zombies of workers' children. Not the supervisor: its pipe says when it has ended, and it then is one of them."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _told_to_end(signum: int, frame: Any) -> NoReturn:
    raise End("ended", "the job was told to end on the device (SIGTERM)")
