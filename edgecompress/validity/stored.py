"""What a repetition stored of its timed phase, of its clock and of the samples of telemetry meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgecompress.records import Measurement, Repetition
from edgecompress.validity.facts import number, numbers


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


def steady(repetition: Repetition) -> dict[str, Any]:
    """What was told of the timed phase: ``started_ns``, ``ended_ns``, ``cpu_s``, ``major_faults``, ``machine``."""
    return _dict(getattr(repetition, "steady", None))


def column(repetition: Repetition, name: str) -> list[tuple[float, float]]:
    """(nanoseconds, value) of one column of telemetry in the timed phase, in order."""
    window = numbers(steady(repetition))
    first, last = window.get("started_ns", 0.0), window.get("ended_ns", float("inf"))
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
    told = steady(repetition)
    edges = _dict(told.get("machine"))
    was, now, about = numbers(edges.get("before")), numbers(edges.get("after")), numbers(told)
    hz, seconds = now.get("tick_hz", 0.0), (about.get("ended_ns", 0.0) - about.get("started_ns", 0.0)) / 1e9
    if not {"busy_ticks", "stolen_ticks"} <= was.keys() & now.keys() or "cpu_s" not in about or hz <= 0 or seconds <= 0:
        return None
    ticks = {name: max(0.0, now[name] - was[name]) / hz for name in ("busy_ticks", "stolen_ticks")}
    sampler = sum(_gained(repetition, "own_ticks"))
    return Load(seconds, ticks["busy_ticks"], about["cpu_s"] + sampler, ticks["stolen_ticks"])


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


def swapped(repetition: Repetition) -> float:
    """Pages that went to or came from swap in the timed phase."""
    edges = _dict(steady(repetition).get("machine"))
    was, now = numbers(edges.get("before")), numbers(edges.get("after"))
    return max(0.0, now.get("swapped_pages", 0.0) - was.get("swapped_pages", 0.0))


def rates(repetition: Repetition, when: str) -> dict[str, float]:
    """Additions per nanosecond of the clock loop, the best of its tries, by core; empty where none was run."""
    found = {}
    loops = _dict(getattr(repetition, "clock", None)).get(when)
    for loop in loops if isinstance(loops, list) else []:
        told = _dict(loop)
        tries = [ns for ns in map(number, told.get("ns") or []) if ns and ns > 0]
        iterations = number(told.get("iterations"))
        if tries and iterations:
            found[str(told.get("core"))] = iterations / min(tries)
    return found


def cores(measurement: Measurement) -> list[int]:
    """The cores that the plan pinned to; empty where it pinned to none."""
    told = measurement.plan.get("affinity")
    return [core for core in told if isinstance(core, int)] if isinstance(told, (list, tuple)) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
