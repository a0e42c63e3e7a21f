"""A transport without a world, for tests: it keeps what is put and plays back what an agent would have said."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgecompress.devices.config import DeviceConfig
from edgecompress.devices.transport import Blob, Process, Progress, Put, Transport

Event = dict[str, Any]


@dataclass(frozen=True)
class Killed:
    """The stream just stops: exit status, and what was on standard error."""

    status: int
    stderr: bytes = b""


@dataclass(frozen=True)
class Silent:
    """Nothing more comes, and it does not end either."""


Reply = Event | bytes | Killed | Silent


def killed(status: int) -> Killed:
    """An agent that ends with ``status`` without a last word."""
    return Killed(status)


class FakeProcess(Process):
    """Plays replies: an event as a JSON line, bytes as they are, then an ending."""

    def __init__(self, replies: Sequence[Reply]) -> None:
        super().__init__()
        self._replies = deque(replies)
        self._status = 0
        self.sent = b""
        self.was_killed = False
        self._last: str | None = None

    def send(self, data: bytes) -> None:
        """Keep what was sent."""
        self.sent += data

    def end_input(self) -> None:
        """Nothing waits for it."""

    def _receive(self, timeout_s: float) -> bytes:
        if not self._replies:
            return b""
        reply = self._replies.popleft()
        if isinstance(reply, Silent):
            self._replies.appendleft(reply)
            raise TimeoutError
        if isinstance(reply, Killed):
            self._status = reply.status
            self._keep_stderr(reply.stderr)
            return b""
        return reply if isinstance(reply, bytes) else self._event(reply) + b"\n"

    def _event(self, reply: Event) -> bytes:
        """An event as its line; in the journal of a detached job it carries the hash of the line before."""
        if "chain" in reply or reply.get("event") == "attached":
            return json.dumps(reply).encode()
        if self._last is None:
            job = json.loads(self.sent.partition(b"\n")[0] or b"{}")
            self._last = job.get("id", "")
        if not self._last:
            return json.dumps(reply).encode()
        line = json.dumps(reply | {"chain": self._last}).encode()
        self._last = hashlib.sha256(line).hexdigest()
        return line

    def wait(self) -> int:
        """The status of the Killed reply, else 0."""
        return self._status

    def kill(self) -> None:
        """Remember it."""
        self.was_killed = True


class FakeTransport(Transport):
    """A device that has what it was sent and answers any program with ``replies``."""

    kind = "fake"

    def __init__(self, config: DeviceConfig | None = None, *, replies: Sequence[Reply] = ()) -> None:
        self.replies = replies
        self.objects: dict[str, Blob] = {}
        self.processes: list[FakeProcess] = []

    def start(self, argv: Sequence[str]) -> Process:
        """A process that plays the replies from the beginning."""
        self.processes.append(FakeProcess(self.replies))
        return self.processes[-1]

    def put(self, python: str, cache: str, blobs: Sequence[Blob], progress: Progress | None = None) -> Put:
        """Keep the blobs that are new."""
        new = {blob.sha256: blob for blob in blobs if blob.sha256 not in self.objects}
        self.objects |= new
        return Put("/fake", sum(blob.size for blob in new.values()), "3.11.0")

    def close(self) -> None:
        """Nothing is held."""
