"""The supervisor: reads one job, runs every repetition in a fresh process, passes events on, and holds the lifeline.

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

from bench_remote import PROTOCOL, facts, telemetry
from bench_remote.store import JobFolder, Refusal, take_lock

MAX_JOB_BYTES = 1 << 20
WORKER = "import sys; sys.path.insert(0, sys.argv[1]); from bench_remote.worker import main; main()"
LAST_WORDS = (
    "memory",
    "runtime",
    "memory_pass",
    "operators",
)  # a worker that ends without one of these, refused or failed, has crashed
BAD_ENDS = ("refused", "failed")


class Deadline(Exception):
    """The job's time is over."""


def main() -> int:
    """Run one job; 0 when its last event is ``done``, else 1."""
    if os.getpgrp() != os.getpid():
        os.setsid()
    try:
        return _serve(_read_job())
    except Refusal as why:
        tell("refused", need=why.need, message=why.message)
    except Deadline:
        tell("failed", kind="deadline", message="the job's time limit passed on the device")
        _end_group()
    except OSError as why:
        if why.errno != errno.ENOSPC:
            raise
        tell("refused", need="disk", message="no space left on the device")
    return 1


def tell(event: str, **more: Any) -> None:
    """One event, as a line of standard output; when nobody listens any more, end everything."""
    _pass_on((json.dumps(dict(more, event=event)) + "\n").encode("ascii"))


def _pass_on(line: bytes) -> None:
    try:
        while line:
            line = line[os.write(1, line) :]
    except BrokenPipeError:
        _end_group()


def _end_group() -> NoReturn:
    os.killpg(0, signal.SIGKILL)
    raise SystemExit(1)


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


def _serve(job: dict[str, Any]) -> int:
    signal.signal(signal.SIGALRM, _deadline)
    signal.setitimer(signal.ITIMER_REAL, float(job["deadline_s"]))
    about = {"protocol": PROTOCOL, "pid": os.getpid(), "pgid": os.getpgrp(), "python": sys.version.split()[0]}
    tell("hello", identity=facts.identity(), **about)
    job["cache"] = os.path.expanduser(job["cache"])
    if job["action"] == "probe":
        tell("facts", when="before", facts=facts.state())
        for runtime in job["runtimes"]:
            _probe(job, runtime)
    else:
        held = take_lock(job["cache"], job["busy_wait_s"], _pause)
        with JobFolder(job["cache"], job["files"]) as folder:
            for repetition in range(job["repetitions"]):
                tell("facts", repetition=repetition, when="before", facts=facts.state())
                if not _run_worker({"job": job, "folder": folder, "repetition": repetition}):
                    return 1
                tell("facts", repetition=repetition, when="after", facts=facts.state())
            for extra in job.get("passes", []):
                died = _watch(_start({"job": job, "folder": folder, "pass": extra}, job["threads"]))
                if died:
                    tell(extra, absent=died["message"])
        held.close()
    tell("done")
    return 0


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
    died = _watch(worker)
    for part in sampler.stop() if sampler else []:
        tell("telemetry", repetition=repetition, **part)
    if died:
        tell("failed", repetition=repetition, **died)
    return died is None


def _start(order: dict[str, Any], threads: int) -> Any:
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), OPENBLAS_NUM_THREADS=str(threads))
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, bufsize=0
    )
    try:
        worker.stdin.write((json.dumps(order) + "\n").encode("ascii"))  # type: ignore[union-attr]
        worker.stdin.close()  # type: ignore[union-attr]
    except BrokenPipeError:
        pass  # it died at once; its exit status says how
    return worker


def _watch(worker: Any) -> dict[str, Any] | None:
    """Pass a worker's events on until it ends. None when it told its last word, else why it did not.

    A ``refused`` or ``failed`` of the worker's own is passed on and ends the agent here.
    """
    rest, last = b"", ""
    while True:
        _wait(worker.stdout)
        block = os.read(worker.stdout.fileno(), 1 << 16)
        if not block:
            break
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        for line in lines:
            last = json.loads(line.decode("ascii"))["event"]
            _pass_on(line + b"\n")
    status = worker.wait()
    if last in BAD_ENDS:
        raise SystemExit(1)
    if last in LAST_WORDS and status == 0:
        return None
    if status < 0:
        name = signal.Signals(-status).name
        more = " (out of memory?)" if name == "SIGKILL" else ""
        return {"kind": "signal", "signal": name, "message": f"the runtime's process died by {name}{more}"}
    return {"kind": "exit", "status": status, "message": f"the runtime's process ended with status {status}"}


def _wait(stream: Any) -> None:
    """Until ``stream`` has something; meanwhile watch the lifeline."""
    while True:
        ready = select.select([0, stream], [], [])[0]
        if 0 in ready and not os.read(0, 65536):
            _end_group()
        if stream in ready:
            return


def _pause(seconds: float) -> None:
    until = time.monotonic() + seconds
    while True:
        left = until - time.monotonic()
        if left <= 0:
            return
        if select.select([0], [], [], left)[0] and not os.read(0, 65536):
            _end_group()


def _deadline(signum: int, frame: Any) -> NoReturn:
    raise Deadline


if __name__ == "__main__":
    sys.exit(main())
