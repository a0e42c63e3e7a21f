"""The seam where the world begins: a transport starts a program on the device; everything else follows from that.

A new kind of transport (adb, docker, serial) is one class with ``start`` and ``close``, found by the entry-point group
``edgecompress.devices``; ``put`` and ``get`` come with the base class.
"""

from __future__ import annotations

import hashlib
import io
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from edgecompress.errors import AgentFailed

if TYPE_CHECKING:
    from edgecompress.devices.config import DeviceConfig

# A hostile or broken device may send what it likes; the host reads no more than this.
MAX_LINE_BYTES = 8 << 20
MAX_OUTPUT_BYTES = 256 << 20
MAX_STDERR_BYTES = 16 << 10

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Blob:
    """Bytes to be on the device, named by their SHA-256: a file or a value in memory."""

    sha256: str
    size: int
    source: Path | bytes

    @classmethod
    def of(cls, source: Path | bytes) -> Blob:
        """Hash a file or bytes."""
        if isinstance(source, bytes):
            return cls(hashlib.sha256(source).hexdigest(), len(source), source)
        with source.open("rb") as stream:
            return cls(hashlib.file_digest(stream, "sha256").hexdigest(), source.stat().st_size, source)

    def open(self) -> BinaryIO:
        """A binary stream at the start."""
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")


@dataclass(frozen=True)
class Put:
    """What an upload did: our folder's absolute path on the device, payload bytes sent, the device's Python."""

    cache: str
    bytes_sent: int
    python: str


class Process(ABC):
    """A program running on the device, its standard input open. Line by line, with limits, until it ends."""

    def __init__(self) -> None:
        self.group: int | None = None  # process group on the device, once the program has told it
        self.stderr = b""
        self._buffer = bytearray()
        self._received = 0

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Write to its standard input. OSError when it is gone."""

    @abstractmethod
    def end_input(self) -> None:
        """Close its standard input: for the agent, the sign to end."""

    @abstractmethod
    def _receive(self, timeout_s: float) -> bytes:
        """Some of its standard output, b"" at the end; TimeoutError when nothing came. Feeds ``_keep_stderr``."""

    @abstractmethod
    def wait(self) -> int:
        """Exit status after the output has ended; negative when a signal or a lost connection ended it."""

    @abstractmethod
    def kill(self) -> None:
        """End it and its process group, by whatever means this transport has. Safe to call twice."""

    def line(self, timeout_s: float) -> bytes | None:
        """The next line of standard output without its newline; None at the end.

        Raises:
            TimeoutError: no whole line within ``timeout_s``.
            AgentFailed: the device sends more than anything of ours would.
        """
        until = time.monotonic() + timeout_s
        while (end := self._buffer.find(b"\n")) < 0:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            block = self._receive(left)
            if not block:
                return None
            self._buffer += block
            self._received += len(block)
            if len(self._buffer) > MAX_LINE_BYTES + (1 << 20) or self._received > MAX_OUTPUT_BYTES:
                self.kill()
                raise AgentFailed(
                    "the device sends more than a job's events could be", hint="is the device trustworthy?"
                )
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _keep_stderr(self, block: bytes) -> None:
        self.stderr = (self.stderr + block)[-MAX_STDERR_BYTES:]


class Transport(ABC):
    """A way to a device. Made from a DeviceConfig; connects when first used."""

    kind: str = ""

    @abstractmethod
    def __init__(self, config: DeviceConfig) -> None: ...

    @abstractmethod
    def start(self, argv: Sequence[str]) -> Process:
        """Start a program; no shell ever reads ``argv``. A first word that begins with ``~/`` is under its home.

        Raises:
            DeviceError: unreachable, refused, or a host key that is unknown or has changed.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the connection. Safe to call twice."""

    def put(self, python: str, cache: str, blobs: Sequence[Blob], progress: Progress | None = None) -> Put:
        """Have every blob in ``<cache>/objects`` on the device; sends only what is missing there."""
        from edgecompress.devices.objects import put

        return put(self, python, cache, blobs, progress)

    def get(self, python: str, cache: str, sha256: str, limit_bytes: int) -> bytes:
        """The content of an object on the device, checked against its name."""
        from edgecompress.devices.objects import get

        return get(self, python, cache, sha256, limit_bytes)
