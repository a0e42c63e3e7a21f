"""Our folder on the device: objects named by their SHA-256, and the files of the one job that has the lease."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from typing import Any


class Refusal(Exception):
    """The device cannot take this job: ``need`` says what is missing."""

    def __init__(self, need: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.need, self.message, self.more = need, message, more


class JobFolder:
    """A folder with the job's files under their own names, linked from objects; gone when the block ends.

    Whoever has the lease may sweep what a killed job left. ``job_id`` is that of a detached job, whose files lie beside
    its journal.
    """

    def __init__(self, cache: str, files: dict[str, str], job_id: str = "") -> None:
        self.jobs, self.objects, self.files = os.path.join(cache, "jobs"), os.path.join(cache, "objects"), files
        self.path = os.path.join(self.jobs, *([job_id, "files"] if job_id else [str(os.getpid())]))

    def __enter__(self) -> str:
        for name in os.listdir(self.jobs) if os.path.isdir(self.jobs) else []:
            shutil.rmtree(os.path.join(self.jobs, name, *(["files"] if len(name) == 64 else [])), ignore_errors=True)
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
