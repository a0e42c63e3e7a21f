"""Predictions of one artifact for one device, by every level that there is something for."""

from __future__ import annotations

from pathlib import Path

from edgecompress.devices import Profile
from edgecompress.predicting import Prediction
from edgecompress.predicting.calibration import Fitted
from edgecompress.predicting.features import Features, of_artifact
from edgecompress.predicting.fitting import COLUMNS, COVERAGE, ROOM, WANTED, WITHIN
from edgecompress.predicting.roofline import roofline
from edgecompress.records import Artifact

NO_PROFILE = "a profile of the board (device add --profile)"


def predictions(
    artifact: Artifact,
    folder: Path,
    device: str,
    threads: int,
    profile: Profile | None = None,
    fitted: Fitted | None = None,
    seconds: float | None = None,
) -> list[Prediction]:
    """What level 0 says of an artifact, and level 1 where there is a calibration.

    Raises:
        RecipeError, RecordError: see :func:`features.of_artifact`.
    """
    counts = of_artifact(artifact, folder, seconds)
    length = seconds if seconds is not None or artifact.audio is None else artifact.audio.golden_seconds
    sha256 = artifact.files[artifact.model_file].sha256 if artifact.model_file in artifact.files else ""
    blank = Prediction(
        level=0, artifact=artifact.name, artifact_sha256=sha256, device=device, runtime=artifact.runtime,
        precision=artifact.precision, threads=threads, audio_seconds=length, features=counts.as_dict(), usable=False,
    )  # fmt: skip
    found = [_by_roofline(blank, counts, profile)]
    return [*found, _by_calibration(blank, counts, fitted)] if fitted is not None else found


def _by_roofline(blank: Prediction, counts: Features, profile: Profile | None) -> Prediction:
    if profile is None:
        return blank.model_copy(update={"missing": [NO_PROFILE]})
    told = roofline(profile, counts, blank.precision, blank.threads)
    missing = [f"{name} of {profile.id}" for name in told.missing]
    notes = [f"profile {profile.id}"]
    if blank.precision.startswith("int8"):
        notes.append("every product is taken to be in int8; what a file leaves in fp32 takes longer")
    values = {"low": told.low, "high": told.high, "assumptions": list(told.assumptions), "missing": missing}
    return blank.model_copy(update={**values, "usable": not missing, "notes": notes})


def _by_calibration(blank: Prediction, counts: Features, fitted: Fitted) -> Prediction:
    fit = fitted.fit
    if fit is None:
        return blank.model_copy(update={"level": 1, "missing": ["enough measured probes"], "notes": list(fitted.notes)})
    ends = fit.interval(counts)
    facts = {
        "probes": len(fit.errors), "held_out_within_10_percent": fit.within, "wanted_within": WANTED,
        "errors": dict(zip(fitted.latencies, fit.errors, strict=True)), "interval_half_width": fit.quantile,
        "coverage": COVERAGE, "tolerance": WITHIN, "seconds_per_unit": dict(zip(COLUMNS, fit.costs, strict=True)),
        "calibrated": fitted.record.ended, "runtime_version": fitted.record.runtime_version,
    }  # fmt: skip
    values = {"value": fit.seconds(counts), "low": ends[0] if ends else None, "high": ends[1] if ends else None}
    outside = fit.outside(counts) + _other_length(blank.audio_seconds, fitted.record.audio_seconds)
    more = {"usable": fit.usable and not outside, "outside": outside, "fit": facts, "notes": list(fitted.notes)}
    return blank.model_copy(update={"level": 1, **values, **more})


def _other_length(asked: float | None, seen: float | None) -> list[str]:
    """At one length weights and their products rise together: what each costs is not told apart, and at others matters."""
    if asked is None or seen is None or seen / ROOM <= asked <= seen * ROOM:
        return []
    return [f"{asked:g} s of audio, probes had {seen:g} s"]
