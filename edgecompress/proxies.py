"""Which count of a model orders latencies rightly: pure functions over measured medians and what models have.

A rank correlation over a wide range of sizes flatters every count: the same within a band of models of nearly equal
multiply-accumulates, the pairs that a count orders wrongly beyond what the measurements leave open, and the latency that
is lost by choosing with it stand beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from edgecompress.stats import Estimate, spearman

BAND = 0.25
TIE = 1e-9  # counts that differ by less are one


@dataclass(frozen=True)
class Point:
    """One measured model: its latency in seconds with its interval, and its counts by name."""

    name: str
    latency: Estimate
    counts: Mapping[str, float]


@dataclass(frozen=True)
class Proxy:
    """How well one count stands in for latency.

    ``band`` is Spearman's correlation among models within 25 % of one's multiply-accumulates, in the band that holds the
    most. ``wrong`` of ``certain`` pairs, whose intervals of latency lie apart, are ordered the other way by the count or
    not at all. ``regret`` is the latency lost by taking the model whose count is least (the slowest of them, if several):
    0.1 is 10 % slower than the fastest.
    """

    counted: str
    spearman: Estimate | None
    kendall: float | None
    band: Estimate | None
    wrong: int
    certain: int
    regret: float


def judge(points: Sequence[Point], counted: str, band_by: str = "") -> Proxy | None:
    """How well ``counted`` orders these models; those that lack it are left out; None for fewer than three, or where it is
    the same for all (one model in several precisions has one number of parameters).

    ``band_by`` names the count whose bands are looked at.
    """
    known = [point for point in points if counted in point.counts]
    if len(known) < 3 or len({one.counts[counted] for one in known}) < 2:
        return None
    latencies, counts = [one.latency.value for one in known], [one.counts[counted] for one in known]
    wrong, certain = flips(known, counted)
    inside = band(known, band_by) if band_by else []
    return Proxy(
        counted=counted,
        spearman=spearman(counts, latencies),
        kendall=kendall(counts, latencies),
        band=spearman([one.counts[counted] for one in inside], [one.latency.value for one in inside]),
        wrong=wrong,
        certain=certain,
        regret=regret(known, counted),
    )


def kendall(counts: Sequence[float], latencies: Sequence[float]) -> float | None:
    """Kendall's tau-b; None where one side is constant or there are fewer than three pairs."""
    from scipy.stats import kendalltau

    if len(counts) < 3 or len(set(counts)) < 2 or len(set(latencies)) < 2:
        return None
    return float(kendalltau(counts, latencies).statistic)


def band(points: Sequence[Point], by: str, width: float = BAND) -> list[Point]:
    """The models within ``width`` of one model's count: of all such bands the one that holds the most; the first of equals."""
    known = [point for point in points if by in point.counts]
    bands = [
        [one for one in known if abs(one.counts[by] - centre.counts[by]) <= width * centre.counts[by]]
        for centre in known
    ]
    return max(bands, key=len, default=[])


def flips(points: Sequence[Point], counted: str) -> tuple[int, int]:
    """(pairs that the count does not order as they were measured, pairs whose intervals lie apart)."""
    wrong = certain = 0
    for one, other in combinations(points, 2):
        order = _apart(one.latency, other.latency)
        if not order:
            continue
        certain += 1
        difference = other.counts[counted] - one.counts[counted]
        tied = abs(difference) <= TIE * max(abs(one.counts[counted]), abs(other.counts[counted]))
        wrong += tied or (difference > 0) != (order > 0)
    return wrong, certain


def _apart(one: Estimate, other: Estimate) -> int:
    """1 where ``one`` is surely faster, -1 where ``other`` is, 0 where their intervals meet or there is none."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return 0
    return 1 if one.high < other.low else -1 if other.high < one.low else 0


def regret(points: Sequence[Point], counted: str) -> float:
    """Share of latency lost by taking the model whose count is least; the slowest of them where several are.

    Raises:
        ValueError: no points.
    """
    least = min(one.counts[counted] for one in points)
    chosen = max(one.latency.value for one in points if one.counts[counted] <= least + TIE * abs(least))
    return chosen / min(one.latency.value for one in points) - 1
