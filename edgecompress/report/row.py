"""A row: one artifact on one device, with what it costs, scores and takes there."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgecompress import stats
from edgecompress.records import FileCost, Measurement
from edgecompress.report.caveats import Caveat
from edgecompress.stats import Estimate

PRECISIONS = ("fp32", "fp16", "int8", "int8-static", "int8-weights", "int4-weights", "int8-naive", "int8-static-naive")
Metric = tuple[str, str]  # (task, metric)


@dataclass(frozen=True)
class ScoreCell:
    """A score of one artifact, and how far it is from dense at the same precision (paired over clips).

    ``in_torch``: the fp32 artifact was not scored itself, its checkpoint was. ``of_checkpoint``: the task scores only
    checkpoints; every artifact of one shows that score, which says nothing of what its format or precision cost.
    """

    estimate: Estimate
    difference: Estimate | None
    higher_is_better: bool
    in_torch: bool = False
    of_checkpoint: bool = False

    @property
    def loss(self) -> float | None:
        """Greatest loss against dense that the interval leaves open; negative when surely better."""
        if self.difference is None or self.difference.low is None or self.difference.high is None:
            return None
        return -self.difference.low if self.higher_is_better else self.difference.high

    @property
    def within_noise(self) -> bool:
        """Whether a loss against dense cannot be told from noise; needs at least 20 shared clips to be said."""
        difference = self.difference
        if difference is None or difference.n < 20 or difference.low is None or difference.high is None:
            return False
        return difference.high >= 0 if self.higher_is_better else difference.low <= 0


@dataclass(frozen=True)
class Timing:
    """What the samples of one measurement say. Times in seconds."""

    latency: Estimate
    p90: stats.Percentile
    p95: stats.Percentile
    p99: stats.Percentile
    real_time_factor: float | None
    peak_rss_bytes: int
    load_s: float
    repetitions: int
    speedup: Estimate | None = None
    reference_seconds: float | None = None

    @property
    def verdict(self) -> str | None:
        """``faster``, ``slower``, ``same`` as dense, ``unclear``; ``None`` where there is no dense to compare with."""
        return stats.verdict(self.speedup) if self.speedup else None


@dataclass(frozen=True)
class Row:
    """One artifact on one device (or a checkpoint, or a file that was measured alone).

    ``source`` is the hash of the weights it was made of; ``conditions`` tells its measurement from others of its
    device (``4 threads``), and is empty where all were taken under the same.
    """

    recipe: str
    label: str
    technique: str
    subject: str | None = None
    format: str | None = None
    precision: str | None = None
    device: str | None = None
    conditions: str = ""
    source: str | None = None
    cost: FileCost | None = None
    size_bytes: int | None = None
    parity: float | None = None
    scores: dict[Metric, ScoreCell] = field(default_factory=dict)
    measurement: Measurement | None = None
    timing: Timing | None = None
    caveats: list[Caveat] = field(default_factory=list)
    pareto: bool | None = None

    @property
    def where(self) -> str:
        """The device and, where they differ there, the conditions: rows are compared only within it."""
        return f"{self.device} ({self.conditions})" if self.device and self.conditions else self.device or ""

    @property
    def suspect(self) -> bool:
        """Whether something happened while measuring that keeps the row out of every comparison."""
        return any(caveat.invalid for caveat in self.caveats)

    @property
    def disturbed(self) -> bool:
        """Whether other programs took more than half a CPU meanwhile: compared all the same, and told first."""
        return any(caveat.code == "busy" for caveat in self.caveats)

    @property
    def macs(self) -> float | None:
        """Multiply-accumulates of the pass that was measured (scaled by length when it was not the counted one)."""
        if self.cost is None or self.cost.macs is None:
            return None
        seconds = self.measurement.audio_seconds if self.measurement else None
        counted, per_second = self.cost.seconds, self.cost.macs.per_second
        if seconds is None or counted is None or per_second is None or abs(seconds - counted) <= 0.02 * counted:
            return float(self.cost.macs.total)
        return per_second * seconds
