"""A detached job seen from the host: start it or find it, take its journal in order, and come back when the link drops.

A job is named by the hash of what it does and for whom. The same host with the same job finds what runs already, or
what has finished and nobody fetched; another's job of the same content is another job.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench_remote.journal import Broken, Chain
from edgecompress.devices import Device, Process
from edgecompress.devices.objects import clean
from edgecompress.errors import AgentDied, AgentFailed, DeviceError, DeviceTimeout, Unreachable
from edgecompress.session import events

HEARTBEAT_S = 5.0
CANCEL_TIMEOUT_S = 15.0
FIRST_DELAY_S, LAST_DELAY_S = 0.5, 10.0
MAX_ATTEMPTS = 20
# Shared by all users of a board, where they may write; else its lease is the cache's own.
LEASE_FOLDERS: tuple[str, ...] = ("/run/lock", "/var/lock")
ORPHAN_S = 900.0

STATES = {
    "running": "the same job runs there already: following it",
    "finished": "the same job has finished there: fetching it",
    "restarted": "the earlier run of this job was lost: starting again",
}


def who() -> str:
    """Who asks, as others are told: ``user@host``."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid{os.getuid()}"
    return clean(f"{user}@{socket.gethostname()}")[:128]


def name(job: dict[str, Any], agent_path: str, attempt: int) -> str:
    """A job's id."""
    text = json.dumps([job, agent_path.rpartition("/")[2], attempt], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Link:
    """One detached job on a device; ``follow`` gives each of its events once, however often the connection drops."""

    def __init__(
        self, device: Device, agent_path: str, job: dict[str, Any], until: float, progress: Callable[[str], None] | None
    ) -> None:
        self.last, self.over = "nothing", False
        self._device, self._agent_path, self._until = device, agent_path, until
        self._say = progress or (lambda word: None)
        self._job = {"who": who(), "lease": list(LEASE_FOLDERS), "orphan_s": ORPHAN_S, **job}
        self._token, self._attempt = secrets.token_hex(8), 0
        self._process: Process | None = None
        self._status: int | None = None  # how the last follower ended, if one did
        self._attached, self._heard, self._delay, self._beat = False, False, FIRST_DELAY_S, 0.0
        self._chain = Chain(self.id)

    @property
    def id(self) -> str:
        """The job's name on the device."""
        return name(self._job, self._agent_path, self._attempt)

    def follow(self) -> Iterator[events.AnyEvent]:
        """Events in order, each checked against the chain of hashes.

        Raises:
            TimeoutError: no end by the time limit.
            Unreachable: the connection ended and did not come back; the job goes on.
            AgentDied: the device's end of it ended with a status of its own.
            AgentFailed: what comes is no event, or does not follow from what came before.
        """
        self._open()
        while True:
            line = self._line()
            if line is None:
                self._come_back()
                continue
            if not self._heard and not events.is_event(line):
                continue  # a login shell may print before the first
            event = events.parse(line)
            self._heard = True
            if isinstance(event, events.Attached):
                self._take_attached(event)
                continue
            if isinstance(event, events.Refused) and not event.chain:
                if event.need == "followed" and self._attempt < MAX_ATTEMPTS:
                    self._attempt += 1
                    self._chain = Chain(self.id)
                    self._shut()
                    self._open()
                    continue
                self.over = True  # nothing of ours was started there
            else:
                self._follows(line, event)
            self._delay = FIRST_DELAY_S
            yield event
            self.last = event.event

    def fetched(self) -> None:
        """Tell the device that the end has arrived: it forgets the job."""
        if self.over:
            self._shut()
            return
        self.over = True
        try:
            assert self._process is not None
            self._process.send(b"fetched\n")
            self._process.end_input()
            while self._process.line(CANCEL_TIMEOUT_S) is not None:
                pass
        except (OSError, EOFError, TimeoutError):
            self._order_end()
        finally:
            self._shut()

    def cancel(self) -> None:
        """End the job and remove it, over a channel of its own. Does nothing when it is over or cannot be reached."""
        self._shut()
        if not self.over and self._process is not None:
            self.over = True
            self._order_end()

    def leave(self) -> None:
        """Let go of it; it goes on."""
        self._shut()

    def died(self, why: str = "") -> AgentDied:
        """The error for a job that ended without a word of its own."""
        status = "" if self._status is None else f": exit status {self._status}"
        text = f"the agent's stream just stopped{status} after {self.last!r}" + (f"; {why}" if why else "")
        return AgentDied(text, hint="out of memory, a reboot or a killed process look like this; run again")

    def _open(self) -> None:
        order = dict(self._job, id=self.id, token=self._token, offset=self._chain.offset, again=self._attached)
        self._heard = False
        self._beat = time.monotonic()
        self._process = self._device.transport.start([self._device.config.python, self._agent_path])
        with contextlib.suppress(OSError):  # then it has ended, and its status is told in a moment
            self._process.send(json.dumps(order).encode() + b"\n")

    def _shut(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _line(self) -> bytes | None:
        """A line; None when the follower or the connection has ended."""
        assert self._process is not None
        while True:
            now = time.monotonic()
            if now >= self._until:
                raise TimeoutError
            try:
                if now - self._beat >= HEARTBEAT_S:
                    self._process.send(b"\n")
                    self._beat = now
                return self._process.line(max(min(self._until - now, HEARTBEAT_S), 0.001))
            except TimeoutError:
                continue
            except (OSError, EOFError):
                return None

    def _come_back(self) -> None:
        """Connect again, with growing pauses, and go on from the byte where we were."""
        assert self._process is not None
        self._status = self._process.wait()
        said = clean(self._process.stderr.decode("utf-8", "replace")).strip()[-500:]
        self._shut()
        if self._status > 0 or not self._attached:  # 0: it let go, having heard nothing of us for long
            raise self.died(f"it said: {said}" if said else "")
        self._say("the connection was lost: trying again")
        while True:
            left = self._until - time.monotonic()
            if left <= 0:
                raise Unreachable(
                    f"the connection ended after {self.last!r} and did not come back in time",
                    hint="the job goes on there: run the same again to fetch it",
                )
            time.sleep(min(self._delay, left))
            self._delay = min(2 * self._delay, LAST_DELAY_S)
            try:
                return self._open()
            except Unreachable:
                continue

    def _take_attached(self, event: events.Attached) -> None:
        if event.offset != self._chain.offset:
            raise AgentFailed("the device goes on from another place than was asked", hint="is it trustworthy?")
        if self._attached:
            self._say("connected again")
        elif event.state in STATES:
            self._say(STATES[event.state])
        self._attached = True

    def _follows(self, line: bytes, event: events.AnyEvent) -> None:
        try:
            self._chain.take(line, event.chain)
        except Broken as cause:
            raise AgentFailed(f"the job's journal was changed on the device: {cause}", hint="run it again") from cause

    def _order_end(self) -> None:
        order = {"protocol": self._job["protocol"], "action": "cancel", "cache": self._job["cache"], "id": self.id}
        with contextlib.suppress(DeviceError, DeviceTimeout, OSError, EOFError, TimeoutError):
            process = self._device.transport.start([self._device.config.python, self._agent_path])
            try:
                process.send(json.dumps(order).encode() + b"\n")
                while (line := process.line(CANCEL_TIMEOUT_S)) is not None and b'"cancelled"' not in line:
                    pass
            finally:
                process.kill()
