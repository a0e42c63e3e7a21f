"""Level 1: latency as a sum of non-negative costs, one for each feature, and whether that predicts what it has not seen.

Fitted by non-negative least squares (Lawson and Hanson, 1974) on relative errors: each row is divided by its latency, so
that a small probe counts as much as a large one. Nothing is believed of the fit itself: every probe is predicted from all
others (leave one out), and these errors give both the gate (within 10 % for four of five) and the interval, the
conformal quantile of the relative errors (Vovk and others, 2005, in its jackknife form).

The interval tells of other models, not of another day: three models measured minutes after a calibration on a shared virtual
machine each took 5 to 6 % longer than predicted, beyond an interval of 4.8 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy
from numpy.typing import NDArray

from edgecompress.predicting.features import NAMES, Features

Array = NDArray[numpy.float64]

COVERAGE = 0.9
WITHIN = 0.10
WANTED = 0.80
FEWEST = 6  # probes: with fewer the errors of leaving one out say little
ROOM = 1.25  # a feature this far beyond those of all probes is outside of what was seen
COLUMNS = (*NAMES, "constant")


@dataclass(frozen=True)
class Fit:
    """Costs in seconds for each unit of each of ``COLUMNS``; relative errors are (predicted - measured) / measured.

    ``quantile`` is the half width of the 90 % interval as a share of the prediction; None where there are too few probes.
    """

    costs: tuple[float, ...]
    errors: tuple[float, ...]
    quantile: float | None
    most: tuple[float, ...]
    least: tuple[float, ...]

    @property
    def within(self) -> float:
        """Share of held-out probes that came out within 10 %."""
        return sum(abs(error) <= WITHIN for error in self.errors) / len(self.errors)

    @property
    def usable(self) -> bool:
        """Whether the gate is passed, and an interval can be told."""
        return self.quantile is not None and self.within >= WANTED

    def seconds(self, features: Features) -> float:
        """The prediction for one inference."""
        return float(_row(features) @ numpy.asarray(self.costs))

    def interval(self, features: Features) -> tuple[float, float] | None:
        """Its 90 % interval, for models like the probes."""
        if self.quantile is None:
            return None
        value = self.seconds(features)
        return value * max(0.0, 1 - self.quantile), value * (1 + self.quantile)

    def outside(self, features: Features) -> list[str]:
        """Names of features that are far beyond those of all probes: there the fit extrapolates."""
        values = features.as_dict()
        return [
            f"{name} {values[name]:.3g}, probes have {least:.3g} to {most:.3g}"
            for name, least, most in zip(NAMES, self.least, self.most, strict=True)
            if not least / ROOM <= values[name] <= most * ROOM
        ]


def fit(features: Sequence[Features], seconds: Sequence[float]) -> Fit:
    """Fit costs to measured medians.

    Raises:
        ValueError: fewer than ``FEWEST`` probes, lists of unlike lengths, or a latency that is not above zero.
    """
    latencies = numpy.asarray(seconds, float)
    if len(features) != len(latencies) or len(latencies) < FEWEST:
        raise ValueError(f"{len(features)} probes and {len(latencies)} latencies: at least {FEWEST} of each are needed")
    if not (numpy.isfinite(latencies).all() and (latencies > 0).all()):
        raise ValueError("a latency is not above zero")
    rows = numpy.array([_row(one) for one in features])
    everyone = numpy.arange(len(rows))
    errors = []
    for left in everyone:
        others = everyone != left
        predicted = float(rows[left] @ _solve(rows[others], latencies[others]))
        errors.append(predicted / float(latencies[left]) - 1)
    counts = rows[:, :-1]
    return Fit(
        costs=tuple(map(float, _solve(rows, latencies))),
        errors=tuple(errors),
        quantile=quantile(errors),
        most=tuple(map(float, counts.max(axis=0))),
        least=tuple(map(float, counts.min(axis=0))),
    )


def quantile(errors: Sequence[float], coverage: float = COVERAGE) -> float | None:
    """The conformal quantile of |measured - predicted| / predicted, from errors relative to what was measured.

    The ceil((n + 1) coverage)-th smallest of n; None where n is too small for it, or a prediction was not above zero.
    """
    place = ceil((len(errors) + 1) * coverage)
    if place > len(errors) or min(errors, default=-1.0) <= -1:
        return None
    return sorted(abs(error / (1 + error)) for error in errors)[place - 1]


def _row(features: Features) -> Array:
    return numpy.array([*features.as_dict().values(), 1.0])


def _solve(rows: Array, latencies: Array) -> Array:
    """Non-negative costs with the least sum of squared relative errors; columns are scaled to be alike first."""
    from scipy.optimize import nnls

    weighted = rows / latencies[:, None]
    scale = numpy.abs(weighted).max(axis=0)
    scale[scale == 0] = 1.0
    found, _ = nnls(weighted / scale, numpy.ones(len(rows)))
    return numpy.asarray(found / scale, float)
