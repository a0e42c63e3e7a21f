"""The measured clock: how fast this core really adds, told as raw nanoseconds of a fixed number of additions.

What is timed is ``sum`` over ones: a chain in which each addition waits for the one before, in the interpreter's own C
loop. It is timed in CPU time of the thread: what others take of the core is not the clock's fault (on a machine with six
busy programs on two cores the best of three varied by 13 % so, and by up to 110 % in time on the wall). Additions per
nanosecond are no frequency, and differ from one Python to the next: only a loop of the same process
may be held against another, before against after.
"""

from __future__ import annotations

import itertools
import os
import time
from typing import Any, Callable, Dict, Sequence

TARGET_NS = 20_000_000
TRIES = 3
FIRST = 1 << 14
MOST = 1 << 30

Loop = Dict[str, Any]


def measure(cores: Sequence[int] = (), like: Sequence[Loop] = ()) -> list[Loop]:
    """The loop on each of ``cores`` (the calling thread goes there and comes back), or once wherever it runs.

    Returns ``[{"core": number or null, "iterations": n, "ns": [one of each try]}]``; the best of ``ns`` is the one to
    read. ``like`` is what was measured before: the same number of additions is made again, so that both ran alike.
    """
    iterations = like[0]["iterations"] if like else _enough()
    home = os.sched_getaffinity(0)
    told = []
    try:
        for core in cores or [None]:  # type: ignore[list-item]
            if core is not None:
                os.sched_setaffinity(0, [core])
            told.append({"core": core, "iterations": iterations, "ns": [_chain(iterations) for _ in range(TRIES)]})
    finally:
        os.sched_setaffinity(0, home)
    return told


def _chain(iterations: int) -> int:
    started = time.thread_time_ns()
    sum(itertools.repeat(1, iterations))
    return time.thread_time_ns() - started


def _enough(chain: Callable[[int], int] = _chain) -> int:
    """So many additions that they take about ``TARGET_NS``."""
    iterations = FIRST
    while True:
        passed = max(chain(iterations), 1)
        if passed * 4 >= TARGET_NS or iterations * 2 > MOST:
            return max(1, min(MOST, iterations * TARGET_NS // passed))
        iterations *= 2
