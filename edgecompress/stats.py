"""What raw numbers support: percentiles with the sample size they need, medians, ratios and scores with intervals.

Every interval is a 95 % percentile bootstrap with a fixed seed, so that the same files always give the same page.
Latency is resampled in two levels, first the repetitions (fresh processes), then the samples in each: iterations of
one process are not independent of each other, and pooling them blindly gives intervals that are far too narrow. A
bootstrap over three repetitions still covers the truth only 74 times in 100, so the interval is never narrower than
Student's over the logarithms of the repetitions' medians; of a single repetition there is none at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 2000
CHUNK = 250  # resamples drawn at once: bounds memory at a few tens of MB
SEED = 20240229
# A difference below 2 % is not called one, however narrow the interval: clocks and layouts alone move that much.
INDISTINGUISHABLE = 0.02
# More samples than this add no digit to a bootstrap of the median, only seconds.
SAMPLES_KEPT = 1000


@dataclass(frozen=True)
class Estimate:
    """A number, the ends of its 95 % interval (``None`` where the data cannot support one), and what ``n`` counts.

    ``groups`` is in how many groups (speakers) these fall, where they do and the interval allows for it.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    groups: int | None = None

    @property
    def has_interval(self) -> bool:
        """Whether both ends are known."""
        return self.low is not None and self.high is not None


@dataclass(frozen=True)
class Percentile:
    """A percentile, or ``None`` and the number of samples it would need."""

    value: float | None
    n: int
    needed: int


@dataclass(frozen=True)
class Spread:
    """How restless raw samples are: shares of their mean, except ``drift`` (change over one repetition / median)."""

    coefficient_of_variation: float
    lowest: float
    highest: float
    between_repetitions: float | None
    drift: float | None
    drift_per_minute: float | None


def _interval(replicates: Array, value: float, n: int) -> Estimate:
    finite = replicates[np.isfinite(replicates)]
    if len(finite) < RESAMPLES // 2:
        return Estimate(value, None, None, n)
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(min(low, value)), float(max(high, value)), n)


# --- percentiles -----------------------------------------------------------------------------------------------------
def _overshoots_allowed(n: int, share: float, confidence: float) -> int:
    """Greatest t with P(Binomial(n, 1 - share) <= t) <= 1 - confidence; -1 when there is none."""
    from scipy.special import bdtr

    counts = np.arange(0, n)
    allowed = np.flatnonzero(bdtr(counts, n, 1 - share) <= 1 - confidence)
    return int(allowed[-1]) if len(allowed) else -1


@lru_cache(maxsize=16)
def samples_needed(share: float, confidence: float = 0.99) -> int:
    """Fewest samples from which the percentile ``share`` (0.9 for p90) may be reported: 64 for p90, 662 for p99."""
    n = 2
    while _overshoots_allowed(n, share, confidence) < 1:
        n += 1
    return n


def percentile(samples: Sequence[float], share: float, confidence: float = 0.99) -> Percentile:
    """A tail percentile by the early-stopping rule of MLPerf Inference (LoadGen, tolerance 0).

    With t overshoots allowed among n samples, the t - 1 greatest are dropped and the greatest of the rest is told: an
    upper estimate that holds with ``confidence``. Below ``samples_needed`` there is no value: a p99 of 200 samples is
    noise.
    """
    n = len(samples)
    allowed = _overshoots_allowed(n, share, confidence) if n else -1
    if allowed < 1:
        return Percentile(None, n, samples_needed(share, confidence))
    return Percentile(float(np.sort(np.asarray(samples, float))[n - allowed]), n, 0)


# --- latency ---------------------------------------------------------------------------------------------------------
def _kept(samples: Sequence[float]) -> Array:
    """At most ``SAMPLES_KEPT`` evenly spaced order statistics: the same quantiles, less work."""
    ordered = np.sort(np.asarray(samples, float))
    if len(ordered) <= SAMPLES_KEPT:
        return ordered
    return ordered[np.linspace(0, len(ordered) - 1, SAMPLES_KEPT).round().astype(int)]


@lru_cache(maxsize=512)
def _median_replicates(repetitions: tuple[tuple[float, ...], ...], stream: int) -> Array:
    """Medians of ``RESAMPLES`` two-level resamples; another ``stream`` draws independently."""
    groups = [_kept(samples) for samples in repetitions if samples]
    lengths = np.array([len(group) for group in groups])
    padded = np.zeros((len(groups), int(lengths.max())))
    for row, group in zip(padded, groups, strict=True):
        row[: len(group)] = group
    rng = np.random.default_rng([SEED, stream])
    medians = []
    for _ in range(RESAMPLES // CHUNK):
        chosen = rng.integers(0, len(groups), (CHUNK, len(groups)))
        places = rng.random((CHUNK, len(groups), round(float(lengths.mean())))) * lengths[chosen][:, :, None]
        drawn = padded[chosen[:, :, None], places.astype(int)]
        medians.append(np.median(drawn.reshape(CHUNK, -1), axis=1))
    return np.concatenate(medians)


def _log_medians(repetitions: tuple[tuple[float, ...], ...]) -> Array:
    """Logarithm of each repetition's median; empty where one of them is not above zero."""
    medians = np.array([np.median(samples) for samples in repetitions if samples])
    return np.log(medians) if (medians > 0).all() else np.array([])


def _widened(found: Estimate, *sides: Array) -> Estimate:
    """``found`` made at least as wide as Student's t (Welch's for two sides) over log medians; none below two a side."""
    from scipy.special import stdtrit

    if min(map(len, sides)) < 2:
        return Estimate(found.value, None, None, found.n)
    parts = [float(np.var(side, ddof=1)) / len(side) for side in sides]
    total = sum(parts)
    if total == 0 or found.low is None or found.high is None:
        return found
    freedom = total**2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * total**0.5
    low, high = found.value * float(np.exp(-half)), found.value * float(np.exp(min(half, 700.0)))
    return Estimate(found.value, min(found.low, low), max(found.high, high), found.n)


def _frozen(repetitions: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    frozen = tuple(tuple(samples) for samples in repetitions)
    if not any(frozen):
        raise ValueError("no samples")
    return frozen


def median(repetitions: Sequence[Sequence[float]]) -> Estimate:
    """Median of all samples; n counts samples. No interval from one repetition.

    The interval is the wider of a bootstrap (over repetitions, then samples) and Student's over the log medians.

    Raises:
        ValueError: no samples at all.
    """
    frozen = _frozen(repetitions)
    pooled = [sample for samples in frozen for sample in samples]
    found = _interval(_median_replicates(frozen, 0), float(np.median(pooled)), len(pooled))
    return _widened(found, _log_medians(frozen))


def ratio(reference: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> Estimate:
    """Median of ``reference`` over median of ``other``: above 1 when ``other`` is faster; n counts ``other``'s samples.

    Raises:
        ValueError: either has no samples.
    """
    above, below = _frozen(reference), _frozen(other)
    middles = [float(np.median([sample for samples in side for sample in samples])) for side in (above, below)]
    replicates = _median_replicates(above, 1) / _median_replicates(below, 0)
    found = _interval(replicates, middles[0] / middles[1], sum(map(len, below)))
    return _widened(found, _log_medians(above), _log_medians(below))


def verdict(speedup: Estimate) -> str:
    """``faster`` or ``slower`` beyond its interval and beyond ``INDISTINGUISHABLE``, ``same`` if neither.

    ``unclear`` where there is no interval: what one process did says nothing of the next.
    """
    if not speedup.has_interval:
        return "unclear"
    if speedup.low is not None and speedup.low > 1 + INDISTINGUISHABLE:
        return "faster"
    if speedup.high is not None and speedup.high < 1 - INDISTINGUISHABLE:
        return "slower"
    return "same"


def _drift(samples: Array) -> tuple[float, float] | None:
    """(share of the median gained over the repetition, the same per minute), if a Theil-Sen slope excludes zero."""
    from scipy.stats import theilslopes

    if len(samples) < 20:
        return None
    step = max(1, len(samples) // 150)
    times = np.cumsum(samples)[::step]
    fit = theilslopes(samples[::step], times)
    if fit.low_slope <= 0 <= fit.high_slope:
        return None
    duration, middle = float(times[-1] - times[0]), float(np.median(samples))
    return float(fit.slope) * duration / middle, float(fit.slope) * 60 / middle


def spread(repetitions: Sequence[Sequence[float]]) -> Spread:
    """Restlessness of latency samples given in seconds, one sequence a repetition, in the order they were taken.

    Raises:
        ValueError: no samples at all.
    """
    groups = [np.asarray(samples, float) for samples in repetitions if len(samples)]
    if not groups:
        raise ValueError("no samples")
    pooled = np.concatenate(groups)
    mean = float(pooled.mean())
    middles = np.array([np.median(group) for group in groups])
    drifts = [drift for drift in map(_drift, groups) if drift is not None]
    worst = max(drifts, key=lambda drift: abs(drift[0]), default=(None, None))
    return Spread(
        coefficient_of_variation=float(pooled.std(ddof=1)) / mean if len(pooled) > 1 else 0.0,
        lowest=float(pooled.min()) / mean,
        highest=float(pooled.max()) / mean,
        between_repetitions=float(middles.std(ddof=1) / middles.mean()) if len(middles) > 1 else None,
        drift=worst[0],
        drift_per_minute=worst[1],
    )


# --- scores ----------------------------------------------------------------------------------------------------------
def _ratio_of_sums(numerators: Array, denominators: Array) -> Array:
    below = denominators.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(below == 0, np.nan, numerators.sum(axis=-1) / below))


def _resampled_clips(clips: int) -> NDArray[np.int64]:
    return np.random.default_rng([SEED, 2]).integers(0, clips, (RESAMPLES, clips))


def _over_groups(found: Estimate, names: Sequence[str], *sides: tuple[Array, Array]) -> Estimate:
    """``found``, a ratio (of two sides: their difference), made at least as wide as Student's t over groups of clips.

    Clips of one speaker are alike: over clips alone the interval tells of these speakers, not of the next one. Each
    group's share in the ratio's error is its residual (the ratio estimator of cluster sampling). Names that are missing
    leave ``found`` as it is; a single group has no interval beyond its own clips.
    """
    from scipy.special import stdtrit

    known, of = np.unique(np.asarray(names, dtype=str), return_inverse=True)
    if not all(names) or len(known) >= len(of):
        return found
    grouped = replace(found, groups=len(known))
    if len(known) < 2 or found.low is None or found.high is None:
        return grouped
    residuals = np.zeros(len(known))
    for sign, (above, below) in zip((1, -1), sides, strict=False):
        ratio = above.sum() / below.sum()
        residuals += sign * np.bincount(of, above - ratio * below) * len(known) / below.sum()
    half = float(stdtrit(len(known) - 1, (1 + LEVEL) / 2)) * float(residuals.std(ddof=1)) / len(known) ** 0.5
    return replace(grouped, low=min(found.low, found.value - half), high=max(found.high, found.value + half))


def score(numerators: Sequence[float], denominators: Sequence[float], groups: Sequence[str] = ()) -> Estimate | None:
    """sum(numerators) / sum(denominators) with an interval by bootstrap over clips; ``None`` if nothing was counted.

    With ``groups``, one a clip (who speaks), the interval is at least as wide as one over groups. It stays within what
    the numbers can reach: not below 0 where no numerator is, not above 1 where none exceeds its denominator.
    """
    above, below = np.asarray(numerators, float), np.asarray(denominators, float)
    value = float(_ratio_of_sums(above, below)) if len(above) else float("nan")
    if not np.isfinite(value):
        return None
    if len(above) < 2:
        return Estimate(value, None, None, len(above))
    chosen = _resampled_clips(len(above))
    found = _interval(_ratio_of_sums(above[chosen], below[chosen]), value, len(above))
    if groups:
        found = _over_groups(found, groups, (above, below))
    if found.low is None or found.high is None:
        return found
    low = max(0.0, found.low) if above.min() >= 0 else found.low
    return replace(found, low=low, high=min(1.0, found.high) if (above <= below).all() else found.high)


def score_difference(
    one: dict[str, tuple[float, float]], other: dict[str, tuple[float, float]], groups: dict[str, str] | None = None
) -> Estimate | None:
    """Score of ``one`` minus score of ``other`` over the clips that both have, clip by clip (a paired bootstrap).

    Each maps a clip to its (numerator, denominator), ``groups`` to its group (see ``score``). ``None`` when they share
    fewer than two clips.
    """
    clips = sorted(one.keys() & other.keys())
    if len(clips) < 2:
        return None
    first, second = (np.array([part[clip] for clip in clips], float).T for part in (one, other))
    value = float(_ratio_of_sums(*first) - _ratio_of_sums(*second))
    if not np.isfinite(value):
        return None
    chosen = _resampled_clips(len(clips))
    replicates = _ratio_of_sums(first[0][chosen], first[1][chosen]) - _ratio_of_sums(
        second[0][chosen], second[1][chosen]
    )
    found = _interval(replicates, value, len(clips))
    if not groups:
        return found
    return _over_groups(found, [groups.get(clip, "") for clip in clips], (first[0], first[1]), (second[0], second[1]))


# --- relations -------------------------------------------------------------------------------------------------------
def _rank_correlation(x: Array, y: Array) -> Array:
    """Pearson correlation of ranks along the last axis; NaN where either side is constant."""
    from scipy.stats import rankdata

    one, other = (ranks - ranks.mean(axis=-1, keepdims=True) for ranks in (rankdata(x, axis=-1), rankdata(y, axis=-1)))
    scale = np.sqrt((one**2).sum(axis=-1) * (other**2).sum(axis=-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(scale == 0, np.nan, (one * other).sum(axis=-1) / scale))


def spearman(x: Sequence[float], y: Sequence[float]) -> Estimate | None:
    """Spearman's rank correlation with an interval by bootstrap over pairs.

    ``None`` for fewer than 3 pairs or a constant side; no interval for fewer than 5 pairs.
    """
    first, second = np.asarray(x, float), np.asarray(y, float)
    if len(first) < 3:
        return None
    value = float(_rank_correlation(first, second))
    if not np.isfinite(value):
        return None
    if len(first) < 5:
        return Estimate(value, None, None, len(first))
    chosen = np.random.default_rng([SEED, 3]).integers(0, len(first), (RESAMPLES, len(first)))
    return _interval(_rank_correlation(first[chosen], second[chosen]), value, len(first))


def pareto(latencies: Sequence[float], scores: Sequence[float], higher_is_better: bool = True) -> list[bool]:
    """For each point, whether no other is at least as fast and as good, and better in one of the two."""
    sign = 1.0 if higher_is_better else -1.0
    points: list[tuple[float, float]] = [
        (latency, -sign * score) for latency, score in zip(latencies, scores, strict=True)
    ]

    def beaten(point: tuple[float, float]) -> bool:
        return any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points)

    return [not beaten(point) for point in points]


def finite(value: Any) -> bool:
    """Whether a value read from disk is a number one can draw."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))
