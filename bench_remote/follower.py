"""The host's end on the device: starts a detached job or finds it, and passes its journal on from a given byte.

It ends with its standard input, and the job goes on without it. What it says itself carries no chain: ``attached``
before everything, or ``refused``. The host sends ``\\n`` as a heartbeat and ``fetched`` when it has the end.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from typing import Any

from bench_remote import processes
from bench_remote.journal import FULL
from bench_remote.place import Place, sweep
from bench_remote.store import Refusal

SILENT_S = 30.0  # a follower whose host has said nothing for so long lets go
BLOCK_BYTES = 4 << 20


def say(event: str, **more: Any) -> None:
    """A line of the follower's own. The empty one before it ends whatever a login shell has printed."""
    _write(b"\n" + json.dumps(dict(more, event=event)).encode("ascii") + b"\n")


def attach(job: dict[str, Any]) -> int:
    """Follow the job ``job["id"]`` from byte ``job["offset"]``, starting it if it is not there.

    ``again`` says that this host has followed it before: then a job that got lost is told as lost; else it starts anew.
    """
    place = Place(job["cache"], job["id"])
    try:
        sweep(place.cache, place.id)
        place.make()
        held = _alone(place, str(job["token"]))
        state = _begin(place, job)
    except OSError as why:
        if why.errno not in FULL:
            raise
        place.remove()
        raise Refusal("disk", "no space left on the device") from why
    say("attached", offset=job["offset"], state=state)
    try:
        return _pass_on(place, job["offset"])
    finally:
        os.close(held)


def cancel(job: dict[str, Any]) -> int:
    """End the job at once: every process of it, and its folder."""
    place = Place(job["cache"], job["id"])
    place.remove()
    say("cancelled")
    return 0


def _alone(place: Place, token: str) -> int:
    """Be the job's only follower. One of the same host before us (its connection hangs) is ended; another's is not."""
    held = place.lock("follower")
    if held is None:
        with open(os.path.join(place.path, "follower"), encoding="ascii") as stream:
            said = stream.read(4096).split()
        if len(said) != 3 or said[0] != token:
            raise Refusal("followed", "another session follows this job")
        processes.end(int(said[1]), int(said[2]))
        held = place.wait_for("follower", 5.0)
        if held is None:
            raise Refusal("followed", "an earlier follower of this job does not end")
    os.ftruncate(held, 0)
    os.pwrite(held, f"{token} {os.getpid()} {processes.start_time(os.getpid())}".encode("ascii"), 0)
    return held


def _begin(place: Place, job: dict[str, Any]) -> str:
    """``started``, ``running``, ``finished``, ``restarted`` or ``lost``."""
    lock = place.lock("lock")
    if lock is None:
        return "running"
    try:
        there = os.path.exists(place.journal) and os.path.getsize(place.journal) > 0
        if there and place.ended():
            return "finished"
        if job["again"] and (there or job["offset"]):
            if not there:
                raise Refusal("lost", "the job's journal is gone")
            place.finish({"event": "failed", "kind": "lost", "message": place.lost()})
            return "lost"
        _start(place, job, lock)
        return "restarted" if there else "started"
    finally:
        os.close(lock)


def _start(place: Place, job: dict[str, Any], lock: int) -> None:
    """Start the keeper, who inherits ``lock``, in a session of its own."""
    processes.end_marked(place.id)
    shutil.rmtree(place.files, ignore_errors=True)
    for path in (place.journal, place.status, place.log):
        if os.path.exists(path):
            os.unlink(path)
    with open(place.job, "w", encoding="ascii") as stream:
        json.dump(job, stream)
    with open(place.followed, "w"), open(place.log, "ab") as log:
        subprocess.Popen(
            [sys.executable, os.path.abspath(sys.argv[0]), "keep", place.cache, place.id, str(lock)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
            pass_fds=(lock,),
            env=dict(os.environ, **{processes.MARK: place.id}),
        )


def _pass_on(place: Place, offset: int) -> int:
    heard, pause = time.monotonic(), 0.02
    while time.monotonic() - heard < SILENT_S:
        if select.select([0], [], [], pause)[0]:
            words = os.read(0, 4096)
            if not words:
                return 0
            if b"fetched" in words:
                return _fetched(place)
            heard = time.monotonic()
            os.utime(place.followed)
        block = _block(place, offset)
        if block:
            _write(block)
            offset += len(block)
            pause = 0.02
        else:
            pause = min(pause * 1.5, 0.5)
            _look_after(place)
    return 0


def _block(place: Place, offset: int) -> bytes:
    """Whole lines from ``offset`` on."""
    try:
        with open(place.journal, "rb") as stream:
            stream.seek(offset)
            block = stream.read(BLOCK_BYTES)
    except FileNotFoundError:
        return b""
    return block[: block.rfind(b"\n") + 1]


def _look_after(place: Place) -> None:
    """When the keeper is gone without an end, write the end."""
    try:
        lock = place.lock("lock")
    except FileNotFoundError:
        raise SystemExit(0) from None  # cancelled: the folder is gone
    if lock is None:
        return
    try:
        if not place.ended():
            _write_stderr(place.log_tail())
            place.finish({"event": "failed", "kind": "lost", "message": place.lost()})
    finally:
        os.close(lock)


def _fetched(place: Place) -> int:
    lock = place.wait_for("lock", 5.0)
    place.remove()
    if lock is not None:
        os.close(lock)
    return 0


def _write(block: bytes) -> None:
    try:
        while block:
            block = block[os.write(1, block) :]
    except BrokenPipeError:
        raise SystemExit(0) from None


def _write_stderr(block: bytes) -> None:
    if block:
        os.write(2, block)
