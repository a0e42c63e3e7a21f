"""Whether the kernel ended a process because memory ran out: its counters before and after, and what was left."""

from __future__ import annotations

import os
import re

LOW_SHARE = 0.05  # MemAvailable / MemTotal below which a SIGKILL of unknown origin is put down to memory


def kills(root: str = "/") -> dict[str, int]:
    """Processes that the kernel has killed for lack of memory, by who counts: our cgroups, and the whole machine."""
    found = {}
    for name, path, field in (*_cgroups(root), ("the machine", "proc/vmstat", "oom_kill")):
        match = re.search(rf"^{field} (\d+)$", _text(root, path), re.M)
        if match:
            found[name] = int(match.group(1))
    return found


def available_share(root: str = "/") -> float | None:
    """MemAvailable as a share of MemTotal."""
    text = _text(root, "proc/meminfo")
    found = [re.search(rf"^{field}:\s+(\d+) kB", text, re.M) for field in ("MemAvailable", "MemTotal")]
    if not found[0] or not found[1] or not int(found[1].group(1)):
        return None
    return int(found[0].group(1)) / int(found[1].group(1))


def reason(before: dict[str, int], after: dict[str, int], least_share: float | None) -> str:
    """Why a SIGKILL that nobody of us sent was for lack of memory; "" when nothing says so."""
    for name, count in after.items():
        if count > before.get(name, count):
            return f"the kernel's count of out-of-memory kills for {name} rose by {count - before[name]}"
    if least_share is not None and least_share < LOW_SHARE:
        return f"only {100 * least_share:.1f} % of memory was left before it was killed"
    return ""


def _cgroups(root: str) -> list[tuple[str, str, str]]:
    """Our memory cgroup's counter: version 2 ``memory.events``, version 1 ``memory.oom_control``."""
    found = []
    for line in _text(root, "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        inside = path.strip("/")
        if ".." in inside.split("/"):
            continue
        if not controllers:
            found.append(("the job's cgroup", os.path.join("sys/fs/cgroup", inside, "memory.events"), "oom_kill"))
        elif "memory" in controllers.split(","):
            path = os.path.join("sys/fs/cgroup/memory", inside, "memory.oom_control")
            found.append(("the job's memory cgroup", path, "oom_kill"))
    return found


def _text(root: str, path: str) -> str:
    try:
        with open(os.path.join(root, path), encoding="utf-8", errors="replace") as stream:
            return stream.read(1 << 20)
    except OSError:
        return ""
