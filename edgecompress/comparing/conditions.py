"""What two measurements must share to be held against each other, as pyperf has it: else they are refused, and why.

A fact that one side does not know is no difference: older agents told less.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from edgecompress.records import Measurement, canonical_json
from edgecompress.report.facts import before, plain

# A device's name may come to mean another board, another card or another system.
IDENTITY = ("model", "cpu", "machine", "system", "kernel", "libc")
# Of the plan: what changes latency itself. How many samples were taken does not.
PLANNED = ("threads", "affinity", "seconds", "scenario", "thermal", "mode")
USUAL = {"scenario": "single_stream", "thermal": "burst", "affinity": []}
RUNTIME = "runtime"


def of(measurement: Measurement) -> dict[str, Any]:
    """All conditions by name; None is what nobody told."""
    facts = before(measurement)
    found: dict[str, Any] = {"device": measurement.device, "transport": measurement.transport}
    found |= {name: facts.get(name) for name in (*IDENTITY, "governor", "cores_online")}
    found |= {name: measurement.plan.get(name, USUAL.get(name)) for name in PLANNED}
    found[RUNTIME] = f"{measurement.runtime} {measurement.runtime_version}"
    found["options"] = measurement.options or None
    found["seconds of audio"] = measurement.audio_seconds
    found["input"] = measurement.input.get("source")
    found["shapes"] = None if measurement.audio_seconds else _shapes(measurement)
    return found


def _shapes(measurement: Measurement) -> list[Any] | None:
    """Shapes of what was fed, without the names that formats give: audio has its seconds instead."""
    shapes = measurement.input.get("shapes")
    return sorted(shapes.values(), key=canonical_json) if isinstance(shapes, dict) and shapes else None


def differences(one: Measurement, other: Measurement, but: Collection[str] = ()) -> list[str]:
    """In what two measurements differ, in words; empty if they may be compared. ``but`` are conditions passed over."""
    was, now = of(one), of(other)
    told = []
    for name in was:
        if name in but or was[name] is None or now[name] is None:
            continue
        if canonical_json(was[name]) != canonical_json(now[name]):
            told.append(f"{name}: {plain(was[name])} and {plain(now[name])}")
    return told
