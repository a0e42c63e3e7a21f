"""One detached job's folder on the device: ``<cache>/jobs/<id>``, and what its files tell about who is at work there."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from typing import Any

from bench_remote import processes
from bench_remote.journal import ENDS, Journal
from bench_remote.store import Refusal

KEPT_S = 86_400.0  # a journal that nobody fetches is kept for so long
LOG_BYTES = 4 << 20


class Place:
    """Paths of a job, and the locks that say who is alive: its keeper (``lock``) and its follower (``follower``)."""

    def __init__(self, cache: str, job_id: object) -> None:
        if not isinstance(job_id, str) or not re.match("^[0-9a-f]{64}$", job_id):
            raise Refusal("job", "not a job's id")
        self.cache, self.id = os.path.expanduser(cache), job_id
        self.path = os.path.join(self.cache, "jobs", job_id)
        self.journal, self.job, self.status, self.log, self.files, self.followed = (
            os.path.join(self.path, name) for name in ("journal", "job.json", "status", "log", "files", "followed")
        )

    def make(self) -> None:
        """The folder, if it is not there."""
        os.makedirs(self.path, mode=0o700, exist_ok=True)

    def lock(self, name: str) -> int | None:
        """Hold ``lock`` or ``follower`` until the descriptor is closed; None when a living process has it."""
        stream = os.open(os.path.join(self.path, name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(stream)
            return None
        return stream

    def wait_for(self, name: str, seconds: float) -> int | None:
        """As ``lock``, trying for some time."""
        until = time.monotonic() + seconds
        while True:
            held = self.lock(name)
            if held is not None or time.monotonic() > until:
                return held
            time.sleep(0.05)

    def ended(self) -> bool:
        """Whether the journal has its last event."""
        try:
            with open(self.journal, "rb") as stream:
                stream.seek(max(os.path.getsize(self.journal) - (1 << 16), 0))
                last = stream.read(1 << 20).rstrip(b"\n").rpartition(b"\n")[2]
            return json.loads(last.decode("ascii"))["event"] in ENDS
        except (OSError, ValueError, TypeError, KeyError):
            return False

    def write_status(self, state: str, **more: Any) -> None:
        """``state`` with who keeps the job on which start of the machine; written beside and renamed."""
        pid = os.getpid()
        said = {"state": state, "pid": pid, "started": processes.start_time(pid), "boot_id": processes.boot_id()}
        with open(self.status + ".new", "w", encoding="ascii") as stream:
            json.dump(dict(said, **more), stream)
        os.replace(self.status + ".new", self.status)

    def read_status(self) -> dict[str, Any]:
        """What ``write_status`` wrote; empty when there is none."""
        try:
            with open(self.status, encoding="ascii") as stream:
                said = json.loads(stream.read(1 << 16))
            return said if isinstance(said, dict) else {}
        except (OSError, ValueError):
            return {}

    def lost(self, root: str = "/") -> str:
        """Why the keeper of an unfinished job is gone."""
        then, now = self.read_status().get("boot_id"), processes.boot_id(root)
        if then and now and then != now:
            return "the device was restarted while the job ran"
        return "the job's supervisor was killed on the device"

    def finish(self, event: dict[str, Any]) -> None:
        """The job's end, whoever writes it: nothing of it runs any more, its files are gone, the last word is kept."""
        self.end_all()
        shutil.rmtree(self.files, ignore_errors=True)
        journal = Journal(self.journal, self.id)
        if not journal.events or journal.events[-1]["event"] not in ENDS:
            journal.end(event)
        journal.close()

    def remove(self) -> None:
        """Nothing of the job stays."""
        self.end_all()
        shutil.rmtree(self.path, ignore_errors=True)

    def end_all(self) -> None:
        """End every process of the job but ourselves: those with its mark, and all below its keeper, mark or none."""
        said = self.read_status()
        keeper, started = said.get("pid"), said.get("started")
        known = isinstance(keeper, int) and isinstance(started, int) and processes.start_time(keeper) == started
        left = processes.below(keeper) if known and isinstance(keeper, int) else []
        processes.end_marked(self.id)
        if keeper == os.getpid():
            processes.end_below(keeper)
        for pid, began in left:
            processes.end(pid, began)

    def trim_log(self) -> None:
        """A runtime that prints without end does not fill the disk."""
        try:
            if os.path.getsize(self.log) > LOG_BYTES:
                os.truncate(self.log, 0)
        except OSError:
            pass

    def log_tail(self) -> bytes:
        """The last words on standard error."""
        try:
            with open(self.log, "rb") as stream:
                stream.seek(max(os.path.getsize(self.log) - 2048, 0))
                return stream.read(2048)
        except OSError:
            return b""


def sweep(cache: str, keep: str) -> None:
    """Remove folders of jobs but ``keep`` that ended, or lost their keeper, a day ago and that nobody came back for."""
    jobs = os.path.join(os.path.expanduser(cache), "jobs")
    for name in os.listdir(jobs) if os.path.isdir(jobs) else []:
        try:
            place = Place(cache, name)
            if name == keep or time.time() - os.path.getmtime(place.path) < KEPT_S:
                continue
            held = place.lock("lock")
        except (Refusal, OSError):
            continue
        if held is not None:
            place.remove()
            os.close(held)
