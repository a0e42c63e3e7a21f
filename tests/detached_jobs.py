"""What tests of detached jobs share: a runtime that takes its time, and who runs on a device."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edgecompress import devices
from tests import sshd
from tests.device_fixtures import DOUBLER, ONCE

Add = Callable[..., devices.Device]
# A runtime's body that works, whose every run takes a while, and that notes each start of a worker and its runs.
SLOW = """
with open({place!r}, "a") as stream:
    stream.write("load %d %f\\n" % (os.getpid(), time.monotonic()))
def run(feeds):
    time.sleep({seconds})
    with open({place!r}, "a") as stream:
        stream.write("run %d %f\\n" % (os.getpid(), time.monotonic()))
    return {{"y": feeds["x"] * 2}}
""" + DOUBLER.replace("(lambda feeds: {", "run if True else (lambda feeds: {").replace("{", "{{").replace("}", "}}")
FIVE = replace(ONCE, min_samples=5, max_seconds=30.0, memory_pass=False)


def slow(stranger: Callable[[str, str], str], notes: Path, seconds: float = 0.4) -> str:
    """A runtime that notes what it does at ``notes``; its name is new, since modules are imported once."""
    notes.touch()
    notes.chmod(0o666)
    return stranger(f"slow_{secrets.token_hex(4)}", SLOW.format(place=str(notes), seconds=seconds))


def loads(notes: Path) -> int:
    """How many workers have loaded the model; each does so twice."""
    return len({line.split()[1] for line in notes.read_text().splitlines() if line.startswith("load")})


def jobs(device: devices.Device) -> list[str]:
    folder = Path(os.path.expanduser(device.config.cache)) / "jobs"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def marked() -> list[int]:
    """Processes that carry the mark of a detached job of this test's runtimes."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(word.startswith(b"EDGECOMPRESS_JOB=") for word in words):
                found.append(int(entry.name))
    return found


def of_job(job_id: str) -> list[int]:
    """Processes of one job."""
    return [pid for pid in marked() if f"EDGECOMPRESS_JOB={job_id}".encode() in environ(pid)]


def environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def only_job(device: devices.Device, within_s: float = 20.0) -> str:
    """The id of the one job that is on the device, once it is there."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        found = jobs(device)
        if found and (Path(device.config.cache).expanduser() / "jobs" / found[0] / "status").exists():
            return found[0]
        time.sleep(0.05)
    raise AssertionError("no job began")


def followers(loopback: sshd.Sshd) -> list[int]:
    """Processes of ours on the device that are no part of a job: the host's ends."""
    return [pid for pid in loopback.processes() if b"EDGECOMPRESS_JOB=" not in environ(pid)]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
