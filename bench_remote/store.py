"""Our folder on the device: objects named by their SHA-256, one job's folder, and the lock that one job holds."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
from typing import Any, Callable


class Refusal(Exception):
    """The device cannot take this job: ``need`` says what is missing."""

    def __init__(self, need: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.need, self.message, self.more = need, message, more


def take_lock(cache: str, wait_s: float, pause: Callable[[float], None]) -> Any:
    """Hold ``<cache>/lock`` until the process ends (the kernel drops it, however we die). ``pause`` sleeps."""
    os.makedirs(cache, mode=0o700, exist_ok=True)
    stream = open(os.path.join(cache, "lock"), "a")  # noqa: SIM115 - held as long as the process lives
    waited = 0.0
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return stream
        except OSError as cause:
            if cause.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if waited >= wait_s:
            raise Refusal("lock", f"another session measures on this device (waited {wait_s:.0f} s)")
        pause(0.2)
        waited += 0.2


class JobFolder:
    """A folder with the job's files under their own names, linked from objects; gone when the block ends.

    Whoever holds the lock may sweep what a killed job left.
    """

    def __init__(self, cache: str, files: dict[str, str]) -> None:
        self.jobs, self.objects, self.files = os.path.join(cache, "jobs"), os.path.join(cache, "objects"), files
        self.path = os.path.join(self.jobs, str(os.getpid()))

    def __enter__(self) -> str:
        shutil.rmtree(self.jobs, ignore_errors=True)
        os.makedirs(self.path, mode=0o700)
        for name, sha256 in self.files.items():
            self._link(name, sha256)
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def _link(self, name: str, sha256: str) -> None:
        if os.path.isabs(name) or ".." in name.split("/") or not re.match("^[0-9a-f]{64}$", sha256):
            raise Refusal("job", f"not a file of a job: {name!r}")
        source, place = os.path.join(self.objects, sha256), os.path.join(self.path, name)
        if not os.path.isfile(source):
            raise Refusal("file", f"{name} is not on the device")
        os.makedirs(os.path.dirname(place), exist_ok=True)
        try:
            os.link(source, place)
        except OSError as cause:
            if cause.errno == errno.ENOSPC:
                raise
            shutil.copyfile(source, place)  # FAT and some network folders have no hard links


def verify(folder: str, files: dict[str, str], cache: str | None = None) -> None:
    """Hash every file right before it is loaded. A wrong one is removed from objects, so that it is sent again."""
    for name, sha256 in files.items():
        digest = hashlib.sha256()
        with open(os.path.join(folder, name), "rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
        if digest.hexdigest() != sha256:
            if cache:
                os.unlink(os.path.join(cache, "objects", sha256))
            raise Refusal("file", f"{name} has changed on the device: its hash is wrong; run again to send it anew")
