"""The page cache: put a file out of it without root, and prove that it is out.

``posix_fadvise(DONTNEED)`` is a wish; ``mincore`` on a mapping tells what became of it. The kernel (since 5.2) answers
truly only to a file's owner and says of every other file that all of it is there, so what cannot be proven reads as
"unknown", never as cold.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from typing import Any, Iterable

WINDOW = 1 << 28  # mapped at once: a 32-bit board has no room for more
TRIES = 3
MAP_FAILED = ctypes.c_void_p(-1).value


def evict(paths: Iterable[str]) -> dict[str, Any]:
    """Put files out of the page cache: ``{"state", "pages", "resident", "reason"}``.

    ``state`` is "cold" where not one page of them is left, else "unknown", with the ``reason``.
    """
    pages = resident = 0
    try:
        for path in paths:
            for _ in range(TRIES):
                _drop(path)
                there, left = residency(path)
                if not left:
                    break
                time.sleep(0.01)
            pages, resident = pages + there, resident + left
    except (OSError, AttributeError) as why:
        return {"state": "unknown", "pages": pages, "resident": resident, "reason": str(why)[:200]}
    if not pages:
        return {"state": "unknown", "pages": 0, "resident": 0, "reason": "no file has a page"}
    if resident:
        reason = "the file system kept pages, or does not say whose they are"
        return {"state": "unknown", "pages": pages, "resident": resident, "reason": reason}
    return {"state": "cold", "pages": pages, "resident": 0, "reason": ""}


def _drop(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # a page that was not yet written cannot be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def residency(path: str) -> tuple[int, int]:
    """Pages of a file, and how many of them are in memory.

    Raises:
        OSError: it cannot be opened or mapped, or the system does not tell.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        counts = [_window(descriptor, offset, min(WINDOW, size - offset)) for offset in range(0, size, WINDOW)]
    finally:
        os.close(descriptor)
    return sum(pages for pages, _ in counts), sum(there for _, there in counts)


def _window(descriptor: int, offset: int, length: int) -> tuple[int, int]:
    libc = ctypes.CDLL(None, use_errno=True)
    size_t, pointer = ctypes.c_size_t, ctypes.c_void_p
    libc.mmap.restype = pointer
    libc.mmap.argtypes = [pointer, size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [pointer, size_t]
    libc.mincore.argtypes = [pointer, size_t, ctypes.c_char_p]
    address = libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, offset)
    if address == MAP_FAILED:
        raise _error()
    try:
        pages = -(-length // mmap.PAGESIZE)
        vector = ctypes.create_string_buffer(pages)
        if libc.mincore(address, length, vector):
            raise _error()
        return pages, sum(byte & 1 for byte in vector.raw[:pages])
    finally:
        libc.munmap(address, length)


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
