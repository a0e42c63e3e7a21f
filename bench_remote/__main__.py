"""The supervisor: runs every repetition of one job in a fresh process and passes events on.

A job with an ``id`` is detached: its events go to a journal, and it lives without the connection (``follower``,
``keeper``). Another's events go to standard output, and its standard input is the lifeline: at its end all ends.
It stays small and single-threaded: a runtime that crashes, hangs or eats all memory does so in a worker.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any, NoReturn

from bench_remote import PROTOCOL, facts, follower, keeper, oom, processes, telemetry
from bench_remote.journal import ENDS, FULL, Journal
from bench_remote.lease import Lease, Lost
from bench_remote.place import Place
from bench_remote.store import JobFolder, Refusal

MAX_JOB_BYTES = 1 << 20
WORKER = "import sys; sys.path.insert(0, sys.argv[1]); from bench_remote.worker import main; main()"
LAST_WORDS = (
    "memory",
    "runtime",
    "memory_pass",
    "operators",
)  # a worker that ends without one of these, refused or failed, has crashed
BAD_ENDS = ("refused", "failed")


TICK_S = 1.0
LEFT_S = 0.3  # what a dead worker's pipe may still bring; a child of its own may hold it open for ever


class Deadline(Exception):
    """The job's time is over."""


class Output:
    """Where events go, what to look after while waiting, and the mark that workers carry."""

    def __init__(self) -> None:
        self.journal: Journal | None = None
        self.last: dict[str, Any] = {}
        self.lifeline, self.look, self.mark = [0], _nothing, f"attached-{os.getpid()}-{time.monotonic_ns()}"

    def detach(self, journal: Journal, mark: str) -> None:
        """Events into a journal from here on, but for the last one, which is kept for whoever ends the job."""
        self.journal, self.lifeline, self.mark = journal, [], mark

    def write(self, line: bytes) -> None:
        """One event as a line."""
        if self.journal is None:
            _pass_on(line)
            return
        event = json.loads(line.decode("ascii"))
        if event["event"] in ENDS:
            self.last = event
        else:  # to the disk only where nothing is timed: an SD card takes 100 ms and more
            self.journal.write(event, sync=event["event"] == "facts")


def _nothing() -> None:
    pass


OUTPUT = Output()


def main() -> int:
    """Run one job, follow one, or end one; 0 when all went well."""
    if sys.argv[1:2] == ["keep"]:
        return _keep(*sys.argv[2:5])
    if os.getpgrp() != os.getpid():
        os.setsid()
    try:
        job = _read_job()
        if job["action"] == "cancel":
            return follower.cancel(job)
        if "id" in job:
            return _attach(job)
        return _serve(job)
    except Refusal as why:
        tell("refused", need=why.need, message=why.message)
    except Deadline:
        tell("failed", kind="deadline", message="the job's time limit passed on the device")
        _end_group()
    except Lost as why:
        tell("failed", kind="lease", message=str(why))
        _end_group()
    except OSError as why:
        if why.errno != errno.ENOSPC:
            raise
        tell("refused", need="disk", message="no space left on the device")
    return 1


def tell(event: str, **more: Any) -> None:
    """One event; when nobody listens any more to one that is attached, end everything."""
    OUTPUT.write((json.dumps(dict(more, event=event)) + "\n").encode("ascii"))


def _pass_on(line: bytes) -> None:
    try:
        while line:
            line = line[os.write(1, line) :]
    except BrokenPipeError:
        _end_group()


def _end_group() -> NoReturn:
    processes.end_marked(OUTPUT.mark)
    os.killpg(0, signal.SIGKILL)
    raise SystemExit(1)


def _attach(job: dict[str, Any]) -> int:
    try:
        return follower.attach(job)
    except Refusal as why:
        follower.say("refused", need=why.need, message=why.message)
        return 0


def _keep(cache: str, job_id: str, lock: str) -> int:
    os.set_inheritable(int(lock), False)
    return keeper.keep(Place(cache, job_id), dict(_hello(), event="hello"), _supervise)


def _supervise(job: dict[str, Any], folder: str, journal: Journal) -> dict[str, Any]:
    """The repetitions of a detached job; its last event."""
    OUTPUT.detach(journal, os.environ[processes.MARK])
    try:
        signal.signal(signal.SIGALRM, _deadline)
        signal.setitimer(signal.ITIMER_REAL, float(job["deadline_s"]))
        _repeat(job, folder)
        if not OUTPUT.last:
            tell("done", clocks=_clocks())
    except Refusal as why:
        tell("refused", need=why.need, message=why.message)
    except Deadline:
        tell("failed", kind="deadline", message="the job's time limit passed on the device")
    except SystemExit:
        pass  # a worker's own last word is kept
    except OSError as why:
        if why.errno not in FULL:
            raise
        tell("refused", need="disk", message="no space left on the device")
    return OUTPUT.last


def _read_job() -> dict[str, Any]:
    """The first line, byte-exact: nothing after it may be buffered, since its end of file is the lifeline."""
    line = b""
    while not line.endswith(b"\n"):
        block = os.read(0, 65536)
        if not block or len(line) > MAX_JOB_BYTES:
            raise Refusal("job", "no job on standard input")
        line += block
    try:
        job = json.loads(line.decode("utf-8"))
    except ValueError:
        raise Refusal("job", "the job is not JSON") from None
    if not isinstance(job, dict) or job.get("protocol") != PROTOCOL:
        raise Refusal("protocol", f"this agent speaks protocol {PROTOCOL}")
    return job


def _hello() -> dict[str, Any]:
    about = {"protocol": PROTOCOL, "pid": os.getpid(), "pgid": os.getpgrp(), "python": sys.version.split()[0]}
    return dict(about, identity=facts.identity(), boot_id=processes.boot_id(), clocks=_clocks())


def _clocks() -> dict[str, float]:
    """Three clocks at once, in seconds: between two of these, a step of the wall clock and a suspend can be seen."""
    return {"wall": time.time(), "monotonic": time.monotonic(), "boot": time.clock_gettime(time.CLOCK_BOOTTIME)}


def _serve(job: dict[str, Any]) -> int:
    signal.signal(signal.SIGALRM, _deadline)
    signal.setitimer(signal.ITIMER_REAL, float(job["deadline_s"]))
    tell("hello", **_hello())
    job["cache"] = os.path.expanduser(job["cache"])
    if job["action"] == "probe":
        tell("facts", when="before", facts=facts.state())
        for runtime in job["runtimes"]:
            _probe(job, runtime)
    else:
        lease = Lease(job.get("lease", []), job["cache"], str(job.get("who", "")))
        lease.take(job["busy_wait_s"], _pause, lambda who, before: tell("waiting", holder=who, before=before))
        OUTPUT.look = lease.beat
        with JobFolder(job["cache"], job["files"]) as folder:
            if not _repeat(job, folder):
                return 1
        lease.close()
    tell("done", clocks=_clocks())
    return 0


def _repeat(job: dict[str, Any], folder: str) -> bool:
    """All repetitions, then the passes that are not timed; whether the repetitions ended well."""
    for repetition in range(job["repetitions"]):
        tell("facts", repetition=repetition, when="before", facts=facts.state())
        if not _run_worker({"job": job, "folder": folder, "repetition": repetition}):
            return False
        tell("facts", repetition=repetition, when="after", facts=facts.state())
    for extra in job.get("passes", []):
        died = _watch(_start({"job": job, "folder": folder, "pass": extra}, job["threads"]))
        if died:
            tell(extra, absent=died["message"])
    return True


def _probe(job: dict[str, Any], runtime: dict[str, str]) -> None:
    """An import that dies by a signal is an answer: the runtime is there and does not work here."""
    died = _watch(_start({"job": job, "runtime": runtime}, 1))
    if died:
        tell("runtime", name=runtime["name"], absent=died["message"])


def _run_worker(order: dict[str, Any]) -> bool:
    """One repetition; whether it ended well."""
    job, repetition = order["job"], order["repetition"]
    worker = _start(order, job["threads"])
    sampler = telemetry.beside(worker.pid, job["affinity"], job["threads"])
    died = _watch(worker, (sampler.pid,) if sampler else ())
    for part in sampler.stop() if sampler else []:
        tell("telemetry", repetition=repetition, **part)
    if died:
        tell("failed", repetition=repetition, **died)
    return died is None


def _start(order: dict[str, Any], threads: int) -> Any:
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), OPENBLAS_NUM_THREADS=str(threads))
    env[processes.MARK] = OUTPUT.mark
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, bufsize=0
    )
    try:
        worker.stdin.write((json.dumps(order) + "\n").encode("ascii"))  # type: ignore[union-attr]
        worker.stdin.close()  # type: ignore[union-attr]
    except BrokenPipeError:
        pass  # it died at once; its exit status says how
    return worker


def _watch(worker: Any, spare: tuple[int, ...] = ()) -> dict[str, Any] | None:
    """Pass a worker's events on until it ends. None when it told its last word, else why it did not.

    A ``refused`` or ``failed`` of the worker's own is passed on and ends the agent here. Whatever the worker has started
    ends with it, but for the processes in ``spare``.
    """
    rest, last = b"", ""
    kills, least = oom.kills(), oom.available_share()
    while True:
        least = _wait(worker, least)
        if not select.select([worker.stdout], [], [], 0)[0]:
            break
        block = os.read(worker.stdout.fileno(), 1 << 16)
        if not block:
            break
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        for line in lines:
            last = json.loads(line.decode("ascii"))["event"]
            OUTPUT.write(line + b"\n")
    status = worker.wait()
    processes.end_marked(OUTPUT.mark, (os.getppid(), *spare))
    if last in BAD_ENDS:
        raise SystemExit(1)
    if last in LAST_WORDS and status == 0:
        return None
    return _death(status, oom.reason(kills, oom.kills(), least) if status == -signal.SIGKILL else "")


def _death(status: int, memory: str) -> dict[str, Any]:
    """How a worker died: for lack of memory where the kernel says so, else by its signal or status."""
    if memory:
        return {"kind": "memory", "message": f"out of memory: the runtime's process was killed ({memory})"}
    if status < 0:
        name = signal.Signals(-status).name
        more = " (out of memory?)" if name == "SIGKILL" else ""
        return {"kind": "signal", "signal": name, "message": f"the runtime's process died by {name}{more}"}
    return {"kind": "exit", "status": status, "message": f"the runtime's process ended with status {status}"}


def _wait(worker: Any, least: float | None) -> float | None:
    """Until a worker has said something or has ended; meanwhile watch the lifeline. The least share of memory left."""
    while True:
        ready = select.select([*OUTPUT.lifeline, worker.stdout], [], [], TICK_S)[0]
        if 0 in ready and not os.read(0, 65536):
            _end_group()
        OUTPUT.look()
        if worker.stdout in ready:
            return least
        share = oom.available_share()
        least = share if least is None or share is None else min(least, share)
        if worker.poll() is not None:
            select.select([worker.stdout], [], [], LEFT_S)
            return least


def _pause(seconds: float) -> None:
    until = time.monotonic() + seconds
    while True:
        left = until - time.monotonic()
        if left <= 0:
            return
        if select.select(OUTPUT.lifeline, [], [], left)[0] and not os.read(0, 65536):
            _end_group()


def _deadline(signum: int, frame: Any) -> NoReturn:
    raise Deadline


if __name__ == "__main__":
    sys.exit(main())
