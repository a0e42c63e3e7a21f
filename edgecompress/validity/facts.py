"""Values that a device told, taken for what they are: nothing here assumes more than a dict."""

from __future__ import annotations

from typing import Any

from edgecompress.stats import finite

LONGEST = 160


def plain(value: Any) -> str:
    """A short text for a value of any shape; a dict whose values are all the same is told by that value."""
    if isinstance(value, dict):
        told = [plain(one) for one in value.values()]
        if told and len(set(told)) == 1:
            return told[0]
        return short(", ".join(f"{key} {text}" for key, text in zip(value, told, strict=True)))
    if isinstance(value, (list, tuple)):
        return short(", ".join(plain(one) for one in value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return short(str(value))


def short(text: str) -> str:
    """At most ``LONGEST`` characters."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def number(value: Any) -> float | None:
    """A finite number, or None."""
    return float(value) if finite(value) else None


def numbers(value: Any) -> dict[str, float]:
    """All numbers in a dict of numbers, by name; empty for anything else."""
    if not isinstance(value, dict):
        return {}
    return {str(name): float(one) for name, one in value.items() if finite(one)}


def grown(before: Any, after: Any) -> dict[str, float]:
    """By how much each number of two dicts grew, for those that are in both and did grow."""
    was, now = numbers(before), numbers(after)
    return {name: now[name] - was[name] for name in was.keys() & now.keys() if now[name] > was[name]}


def tables(value: Any) -> dict[str, dict[str, float]]:
    """A dict of dicts of numbers, by name; empty for anything else."""
    return {str(name): numbers(one) for name, one in value.items()} if isinstance(value, dict) else {}


def cpu_count(facts: dict[str, Any]) -> int | None:
    """How many CPUs were online, from text such as ``0-3`` or ``0,2-3``."""
    try:
        ends = [[int(end) for end in part.split("-")] for part in str(facts["cores_online"]).split(",")]
    except (KeyError, ValueError):
        return None
    return sum(part[-1] - part[0] + 1 for part in ends)


def flags(value: Any) -> int | None:
    """Throttle flags as bits: from a number or from text such as ``0x50000``."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        return int(str(value).rpartition("=")[2].strip(), 0)
    except ValueError:
        return None
