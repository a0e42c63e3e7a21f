"""Predicting latency before anyone measures it, and saying how far that can be trusted.

What a model is comes from its artifact (:mod:`features`). Level 0 (:mod:`roofline`) needs only a board's profile, and
answers with a range. Level 1 (:mod:`calibrated`) is a sum of non-negative costs fitted on probe models that were measured
on the device itself (:mod:`probes`); it must predict probes that it has not seen before it may be used.

A :class:`Prediction` is never a measurement: it has a schema of its own, no samples, and no report takes it for one.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from edgecompress.records import Part, Record

__all__ = ["Assumption", "Prediction"]


class Assumption(Part):
    """One number that a prediction rests on, and where it comes from."""

    name: str
    low: float
    high: float
    unit: str
    source: str


class Prediction(Record):
    """What one artifact may take on one device. Times in seconds for one inference; ``low`` and ``high`` its range.

    ``level`` 0 is the roofline of a profile, 1 a calibration on the device. ``value`` is None where only a range is told.
    ``usable`` says whether a calibration passed its gate; ``missing`` what kept it from saying anything at all.
    """

    schema_: Literal["edgecompress.prediction/1"] = Field("edgecompress.prediction/1", alias="schema")
    kind: Literal["predicted"] = "predicted"
    level: Literal[0, 1]
    artifact: str
    artifact_sha256: str
    device: str
    runtime: str
    precision: str
    threads: int
    audio_seconds: float | None
    features: dict[str, float]
    value: float | None = None
    low: float | None = None
    high: float | None = None
    usable: bool
    missing: list[str] = Field(default_factory=list)
    outside: list[str] = Field(default_factory=list)
    assumptions: list[Assumption] = Field(default_factory=list)
    fit: dict[str, Any] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
