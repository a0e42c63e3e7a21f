"""Joules out of a meter's raw samples, and what a second of audio costs, gross and above idling.

A class of meter measures another part of the device than the next; values of two classes are never put together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from edgecompress.errors import RecordError
from edgecompress.traces import MeterClass, Trace


@dataclass(frozen=True)
class Energy:
    """Energy of work on ``audio_seconds`` of audio. ``net`` is above idling, and None where idling was not measured.

    ``idle_watts`` is the mean of before and after; how far they lie apart tells how sure ``net`` is.
    """

    meter_class: MeterClass
    seconds: float
    audio_seconds: float
    joules: float
    load_watts: float
    idle_watts: float | None
    idle_watts_apart: float | None

    @property
    def gross_joules_per_audio_second(self) -> float:
        """All that the device took while it worked."""
        return self.joules / self.audio_seconds

    @property
    def net_joules_per_audio_second(self) -> float | None:
        """What it took beyond what idling as long takes."""
        if self.idle_watts is None:
            return None
        return (self.joules - self.idle_watts * self.seconds) / self.audio_seconds


def joules(trace: Trace) -> dict[str, float]:
    """Energy of each rail from the first to the last sample.

    Watts are joined by straight lines; a counter's steps are added up, and one that fell has started again at zero
    (once: a step must be shorter than a whole turn).

    Raises:
        RecordError: fewer than two samples, times that do not grow, rows of another length, a rail that is not there,
            or a counter that fell and is not known to wrap.
    """
    _check(trace)
    found = {}
    for place, rail in enumerate(trace.rails):
        told = [values[place] for values in trace.values]
        found[rail] = _counted(trace, rail, told) if trace.unit == "J" else _integrated(trace.ns, told)
    return found


def total_joules(trace: Trace) -> float:
    """Energy of the rails that add up to the whole."""
    of_rails = joules(trace)
    return sum(of_rails[rail] for rail in trace.total)


def seconds(trace: Trace) -> float:
    """From the first sample to the last."""
    return (trace.ns[-1] - trace.ns[0]) / 1e9


def energy(load: Trace, audio_seconds: float, idle: Sequence[Trace] = ()) -> Energy:
    """Energy of a pass that worked on ``audio_seconds``, with idling measured right before and after.

    Raises:
        RecordError: traces of unlike meters, no audio, or a trace that cannot be summed (see ``joules``).
    """
    if any(_meter(one) != _meter(load) for one in idle):
        raise RecordError("energy of unlike meters cannot be put together", hint="measure idling by the same meter")
    if audio_seconds <= 0:
        raise RecordError("energy per second of audio needs audio", hint="measure an artifact that takes audio")
    used = total_joules(load)
    resting = [total_joules(one) / seconds(one) for one in idle]
    return Energy(
        meter_class=load.meter_class,
        seconds=seconds(load),
        audio_seconds=audio_seconds,
        joules=used,
        load_watts=used / seconds(load),
        idle_watts=sum(resting) / len(resting) if resting else None,
        idle_watts_apart=max(resting) - min(resting) if len(resting) > 1 else None,
    )


def _meter(trace: Trace) -> tuple[str, str, list[str]]:
    return trace.meter_class, trace.meter, trace.total


def _check(trace: Trace) -> None:
    if len(trace.ns) < 2 or len(trace.ns) != len(trace.values):
        raise RecordError(f"{len(trace.ns)} samples of a meter make no energy", hint="sample longer")
    if any(later <= earlier for earlier, later in pairwise(trace.ns)):
        raise RecordError("the times of a meter's samples do not grow", hint="measure again")
    if any(len(values) != len(trace.rails) for values in trace.values) or not set(trace.total) <= set(trace.rails):
        raise RecordError("a meter's samples do not fit its rails", hint="measure again")


def _integrated(ns: list[int], watts: list[float]) -> float:
    steps = zip(ns, ns[1:], watts, watts[1:], strict=False)
    return sum((later - earlier) / 1e9 * (first + second) / 2 for earlier, later, first, second in steps)


def _counted(trace: Trace, rail: str, told: list[float]) -> float:
    summed = 0.0
    for first, second in pairwise(told):
        step = second - first
        if step < 0:
            if rail not in trace.wraps or first > trace.wraps[rail]:
                raise RecordError(f"the counter {rail} fell and is not known to wrap", hint="measure again")
            step += trace.wraps[rail]
        summed += step
    return summed
