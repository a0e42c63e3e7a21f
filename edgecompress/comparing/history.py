"""Measurements of one artifact on one device over time: what changed since the last, and since the first.

A measurement is held against the latest earlier one under the same conditions, and against the first one under them. The
intervals are those of the report (two-level bootstrap, no narrower than Student's over repetitions). They tell of the
processes that were run, not of the days between: a regression found here is worth a ``compare`` of both files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecompress import stats
from edgecompress.comparing import conditions
from edgecompress.comparing.record import FILE
from edgecompress.errors import RecordError
from edgecompress.records import Measurement
from edgecompress.report.caveats import of_measurement
from edgecompress.stats import Estimate

SHORTEST_SHA = 6
SCHEMA = Measurement.model_fields["schema_"].default


@dataclass(frozen=True)
class Change:
    """Against an earlier measurement: times as fast as then, and in a word."""

    since: str
    speed: Estimate
    verdict: str


@dataclass(frozen=True)
class Entry:
    """One measurement in its history.

    ``latency`` is in seconds. ``differs`` says why it cannot be held against the one just before, ``invalid`` why it is
    held against nothing.
    """

    measurement: Measurement
    path: Path
    latency: Estimate
    previous: Change | None = None
    first: Change | None = None
    differs: tuple[str, ...] = ()
    invalid: tuple[str, ...] = ()

    @property
    def regressed(self) -> bool:
        """Whether it is slower than an earlier one beyond the interval and 2 %."""
        return any(change is not None and change.verdict == "slower" for change in (self.previous, self.first))


@dataclass(frozen=True)
class History:
    """All measurements of an artifact (by name) on a device, oldest first."""

    artifact: str
    device: str
    entries: tuple[Entry, ...]


def read(folder: Path) -> tuple[list[tuple[Path, Measurement]], dict[str, str]]:
    """All measurements below ``folder`` (not the sessions of comparisons), and files that could not be read, with why.

    Raises:
        RecordError: no such folder.
    """
    if not folder.is_dir():
        raise RecordError(f"no such folder: {folder}", hint="give a folder that `bench -o` or `run` wrote")
    found: list[tuple[Path, Measurement]] = []
    faults = {}
    seen = set()
    for path in sorted(folder.rglob("*.json")):
        if (path.parent.parent / FILE).is_file() or not _is_measurement(path):
            continue
        try:
            measurement = Measurement.read(path)
        except RecordError as why:
            faults[str(path)] = why.message
            continue
        text = measurement.json_text()
        if text not in seen:  # a copy of a file is no second measurement
            seen.add(text)
            found.append((path, measurement))
    return found, faults


def _is_measurement(path: Path) -> bool:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and data.get("schema") == SCHEMA


def histories(measurements: Iterable[tuple[Path, Measurement]], artifact: str = "", device: str = "") -> list[History]:
    """Measurements by artifact and device; ``artifact`` is a name or the first six or more digits of a SHA-256."""
    groups: dict[tuple[str, str], list[tuple[Path, Measurement]]] = {}
    for path, one in measurements:
        by_sha = len(artifact) >= SHORTEST_SHA and one.artifact_sha256.startswith(artifact)
        if (not artifact or by_sha or one.artifact == artifact) and (not device or one.device == device):
            groups.setdefault((one.artifact, one.device), []).append((path, one))
    return [
        History(*names, tuple(_entries(sorted(group, key=lambda pair: (pair[1].started, str(pair[0]))))))
        for names, group in sorted(groups.items())
    ]


def _entries(group: list[tuple[Path, Measurement]]) -> Iterator[Entry]:
    valid: list[Measurement] = []
    last: Measurement | None = None
    for path, one in group:
        samples = seconds(one)
        if not any(samples):
            continue
        why = tuple(dict.fromkeys(f"{caveat.code}: {caveat.text}" for caveat in of_measurement(one) if caveat.invalid))
        differs = tuple(conditions.differences(last, one)) if last is not None else ()
        alike = [] if why else [earlier for earlier in valid if not conditions.differences(earlier, one)]
        yield Entry(
            one, path, stats.median(samples),
            _change(alike[-1], one) if alike else None, _change(alike[0], one) if alike else None, differs, why,
        )  # fmt: skip
        last = one
        if not why:
            valid.append(one)


def seconds(measurement: Measurement) -> list[list[float]]:
    """Samples in seconds, by repetition."""
    return [[ns / 1e9 for ns in one.samples_ns] for one in measurement.repetitions]


def _change(earlier: Measurement, later: Measurement) -> Change:
    speed = stats.ratio(seconds(earlier), seconds(later))
    return Change(earlier.started, speed, stats.verdict(speed))


def as_data(history: History) -> dict[str, Any]:
    """What ``history --json`` prints."""

    def change(one: Change | None) -> dict[str, Any] | None:
        if one is None:
            return None
        speed = one.speed
        return {"since": one.since, "speed": speed.value, "low": speed.low, "high": speed.high, "verdict": one.verdict}

    return {
        "artifact": history.artifact,
        "device": history.device,
        "measurements": [
            {
                "started": entry.measurement.started, "file": str(entry.path), "tool": entry.measurement.tool,
                "artifact_sha256": entry.measurement.artifact_sha256, "latency_median_s": entry.latency.value,
                "latency_low_s": entry.latency.low, "latency_high_s": entry.latency.high, "samples": entry.latency.n,
                "previous": change(entry.previous), "first": change(entry.first), "regression": entry.regressed,
                "not_comparable": list(entry.differs), "invalid": list(entry.invalid),
            }
            for entry in history.entries
        ],
    }  # fmt: skip
