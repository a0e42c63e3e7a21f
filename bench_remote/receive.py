"""The receiving end of an upload, run before anything of ours is there: its text is handed to the device's Python.

The first line of standard input is ``{"cache", "limit_bytes", "objects": [{"sha256", "bytes"}]}``. The answer names
what is whole and, for the rest, how far an earlier upload came (with the hash of that much). Then, for each missing
object, comes a line ``{"sha256", "bytes", "offset"}`` and the raw bytes from that offset on; ``{"end": true}`` ends.

An object is written beside its place, flushed, hashed here, and renamed: it is never seen half. Of two uploads of one
object the second waits for the first, by a lock on the partial file that ends with its process. It must start on
Python 3.6, to say that it is too old.
"""

import errno
import fcntl
import hashlib
import json
import os
import sys
from typing import Any

# Every answer carries this word, since a login shell may print before and between.
MARK = "edgecompress "
NEEDED = (3, 8)


def say(**answer: Any) -> None:
    """One answer, as a line of its own."""
    sys.stdout.write(MARK + json.dumps(answer) + "\n")
    sys.stdout.flush()


def digest(path: str, size: int) -> str:
    """SHA-256 of the first ``size`` bytes."""
    found = hashlib.sha256()
    with open(path, "rb") as stream:
        while size > 0:
            block = stream.read(min(size, 1 << 20))
            if not block:
                break
            found.update(block)
            size -= len(block)
    return found.hexdigest()


def state(place: str, wanted: Any) -> Any:
    """``"whole"``, or ``[offset, hash]`` of what an earlier upload left. Small objects (the agent) are hashed again."""
    size, small = wanted["bytes"], 1 << 20
    if os.path.exists(place):
        if os.path.getsize(place) == size and (size > small or digest(place, size) == wanted["sha256"]):
            os.utime(place, None)
            return "whole"
        os.unlink(place)
    part = place + ".part"
    if not os.path.exists(part):
        return [0, digest(os.devnull, 0)]
    left = min(os.path.getsize(part), size)
    return [left, digest(part, left)]


def make_room(objects: str, keep: Any, limit: int) -> None:
    """Remove the objects used longest ago until what stays and what comes fit into ``limit`` bytes."""
    others = []
    for name in os.listdir(objects):
        if name.split(".")[0] not in keep:
            try:
                found = os.stat(os.path.join(objects, name))
            except OSError:
                continue  # renamed or removed by another upload just now
            others.append((found.st_mtime, found.st_size, name))
    total = sum(keep.values()) + sum(size for _, size, _ in others)
    for _, size, name in sorted(others):
        if total <= limit:
            return
        if drop(os.path.join(objects, name)):
            total -= size


def drop(path: str) -> bool:
    """Remove a file, unless it is a partial one that another upload is writing now."""
    try:
        if path.endswith(".part"):
            with open(path, "r+b") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
        else:
            os.unlink(path)
    except OSError:
        return False
    return True


def claim(part: str) -> Any:
    """The partial file, open and ours alone. Whoever had it before may have renamed or removed it: then a new one."""
    while True:
        stream = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o600), "r+b", 0)
        fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(stream.fileno()), os.stat(part)):
                return stream
        except OSError as why:
            if why.errno != errno.ENOENT:
                raise
        stream.close()


def receive(place: str, wanted: Any) -> bool:
    """Write one object beside its place, then verify and rename. False when the sender went away."""
    part = place + ".part"
    with claim(part) as stream:
        there = os.path.exists(place)  # another upload was first: what comes is read and let go
        stream.truncate(0 if there else wanted["offset"])
        stream.seek(wanted["offset"])
        if not copy(None if there else stream, wanted["bytes"] - wanted["offset"]):
            return False
        if there:
            os.unlink(part)
        else:
            os.fsync(stream.fileno())
            if digest(part, wanted["bytes"]) != wanted["sha256"]:
                os.unlink(part)
                say(error="hash", message="{} did not arrive as it was sent".format(wanted["sha256"]))
                return False
            os.rename(part, place)
            os.chmod(place, 0o400)
    say(stored=wanted["sha256"])
    return True


def copy(stream: Any, left: int) -> bool:
    """``left`` bytes from standard input to ``stream`` (None: nowhere). False when the sender went away."""
    incoming: Any = sys.stdin.buffer
    while left:
        block = incoming.read1(min(left, 1 << 18))
        if not block:
            return False
        left -= len(block)
        while block and stream is not None:
            block = block[stream.write(block) :]
    return True


def no_room(objects: str) -> None:
    """Say that the disk is full, leaving no partial file but those that other uploads are writing."""
    for name in os.listdir(objects) if os.path.isdir(objects) else []:
        if name.endswith(".part"):
            drop(os.path.join(objects, name))
    say(error="full", message=f"no space left in {objects}")


def main() -> None:
    """One upload, from question to last object."""
    sys.stdout.write("\n")
    if tuple(sys.version_info) < NEEDED:
        return say(error="python", message="Python {}.{}; 3.8 or newer is needed".format(*sys.version_info))
    order = json.loads(sys.stdin.buffer.readline().decode("utf-8"))
    cache = os.path.abspath(os.path.expanduser(order["cache"]))
    objects = os.path.join(cache, "objects")
    try:
        os.makedirs(objects, 0o700, exist_ok=True)
        make_room(objects, {one["sha256"]: one["bytes"] for one in order["objects"]}, order["limit_bytes"])
        have = {one["sha256"]: state(os.path.join(objects, one["sha256"]), one) for one in order["objects"]}
        missing = sum(
            one["bytes"] - have[one["sha256"]][0] for one in order["objects"] if have[one["sha256"]] != "whole"
        )
        space = os.statvfs(objects)
        if missing > space.f_bavail * space.f_frsize:
            return no_room(objects)
        say(cache=cache, have=have, python=sys.version.split()[0])
        while True:
            line = sys.stdin.buffer.readline()
            wanted = json.loads(line.decode("utf-8")) if line else {"end": True}
            if "end" in wanted or not receive(os.path.join(objects, str(wanted["sha256"])), wanted):
                return None
    except OSError as why:
        if why.errno in (errno.ENOSPC, errno.EDQUOT):
            return no_room(objects)
        say(error="io", message=f"{why.filename or objects}: {why.strerror}")


if __name__ == "__main__":
    main()
