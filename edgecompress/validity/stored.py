"""What a repetition stored of its timed phase, of its clock and of the samples of telemetry meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from edgecompress.phases import ClockLoop
from edgecompress.records import Measurement, Repetition
from edgecompress.validity.facts import number


@dataclass(frozen=True)
class Load:
    """The timed phase: its seconds, CPU seconds of all processes and those known as ours, and seconds stolen by the host."""

    seconds: float
    busy_s: float
    ours_s: float
    stolen_s: float

    @property
    def others(self) -> float:
        """CPUs that others used, 1.0 being one core."""
        return max(0.0, self.busy_s - self.stolen_s - self.ours_s) / self.seconds

    @property
    def stolen(self) -> float:
        """CPUs that the host took away."""
        return self.stolen_s / self.seconds


def column(repetition: Repetition, name: str) -> list[tuple[float, float]]:
    """(nanoseconds, value) of one column of telemetry in the timed phase, in order."""
    timed = repetition.steady
    first, last = (timed.started_ns, timed.ended_ns) if timed else (0, float("inf"))
    found = []
    for part in repetition.telemetry:
        if name not in part.columns or "ns" not in part.columns:
            continue
        when, what = part.columns.index("ns"), part.columns.index(name)
        for row in part.rows:
            if len(row) != len(part.columns):
                continue
            ns, value = number(row[when]), number(row[what])
            if ns is not None and value is not None and first <= ns <= last:
                found.append((ns, value))
    return found


def load(repetition: Repetition) -> Load | None:
    """Who used the processor in the timed phase, from its edges, else from telemetry; None where neither tells."""
    return _by_edges(repetition) or _by_telemetry(repetition)


def _by_edges(repetition: Repetition) -> Load | None:
    timed = repetition.steady
    if timed is None or timed.machine_before is None or timed.machine_after is None:
        return None
    seconds, hz = (timed.ended_ns - timed.started_ns) / 1e9, timed.machine_after.tick_hz
    busy = _between(timed.machine_before.busy_ticks, timed.machine_after.busy_ticks)
    stolen = _between(timed.machine_before.stolen_ticks, timed.machine_after.stolen_ticks)
    if busy is None or stolen is None or seconds <= 0:
        return None
    return Load(seconds, busy / hz, timed.cpu_s + sum(_gained(repetition, "own_ticks")), stolen / hz)


def _between(before: int | None, after: int | None) -> int | None:
    return max(0, after - before) if before is not None and after is not None else None


def _by_telemetry(repetition: Repetition) -> Load | None:
    busy = column(repetition, "busy_ticks")
    if len(busy) < 2 or not column(repetition, "measured_ticks"):
        return None
    seconds = (busy[-1][0] - busy[0][0]) / 1e9
    if seconds <= 0:
        return None
    ours = sum(_gained(repetition, "measured_ticks")) + sum(_gained(repetition, "own_ticks"))
    return Load(seconds, sum(_gained(repetition, "busy_ticks")), ours, sum(_gained(repetition, "stolen_ticks")))


def _gained(repetition: Repetition, name: str) -> list[float]:
    """Seconds that a column of ticks gained over the timed phase; empty where it is not there."""
    told, hz = column(repetition, name), max((part.tick_hz for part in repetition.telemetry), default=0)
    return [max(0.0, told[-1][1] - told[0][1]) / hz] if len(told) > 1 and hz > 0 else []


def swapped(repetition: Repetition) -> int:
    """Pages that went to or came from swap in the timed phase."""
    timed = repetition.steady
    if timed is None or timed.machine_before is None or timed.machine_after is None:
        return 0
    return _between(timed.machine_before.swapped_pages, timed.machine_after.swapped_pages) or 0


def rates(loops: list[ClockLoop]) -> dict[int | None, float]:
    """Additions per nanosecond of the clock loop, the best of its tries, by core."""
    return {loop.core: loop.iterations / max(1, min(loop.ns)) for loop in loops}


def cores(measurement: Measurement) -> list[int]:
    """The cores that the plan pinned to; empty where it pinned to none."""
    told = measurement.plan.get("affinity")
    return [core for core in told if isinstance(core, int)] if isinstance(told, (list, tuple)) else []
