"""What the device does while it measures: one row of numbers five times a second, taken by a process of its own.

The sampler runs at the lowest priority, on a core that is not measured, and keeps its rows to itself until it is
stopped: it writes nothing meanwhile. Where every core is measured there is none, and before and after must do.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from typing import Any

from bench_remote import disturbances
from bench_remote.reading import Absent, found, policies, read, some

HZ = 5.0
MAX_ROWS = 2000  # then every second one goes, and the rest come half as often
ROWS_PER_EVENT = 200
NICEST = 19
PR_SET_PDEATHSIG = 1
PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from bench_remote.telemetry import main; main()"


def row(root: str = "/", pid: int = 0) -> dict[str, float | int | None]:
    """Numbers of now, each by its name; what this device does not have is not among them.

    ``ns`` of the monotonic clock; ``celsius:<zone>``, ``khz:<policy>``, ``cooling:<device>``; ``flags`` of throttling;
    in ticks since boot ``busy_ticks`` (all cores, everyone), ``stolen_ticks`` (by the host), ``measured_ticks`` (the
    process ``pid`` and its threads) and ``own_ticks`` (the sampler); ``measured_major_faults``.
    """
    numbers: dict[str, float | int | None] = {"ns": time.monotonic_ns()}
    for zone in found(root, "sys/class/thermal/thermal_zone*"):
        millicelsius = _number(some(zone, "temp"))
        numbers[f"celsius:{os.path.basename(zone)}"] = None if millicelsius is None else millicelsius / 1000
    try:
        for policy in policies(root):
            numbers[f"khz:{os.path.basename(policy)}"] = _number(some(policy, "scaling_cur_freq"))
    except Absent:
        pass
    for device in found(root, "sys/class/thermal/cooling_device*"):
        numbers[f"cooling:{os.path.basename(device)}"] = _number(some(device, "cur_state"))
    flags = disturbances.throttle_flags(root)
    if flags is not None:
        numbers["flags"] = int(flags, 16)
    ticks = machine_ticks(root)
    numbers.update({"busy_ticks": ticks[0], "stolen_ticks": ticks[1], "own_ticks": process(root, os.getpid())[0]})
    if pid:
        numbers["measured_ticks"], numbers["measured_major_faults"] = process(root, pid)
    return numbers


def machine(root: str = "/") -> dict[str, int | None]:
    """Counters of the whole machine, to be read right before and right after the timed loop.

    ``busy_ticks`` and ``stolen_ticks`` (``tick_hz`` a second), ``swapped_pages``; None where it cannot be read.
    """
    busy, stolen = machine_ticks(root)
    swapped = re.findall(r"^pswp(?:in|out) (\d+)$", some(root, "proc/vmstat") or "", re.M)
    return {
        "busy_ticks": busy,
        "stolen_ticks": stolen,
        "swapped_pages": sum(map(int, swapped)) if swapped else None,
        "tick_hz": os.sysconf("SC_CLK_TCK"),
    }


def busy_share(seconds: float, root: str = "/", pause: Any = time.sleep) -> float:
    """CPUs in use over the next ``seconds``, while we only wait: 0.1 is a tenth of one core.

    Raises:
        Absent: the kernel does not tell.
    """
    before = machine_ticks(root)[0]
    pause(seconds)
    after = machine_ticks(root)[0]
    if before is None or after is None:
        raise Absent("the kernel does not tell how busy it is")
    return (after - before) / os.sysconf("SC_CLK_TCK") / seconds


def machine_ticks(root: str) -> tuple[int | None, int | None]:
    """Ticks since boot of all cores together: spent on anything but idling and waiting for disks, and stolen."""
    words = (some(root, "proc/stat") or "").split("\n", 1)[0].split()[1:9]
    if len(words) < 8 or not all(word.isdigit() for word in words):
        return None, None
    user, nice, system, _, _, irq, softirq, stolen = map(int, words)
    return user + nice + system + irq + softirq + stolen, stolen


def process(root: str, pid: int) -> tuple[int | None, int | None]:
    """(ticks in user and system mode, major faults) of a process with all its threads; (None, None) when it is gone."""
    try:
        words = read(root, f"proc/{pid}/stat").rpartition(")")[2].split()
        return int(words[11]) + int(words[12]), int(words[9])
    except (OSError, ValueError, IndexError):
        return None, None


def _number(told: str | None) -> int | None:
    return int(told) if told is not None and re.fullmatch(r"-?\d{1,18}", told) else None


def spare_cores(affinity: list[int], threads: int) -> set[int]:
    """Cores for the sampler: those that are not measured; empty where none is left over.

    Without ``affinity`` no core is free for sure: the first one serves while there are more of them than threads.
    """
    allowed = os.sched_getaffinity(0)
    if affinity:
        return allowed - set(affinity)
    return {min(allowed)} if len(allowed) > threads else set()


def beside(pid: int, affinity: list[int], threads: int) -> Sampler | None:
    """A sampler of a process on a core that is not measured; None where there is none to spare."""
    cores = spare_cores(affinity, threads)
    return Sampler(pid, cores) if cores else None


class Sampler:
    """A running sampler. The caller stops it, or ends: then it ends too."""

    def __init__(self, pid: int, cores: set[int], hz: float = HZ) -> None:
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        order = {"pid": pid, "cores": sorted(cores), "hz": hz}
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, root, json.dumps(order)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    @property
    def pid(self) -> int:
        """The sampler's own process."""
        return int(self._process.pid)

    def stop(self, timeout_s: float = 10.0) -> list[dict[str, Any]]:
        """Its rows, as bodies of events: ``{"hz", "tick_hz", "columns", "rows"}``; none where it died."""
        try:
            told, _ = self._process.communicate(timeout=timeout_s)
            table = json.loads(told.decode("ascii"))
        except (subprocess.TimeoutExpired, ValueError):
            self._process.kill()
            self._process.wait()
            return []
        rows = table.pop("rows")
        return [dict(table, rows=rows[start : start + ROWS_PER_EVENT]) for start in range(0, len(rows), ROWS_PER_EVENT)]


def main() -> None:
    """Sample until standard input ends, then write all rows to standard output as one line of JSON."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    order = json.loads(sys.argv[2])
    if order["cores"]:
        os.sched_setaffinity(0, order["cores"])
    os.nice(NICEST)
    rows, period = sampled("/", order["pid"], 1 / order["hz"], _ended)
    sys.stdout.write(json.dumps(table(rows, 1 / period)) + "\n")


def _ended(seconds: float) -> bool:
    """Wait so long; whether standard input has ended meanwhile."""
    return bool(select.select([0], [], [], max(seconds, 0.0))[0]) and not os.read(0, 65536)


def sampled(root: str, pid: int, period: float, wait: Any, most: int = MAX_ROWS) -> tuple[list[Any], float]:
    """Rows until ``wait(seconds)`` is true, and the seconds between them at the end."""
    rows: list[Any] = []
    while True:
        started = time.monotonic()
        rows.append(row(root, pid))
        if len(rows) >= most:
            rows, period = rows[::2], period * 2
        if wait(period - (time.monotonic() - started)):
            return rows, period


def table(rows: list[Any], hz: float) -> dict[str, Any]:
    """Rows under one list of names: ``{"hz", "tick_hz", "columns", "rows"}``."""
    columns = list(dict.fromkeys(name for one in rows for name in one))
    values = [[one.get(name) for name in columns] for one in rows]
    return {"hz": hz, "tick_hz": os.sysconf("SC_CLK_TCK"), "columns": columns, "rows": values}
