"""A calibration: probes measured on a device, kept raw with their conditions; what they cost is fitted when it is read.

One folder for each device, runtime, precision and number of threads, below the user's settings: ``calibration.json`` and
the measurements it names. Probes are measured in turn over several rounds, so that a clock that changes, or another job,
falls on all of them alike.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edgecompress import session, stats
from edgecompress.devices import Device, config
from edgecompress.errors import AgentDied, AgentFailed, RecordError
from edgecompress.predicting import fitting, probes
from edgecompress.predicting.features import NAMES, Features
from edgecompress.predicting.fitting import Fit
from edgecompress.records import Measurement, Part, Record, now, whole_folder
from edgecompress.report import caveats

ROUNDS = 3
PLAN = session.Plan(
    repetitions=1, warmup_s=0.2, min_samples=5, min_seconds=0.5, max_seconds=5.0, timeout_s=300.0, memory_pass=False
)
# Of the report's caveats those that a reader of a prediction must know; what is invalid is left out of the fit.
TELLING = ("busy", "other-load", "throttled", "clock-drop", "swap", "virtual", "golden")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Key:
    """What a calibration holds for."""

    device: str
    runtime: str
    precision: str
    threads: int

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        place = config.home() / "predicting" / config.check_name(self.device)
        return place / f"{self.runtime}-{self.precision}-{self.threads}t"


class Measured(Part):
    """One probe: its counts, and the files of its measurements, one a round."""

    name: str
    features: dict[str, float]
    measurements: list[str]


class Calibration(Record):
    """``calibration.json``: what was measured, where and when, and what could not be."""

    schema_: Literal["edgecompress.probes/1"] = Field("edgecompress.probes/1", alias="schema")
    device: str
    runtime: str
    runtime_version: str
    format: str
    precision: str
    threads: int
    profile: str | None
    identity: dict[str, Any]
    plan: dict[str, Any]
    rounds: int
    audio_seconds: float | None = None
    probes: list[Measured]
    failed: dict[str, str] = Field(default_factory=dict)
    started: str
    ended: str
    tool: str


@dataclass(frozen=True)
class Fitted:
    """A calibration with what its samples say: probes by name with median latency, seconds; the fit, if there are enough."""

    record: Calibration
    latencies: dict[str, float]
    fit: Fit | None
    notes: tuple[str, ...]


def calibrate(
    device: Device,
    key: Key,
    format: str,
    wanted: Sequence[probes.Shape],
    plan: session.Plan = PLAN,
    rounds: int = ROUNDS,
    progress: Say | None = None,
) -> Calibration:
    """Make probes, measure them on ``device`` and keep what was seen; an older calibration for ``key`` is replaced.

    Raises:
        DeviceError: the device, or the way to it, failed. A probe that alone fails is left out and named.
        RecordError: nothing at all could be measured.
        ModuleNotFoundError: torch, or what the format needs, is not installed here.
    """
    started = now()
    failed: dict[str, str] = {}
    found: dict[str, list[Measurement]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="edgecompress-probes-") as work,
        whole_folder(key.folder) as beside,
    ):
        there = list(probes.made(wanted, format, key.precision, Path(work), failed, progress))
        for turn in range(rounds):
            for probe in there:
                name = probe.shape.name
                if name in failed:
                    continue
                if progress:
                    progress(f"measuring probe {name} on {device.name}, round {turn + 1} of {rounds}")
                try:
                    seen = session.measure(device, probe.artifact, probe.folder, plan)
                except (AgentFailed, AgentDied) as why:
                    failed[name] = why.message
                    continue
                found.setdefault(name, []).append(seen)
                seen.write(beside / "measurements" / f"{name}-{turn + 1}.json")
        whole = [probe for probe in there if probe.shape.name not in failed]
        if not whole:
            causes = "; ".join(f"{name}: {why}" for name, why in list(failed.items())[:3])
            raise RecordError(
                f"no probe could be measured on {device.name} ({causes})", hint="try bench with an artifact"
            )
        first = found[whole[0].shape.name][0]
        record = Calibration(
            device=device.name, runtime=first.runtime, runtime_version=first.runtime_version, format=format,
            precision=key.precision, threads=plan.threads, profile=first.profile, identity=first.identity,
            plan=asdict(plan) | {"affinity": list(plan.affinity)}, rounds=rounds,
            audio_seconds=first.audio_seconds,
            probes=[
                Measured(
                    name=probe.shape.name, features=probe.features.as_dict(),
                    measurements=[f"measurements/{probe.shape.name}-{turn + 1}.json" for turn in range(rounds)],
                )
                for probe in whole
            ],
            failed=failed, started=started, ended=now(), tool=first.tool,
        )  # fmt: skip
        record.write(beside / "calibration.json")
    return record


def read(key: Key) -> Fitted | None:
    """The calibration that is kept for ``key``, fitted; None where there is none.

    Raises:
        RecordError: it is there and is not whole, or is of something else than its folder's name says.
    """
    file = key.folder / "calibration.json"
    if not file.is_file():
        return None
    record = Calibration.read(file)
    if Key(record.device, record.runtime, record.precision, record.threads) != key:
        raise RecordError(f"{file}: is of another device or precision than its folder", hint="calibrate again")
    latencies: dict[str, float] = {}
    counts: list[Features] = []
    notes = [f"probe {name} is missing: {why}" for name, why in record.failed.items()]
    told: dict[str, set[str]] = {}
    for probe in record.probes:
        samples = []
        for name in probe.measurements:
            seen = Measurement.read(_inside(key.folder, name))
            warned = [one for one in caveats.of_measurement(seen) if one.code in TELLING]
            for one in warned:
                told.setdefault(caveats.TITLES[one.code], set()).add(probe.name)
            if not any(one.invalid for one in warned):
                samples += [[ns / 1e9 for ns in one.samples_ns] for one in seen.repetitions]
        if samples:
            latencies[probe.name] = stats.median(samples).value
            counts.append(_features(probe, file))
    notes += [f"{title} ({len(names)} of {len(record.probes)} probes)" for title, names in told.items()]
    if len(counts) < fitting.FEWEST:
        notes.append(f"{len(counts)} probes are too few, {fitting.FEWEST} at least are needed")
        return Fitted(record, latencies, None, tuple(notes))
    return Fitted(record, latencies, fitting.fit(counts, list(latencies.values())), tuple(notes))


def _inside(folder: Path, name: str) -> Path:
    """A file that a record names, which must lie below the record's folder."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise RecordError(f"{folder}: names {name}, which is outside of it", hint="calibrate again")
    return path


def _features(probe: Measured, file: Path) -> Features:
    if set(probe.features) != set(NAMES):
        raise RecordError(f"{file}: {probe.name} has other features than are used now", hint="calibrate again")
    return Features(**probe.features)
