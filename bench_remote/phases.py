"""How runs follow each other: warm-up until steady, then one of the scenarios. Every run is kept, and why it ended.

Scenarios, in the words of MLPerf's LoadGen: ``single_stream`` starts the next run when one ends; ``paced_stream`` has
arrivals every hop, and counts latency from when a run was due (a late one makes the next ones late, as it does for
whoever waits); ``offline`` is single_stream of batches, which are made before.
"""

from __future__ import annotations

import resource
import time
from statistics import median
from typing import Any, Callable

from bench_remote import telemetry

Run = Callable[[], Any]
Clock = Callable[[], int]

MAX_SAMPLES = 20000  # of one repetition: what runs faster than 0.1 ms needs no more
WINDOW, WINDOWS = 5, 3  # steady: the medians of so many consecutive windows of so many runs ...
AGREE = 0.01  # ... lie no further apart than this share
MORE_RUNS = 30
MORE_SECONDS = 10.0


def warm_up(run: Run, least_s: float, most_s: float, clock: Clock = time.perf_counter_ns) -> tuple[list[int], str]:
    """Nanoseconds of each run, and what ended it: "steady", "runs" or "seconds".

    At least one run and ``least_s``; then until steady, or 30 more runs, or 10 more seconds (``most_s`` if less).
    """
    samples: list[int] = []
    started = clock()
    while not samples or (clock() - started < least_s * 1e9 and len(samples) < MAX_SAMPLES):
        samples.append(timed(run, clock))
    base, until = len(samples), clock() + min(MORE_SECONDS, most_s) * 1e9
    while not steady(samples):
        if len(samples) - base >= MORE_RUNS:
            return samples, "runs"
        if clock() >= until:
            return samples, "seconds"
        samples.append(timed(run, clock))
    return samples, "steady"


def steady(samples: list[int]) -> bool:
    """Whether the last windows' medians agree."""
    last = samples[-WINDOW * WINDOWS :]
    if len(last) < WINDOW * WINDOWS:
        return False
    medians = [median(last[start : start + WINDOW]) for start in range(0, len(last), WINDOW)]
    return max(medians) - min(medians) <= AGREE * min(medians)


def timed(run: Run, clock: Clock = time.perf_counter_ns) -> int:
    """Nanoseconds of one run."""
    started = clock()
    run()
    return clock() - started


def stream(
    run: Run, least: int, min_seconds: float, max_seconds: float, clock: Clock = time.perf_counter_ns
) -> tuple[list[int], str]:
    """Nanoseconds of runs in a tight loop, and which bound ended it: "enough", "max_seconds" or "max_samples"."""
    samples: list[int] = []
    started = clock()
    while True:
        samples.append(timed(run, clock))
        ended = _ended(len(samples), clock() - started, least, min_seconds, max_seconds)
        if ended:
            return samples, ended


def paced(
    run: Run,
    hop_s: float,
    least: int,
    min_seconds: float,
    max_seconds: float,
    clock: Clock = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[dict[str, list[int]], str]:
    """``{"scheduled_ns", "start_ns", "end_ns"}`` of each run since the first was due, and which bound ended it.

    It sleeps until a run is due, as a program that waits for a microphone does: no core is kept awake for it.
    """
    told: dict[str, list[int]] = {"scheduled_ns": [], "start_ns": [], "end_ns": []}
    hop = int(hop_s * 1e9)
    zero = clock()
    while True:
        due = len(told["scheduled_ns"]) * hop
        wait = due - (clock() - zero)
        while wait > 0:
            sleep(wait / 1e9)
            wait = due - (clock() - zero)
        start = clock() - zero
        run()
        end = clock() - zero
        for name, value in (("scheduled_ns", due), ("start_ns", start), ("end_ns", end)):
            told[name].append(value)
        ended = _ended(len(told["end_ns"]), end, least, min_seconds, max_seconds)
        if ended:
            return told, ended


def _ended(count: int, passed_ns: int, least: int, min_seconds: float, max_seconds: float) -> str:
    if count >= least and passed_ns >= min_seconds * 1e9:
        return "enough"
    if passed_ns >= max_seconds * 1e9:
        return "max_seconds"
    return "max_samples" if count >= MAX_SAMPLES else ""


class Watch:
    """What the timed phase took of this process: ``told`` by the monotonic clock, major faults and CPU seconds."""

    def __init__(self) -> None:
        self.machine = telemetry.machine()
        self.before = resource.getrusage(resource.RUSAGE_SELF)
        self.started = time.monotonic_ns()

    def told(self) -> dict[str, Any]:
        """``{"started_ns", "ended_ns", "major_faults", "cpu_s", "machine_before", "machine_after"}``.

        ``cpu_s`` is of all threads, ``machine`` as ``telemetry.machine`` tells.
        """
        ended, after = time.monotonic_ns(), resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - self.before.ru_utime - self.before.ru_stime
        faults = after.ru_majflt - self.before.ru_majflt
        told = {"started_ns": self.started, "ended_ns": ended, "major_faults": faults, "cpu_s": max(cpu, 0.0)}
        return dict(told, machine_before=self.machine, machine_after=telemetry.machine())
