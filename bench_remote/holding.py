"""Keep measurements away for a moment, while we change our folder or use the cores ourselves."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from typing import Any

from bench_remote.store import Refusal


def hold(cache: str, wait_s: float, make: bool = True) -> Any:
    """The lock ``<cache>/lock`` that every job takes, held until the stream is closed or the process ends.

    Without ``make`` None where there is no such file, and so no job. Refusal when a job still has it after ``wait_s``.
    """
    try:
        if make:
            os.makedirs(cache, 0o700, exist_ok=True)
        stream = open(os.path.join(cache, "lock"), "a" if make else "r")  # noqa: SIM115 - held until the end
    except (FileNotFoundError, NotADirectoryError):
        if make:
            raise
        return None
    until = time.monotonic() + wait_s
    while not is_free(stream):
        if time.monotonic() >= until:
            stream.close()
            raise Refusal("lock", f"a session measures on this device (waited {wait_s:.0f} s)")
        time.sleep(0.2)
    return stream


def is_free(stream: Any) -> bool:
    """Whether the lock on an open file is ours now; False when another process has it."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as why:
        if why.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False
    return True
