"""What of ours is on the device, in our folder there, and how to remove it. What is not ours is left, and named."""

from __future__ import annotations

import errno
import os
import re
import shutil
from typing import Any, Callable

from bench_remote import holding
from bench_remote.store import Refusal

# The folders that we make, and what we put into them: anything else there is somebody's.
OURS = {
    "objects": r"[0-9a-f]{64}(\.part)?",
    "jobs": r"[0-9]{1,10}|[0-9a-f]{64}",
    "site": r"(\.partial-)?[0-9a-f]{12}",
    "lease": r"[0-9]{20}\.[0-9]{1,10}|lock",
    "lock": "",
}


def main(order: dict[str, Any], say: Callable[..., None]) -> None:
    """``{"cache", "parts": [...], "remove": bool}``: tells the folder, and of each part that is there what it holds."""
    cache = os.path.abspath(os.path.expanduser(order["cache"]))
    held = holding.hold(cache, 0.0, make=False) if order["remove"] else None
    if order["remove"]:
        _no_job_waits(cache)
    found = {name: entries(cache, name) for name in OURS if name in order["parts"]}
    parts = [
        {"name": name, "entries": len(paths), "bytes": sum(size(path) for path in paths)}
        for name, paths in found.items()
        if paths
    ]
    others = strangers(cache)
    if order["remove"]:
        for name, paths in found.items():
            for path in paths:
                drop(path)
            _remove_empty(os.path.join(cache, name))
        _remove_empty(cache)
    say(cache=cache, parts=parts, others=others[:20])
    if held is not None:
        held.close()


def _no_job_waits(cache: str) -> None:
    """Refusal while a job that goes on without its host has yet to begin: it holds a lock in its own folder."""
    for path in entries(cache, "jobs"):
        place = os.path.join(path, "lock")
        if os.path.isfile(place) and not os.path.islink(place):
            with open(place) as stream:
                if not holding.is_free(stream):
                    raise Refusal("lock", "a job of ours waits or runs on this device: nothing was removed")


def entries(cache: str, name: str) -> list[str]:
    """Paths of ours in one of our folders. A link in place of a folder is not followed: it is not ours."""
    place = os.path.join(cache, name)
    if name == "lock":
        return [place] if os.path.isfile(place) and not os.path.islink(place) else []
    if os.path.islink(place) or not os.path.isdir(place):
        return []
    return [os.path.join(place, one) for one in sorted(os.listdir(place)) if re.fullmatch(OURS[name], one)]


def strangers(cache: str) -> list[str]:
    """Names in our folder, and in those that we make in it, that nothing of ours has."""
    found = []
    for name in sorted(os.listdir(cache)) if os.path.isdir(cache) else []:
        place = os.path.join(cache, name)
        ours = {os.path.basename(path) for path in entries(cache, name)} if name in OURS else set()
        if not ours and (name not in OURS or os.path.islink(place) or (name == "lock") == os.path.isdir(place)):
            found.append(name)
        elif os.path.isdir(place):
            found += [f"{name}/{one}" for one in sorted(os.listdir(place)) if one not in ours]
    return [one[:255] for one in found]


def size(path: str) -> int:
    """Bytes of a file or of all files below a folder; links count for themselves."""
    total = os.lstat(path).st_size if not os.path.isdir(path) or os.path.islink(path) else 0
    for folder, _, names in os.walk(path) if not os.path.islink(path) else ():
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return total


def drop(path: str) -> None:
    """Remove a file, a link or a whole folder; no error when it is gone already."""
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass


def _remove_empty(folder: str) -> None:
    try:
        if not os.path.islink(folder):
            os.rmdir(folder)
    except OSError as why:
        if why.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.ENOTDIR, errno.EEXIST):
            raise
