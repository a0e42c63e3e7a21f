"""What a job says, kept on the device: one event a line, each with the SHA-256 of the line before.

The first line carries the job's id instead, so that no journal can stand for another's. The host checks the chain as
it follows, and anybody can later (``verify``).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from typing import Any

ENDS = ("done", "failed", "refused")
LIMIT_BYTES = 64 << 20
RESERVE_BYTES = 1 << 20  # given back when the disk is full, so that this can still be written
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Broken(Exception):
    """A line does not follow from the one before it."""


class Chain:
    """Where a reader or writer of a journal is: ``expected`` in the next line, at ``offset`` bytes."""

    def __init__(self, job_id: str) -> None:
        self.expected, self.offset = job_id, 0

    def take(self, line: bytes, said: object) -> None:
        """Go on past ``line`` (without its newline), which says that it follows ``said``. Broken when it does not."""
        if said != self.expected:
            raise Broken(f"the line at byte {self.offset} does not follow from the one before")
        self.expected = hashlib.sha256(line).hexdigest()
        self.offset += len(line) + 1


def read(path: str, job_id: str) -> tuple[list[dict[str, Any]], Chain, int]:
    """Events of the whole and unbroken beginning of a journal, the chain behind it, and the file's size."""
    chain, found = Chain(job_id), []
    with open(path, "rb") as stream:
        content = stream.read(LIMIT_BYTES + RESERVE_BYTES)
    for line in content.split(b"\n")[:-1]:
        try:
            event = json.loads(line.decode("ascii"))
            chain.take(line, event["chain"])
        except (ValueError, TypeError, KeyError, Broken):
            break
        found.append(event)
    return found, chain, len(content)


def verify(path: str, job_id: str) -> int:
    """The number of events in a journal. Broken when a byte of it was changed, added or left out before its end."""
    events, chain, size = read(path, job_id)
    if chain.offset != size:
        raise Broken(f"the line at byte {chain.offset} was changed, or does not follow from the one before")
    if not events or events[-1].get("event") not in ENDS:
        raise Broken("the journal has no end")
    return len(events)


class Journal:
    """Appends events. What a process that was killed left half written at the end is cut off first."""

    def __init__(self, path: str, job_id: str) -> None:
        self.path, self.reserve = path, path + ".reserve"
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self.events, self._chain, size = read(path, job_id)
        if size != self._chain.offset:
            os.ftruncate(self._file, self._chain.offset)

    def keep_reserve(self) -> None:
        """Take the space that the last words may need. OSError when there is not even that."""
        reserve = os.open(self.reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(reserve, 0, RESERVE_BYTES)
        finally:
            os.close(reserve)

    def write(self, event: dict[str, Any], sync: bool = False) -> None:
        """Append one event, with ``sync`` down to the disk. OSError when it is full; nothing half written stays."""
        line = json.dumps(dict(event, chain=self._chain.expected)).encode("ascii")
        if self._chain.offset + len(line) > LIMIT_BYTES and event["event"] not in ENDS:
            raise OSError(errno.EFBIG, "the job says more than a journal may hold")
        rest = line + b"\n"
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            os.ftruncate(self._file, self._chain.offset)
            raise
        self._chain.take(line, self._chain.expected)
        if sync:
            os.fsync(self._file)

    def end(self, event: dict[str, Any]) -> None:
        """The last event; on a full disk it takes the reserve's place."""
        try:
            self.write(event)
        except OSError as why:
            if why.errno not in FULL:
                raise
            remove(self.reserve)
            self.write(event)
        os.fsync(self._file)
        remove(self.reserve)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def remove(path: str) -> None:
    """Unlink, if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
