"""Under which conditions samples were taken: what two measurements must share to be compared, and what tells them apart."""

from __future__ import annotations

from typing import Any

from edgecompress.records import Measurement, canonical_json
from edgecompress.report.facts import fact, plain, threads

Key = tuple[str, ...]
IDENTITY = ("model", "cpu", "machine")  # a device's name may come to mean another board
# onnxruntime's own word for the threads that the plan asked for; it is told once, as threads.
THREADS = "intra_op_num_threads"
# What a file brings along and a runtime tells among its options: it is the file that differs there, not the conditions.
OF_THE_FILE = ("buckets", "delegates", "dynamic_quantization_group_size")


def key(measurement: Measurement) -> Key:
    """What two measurements must share to be compared: the device itself, runtime, options, cores and asked length."""
    return (measurement.device, measurement.transport, *_parts(measurement).values())


def _parts(measurement: Measurement) -> dict[str, str]:
    """Each condition in its one spelling."""
    plan = measurement.plan
    return {
        "threads": str(threads(measurement)),
        "runtime": f"{measurement.runtime} {measurement.runtime_version}",
        "seconds": canonical_json(plan.get("seconds")),
        "cores": canonical_json(plan.get("affinity") or []),
        "scenario": _scenario(plan),
        "options": canonical_json(_options(measurement)),
        "identity": canonical_json([measurement.identity.get(name) for name in IDENTITY]),
    }


def _options(measurement: Measurement) -> dict[str, Any]:
    return {name: value for name, value in measurement.options.items() if name not in OF_THE_FILE}


def _scenario(plan: dict[str, Any]) -> str:
    """How runs follow each other, in words; what was measured before there were scenarios is a single stream."""
    told = str(plan.get("scenario", "single_stream")).replace("_", " ")
    if plan.get("hop_s") is not None:
        told += f" every {plain(plan['hop_s'])} s"
    return f"{told}, batches of {plain(plan['batch'])}" if plan.get("batch", 1) != 1 else told


def labels(measurements: list[Measurement]) -> dict[Key, str]:
    """What sets each key apart from the others of its device, in words; empty where nothing does."""
    firsts = {key(one): one for one in measurements}
    found = {}
    for own, measurement in firsts.items():
        others = [_parts(one) for one in firsts.values() if one.device == measurement.device]
        mine = _parts(measurement)
        differ = [name for name, value in mine.items() if any(one[name] != value for one in others)]
        alike = [one for one in others if one["runtime"] == mine["runtime"]]
        if "runtime" in differ and all(one["options"] == mine["options"] for one in alike):
            differ = [name for name in differ if name != "options"]  # each runtime has its own: they tell nothing more
        same = [_options(one) for one in firsts.values() if _parts(one)["runtime"] == mine["runtime"]]
        told = [_told(name, measurement, same) for name in differ]
        if any(one.device == measurement.device and one.transport != measurement.transport for one in firsts.values()):
            told.insert(0, f"by {measurement.transport}")
        found[own] = ", ".join(filter(None, told))
    return _unique(found)


def _told(name: str, measurement: Measurement, same: list[dict[str, Any]]) -> str:
    """One condition in words; of the options those that others of the same runtime have otherwise."""
    plan, value = measurement.plan, str(threads(measurement))
    if name == "threads":
        return "1 thread" if value == "1" else f"{value} threads"
    if name == "runtime":
        return f"{measurement.runtime} {measurement.runtime_version.split('-')[0]}"
    if name == "seconds":
        return f"{plain(plan['seconds'])} s asked" if plan.get("seconds") is not None else "usual length"
    if name == "cores":
        return f"cores {plain(plan['affinity'])}" if plan.get("affinity") else "any core"
    if name == "scenario":
        return _scenario(plan)
    if name == "identity":
        return ", ".join(str(fact(measurement.identity, one)) for one in IDENTITY if measurement.identity.get(one))
    options = {
        one: value
        for one, value in _options(measurement).items()
        if one != THREADS and any(other.get(one) != value for other in same)
    }
    return plain(options) if options and name == "options" else ""


def _unique(found: dict[Key, str]) -> dict[Key, str]:
    """Two keys that words do not tell apart are numbered: their rows must not fall together."""
    seen: dict[tuple[str, str], int] = {}
    unique = {}
    for own, text in found.items():
        number = seen[own[0], text] = seen.get((own[0], text), 0) + 1
        unique[own] = text if number == 1 else f"{text}; other conditions {number}".lstrip("; ")
    return unique
