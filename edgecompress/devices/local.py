"""This very machine as a device: the same agent, the same road, no network."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgecompress.devices.transport import Process, Transport
from edgecompress.errors import Refused

if TYPE_CHECKING:
    from edgecompress.devices.config import DeviceConfig


class LocalTransport(Transport):
    """Programs as children of this process, each in a session of its own."""

    kind = "local"

    def __init__(self, config: DeviceConfig) -> None:
        self._default = config.python == "python3"

    def start(self, argv: Sequence[str]) -> Process:
        """The configured Python, or by default the one that runs us: it has our environment's runtimes."""
        first = sys.executable if self._default else os.path.expanduser(argv[0])
        try:
            return LocalProcess([first, *argv[1:]])
        except OSError as cause:
            hint = "set `python` in the device's file"
            raise Refused(f"cannot run {first!r} here: {cause.strerror}", hint=hint) from cause

    def close(self) -> None:
        """Nothing is held."""


class LocalProcess(Process):
    """A child with three pipes."""

    def __init__(self, argv: Sequence[str]) -> None:
        super().__init__()
        pipe = subprocess.PIPE
        self._child = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True, bufsize=0)
        self.group = self._child.pid
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pipe(self._child.stdout), selectors.EVENT_READ, "stdout")
        self._selector.register(self._pipe(self._child.stderr), selectors.EVENT_READ, "stderr")

    @staticmethod
    def _pipe(stream: object) -> int:
        return stream.fileno()  # type: ignore[attr-defined]

    def send(self, data: bytes) -> None:
        """Write everything; BrokenPipeError when the child is gone."""
        assert self._child.stdin is not None
        view = memoryview(data)
        while view:
            view = view[self._child.stdin.write(view) :]

    def end_input(self) -> None:
        """Close the pipe."""
        assert self._child.stdin is not None
        self._child.stdin.close()

    def _receive(self, timeout_s: float) -> bytes:
        while self._selector.get_map():
            ready = self._selector.select(timeout_s)
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                block = os.read(key.fd, 1 << 16)
                if not block:
                    self._selector.unregister(key.fd)
                elif key.data == "stderr":
                    self._keep_stderr(block)
                else:
                    return block
        return b""

    def wait(self) -> int:
        """Exit status; minus the signal's number when one ended it."""
        try:
            return self._child.wait(5)
        except subprocess.TimeoutExpired:
            return -1

    def kill(self) -> None:
        """End of input first (the agent then ends its group), SIGKILL for the group if that is not enough."""
        self.end_input()
        try:
            self._child.wait(2)
        except subprocess.TimeoutExpired:
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
        self._selector.close()
        for stream in (self._child.stdout, self._child.stderr):
            if stream is not None:
                stream.close()
