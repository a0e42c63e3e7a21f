"""What a device said about itself: a value, or the reason there is none.

Facts come from other machines and other versions of the agent, so nothing here assumes more than a dict: a missing
key, another type or a reason under ``absent`` all end as ``unknown: <reason>`` on the page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgecompress.records import Measurement
from edgecompress.validity.facts import cpu_count as cpu_count
from edgecompress.validity.facts import numbers as numbers
from edgecompress.validity.facts import plain as plain
from edgecompress.validity.facts import short


@dataclass(frozen=True)
class Fact:
    """A value, or ``None`` and why."""

    value: Any
    reason: str = ""

    def __str__(self) -> str:
        """The value as a short text, or ``unknown: <reason>``."""
        return plain(self.value) if self.value is not None else f"unknown: {self.reason}"


def fact(facts: dict[str, Any], name: str) -> Fact:
    """The fact ``name``, or the reason that the device gave for its absence."""
    value = facts.get(name)
    if value not in (None, "", [], {}):
        return Fact(value)
    absent = facts.get("absent")
    reason = absent.get(name) if isinstance(absent, dict) else None
    return Fact(None, short(str(reason)) if reason else "the device did not say")


def before(measurement: Measurement) -> dict[str, Any]:
    """What stays the same on the device, and what it said before the first repetition."""
    first = measurement.repetitions[0].facts_before if measurement.repetitions else {}
    reasons: dict[str, Any] = {}
    for facts in (measurement.identity, first):
        absent = facts.get("absent")
        reasons |= absent if isinstance(absent, dict) else {}
    return {**measurement.identity, **first, "absent": reasons}


def threads(measurement: Measurement) -> Fact:
    """How many threads the runtime was given."""
    return fact({**measurement.plan, **measurement.options}, "threads")


def _temperature(facts: dict[str, Any]) -> str:
    zones = numbers(facts.get("temperature_celsius"))
    if not zones:
        return str(fact(facts, "temperature_celsius"))
    return f"{max(zones.values()):.0f} °C (hottest of {len(zones)})"


def _machine(facts: dict[str, Any]) -> str:
    text = str(fact(facts, "model"))
    return f"{text} (a virtual machine)" if facts.get("virtual") is True else text


def _clock(facts: dict[str, Any]) -> str:
    policies = facts.get("frequency_khz")
    if not isinstance(policies, dict) or not policies:
        return str(fact(facts, "frequency_khz"))
    limits = [numbers(policy).get("max") for policy in policies.values()]
    return (
        ", ".join(f"at most {limit / 1e6:.2f} GHz" for limit in dict.fromkeys(limits) if limit)
        or "unknown: no limits told"
    )


def conditions(measurement: Measurement) -> list[tuple[str, str]]:
    """(what, value) pairs that say under which conditions the samples were taken."""
    facts = before(measurement)
    seconds = measurement.audio_seconds
    counts = [len(repetition.samples_ns) for repetition in measurement.repetitions]
    return [
        ("reached by", measurement.transport + (f", profile {measurement.profile}" if measurement.profile else "")),
        ("machine", _machine(facts)),
        ("processor", str(fact(facts, "cpu"))),
        ("system", f"{fact(facts, 'system')}, kernel {fact(facts, 'kernel')}"),
        ("runtime", f"{measurement.runtime} {measurement.runtime_version}"),
        ("threads", str(threads(measurement))),
        ("input", f"{seconds:g} s of audio" if seconds is not None else "not audio (made from the model's shapes)"),
        ("samples", f"{sum(counts)} in {len(counts)} fresh processes"),
        ("governor", str(fact(facts, "governor"))),
        ("clock", _clock(facts)),
        ("temperature at start", _temperature(facts)),
        ("throttle flags at start", str(fact(facts, "throttled"))),
        ("load at start", str(fact(facts, "load_1min"))),
    ]
