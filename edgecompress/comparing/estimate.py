"""How much faster, how sure: an estimate from blocks, with intervals that hold for all variants at once.

The difference of two variants in a block is the log of the ratio of their medians. It is estimated as Hodges and Lehmann
do, by the median of means, over all pairs of one block in which the first variant came first and one in which it came
later: a steady drift adds to the one what it takes from the other. The interval is a percentile bootstrap (10,000;
blocks are drawn within either order, then samples within each session), made no narrower than Student's over blocks
with the means of both orders taken off: a bootstrap of few blocks is too narrow. With more than two variants the level
is that of single-step max-T (multivariate t, correlations as seen), so that all intervals hold at once in 95 of 100.
Stopping when the interval happens to be narrow costs up to 2.5 of these 95 (simulated), so it is computed for 97.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgecompress.stats import INDISTINGUISHABLE, SEED, Array, Estimate

LEVEL = 0.97  # what is computed, for 95 % that hold after several looks
RESAMPLES = 10_000
CHUNK_NUMBERS = 2_000_000  # held at once: 16 MB
FEWEST = 4  # blocks: with one of either order there is nothing to tell their spread from
METHOD = (
    "Hodges-Lehmann over mirrored blocks; percentile bootstrap (blocks, then samples), no narrower than Student's t; "
    "simultaneous over variants by max-T"
)


@dataclass(frozen=True)
class Seen:
    """One valid block: the order in which variants ran (their indices), and each one's samples by its index."""

    order: tuple[int, ...]
    samples: tuple[tuple[int, ...], ...]


def speeds(blocks: Sequence[Seen], resamples: int = RESAMPLES) -> list[Estimate]:
    """How many times as fast as the first variant each other one is, in their order; ``n`` counts blocks.

    A block that waits for its mirror is left out. No interval below ``FEWEST`` blocks.

    Raises:
        ValueError: not one pair of blocks, or a pair that is not mirrored.
    """
    blocks = blocks[: len(blocks) // 2 * 2]
    if not blocks:
        raise ValueError("no pair of blocks")
    if any(one.order != other.order[::-1] for one, other in zip(blocks[::2], blocks[1::2], strict=True)):
        raise ValueError("a pair of blocks is not mirrored")
    logs = np.log([[np.median(samples) for samples in block.samples] for block in blocks])
    found = logs[:, 1:] - logs[:, :1]
    leads = np.array(
        [[block.order.index(0) < block.order.index(x) for x in range(1, logs.shape[1])] for block in blocks]
    )
    middles = [float(_middle(ratios[lead], ratios[~lead])) for ratios, lead in zip(found.T, leads.T, strict=True)]
    if len(blocks) < FEWEST:
        return [Estimate(float(np.exp(-middle)), None, None, len(blocks)) for middle in middles]
    errors, tail, times = _student(found, leads)
    estimates = []
    for index, middle in enumerate(middles):
        drawn = _replicates(blocks, leads[:, index], index + 1, resamples)
        low, high = np.quantile(drawn, [tail, 1 - tail])
        half = times * errors[index]
        low, high = min(float(low), middle - half), max(float(high), middle + half)
        value, slowest, fastest = (float(np.exp(-one)) for one in (middle, high, low))
        estimates.append(Estimate(value, slowest, fastest, len(blocks)))
    return estimates


def _middle(one: Array, other: Array) -> Array:
    """Median of the means of all pairs of one and other, along the last axis."""
    means = (one[..., :, None] + other[..., None, :]) / 2
    return np.asarray(np.median(means.reshape(*means.shape[:-2], -1), axis=-1))


def _student(found: Array, leads: np.ndarray) -> tuple[Array, float, float]:
    """Standard error of each contrast, and of the simultaneous interval each tail's share and how many errors wide.

    ``found`` is (blocks, contrasts): log ratios; ``leads``, alike, whether the first variant ran before the other.
    """
    from scipy.special import stdtr, stdtrit

    count, contrasts = found.shape
    means = np.array(
        [[ratios[lead].mean(), ratios[~lead].mean()] for ratios, lead in zip(found.T, leads.T, strict=True)]
    )
    residuals = found - np.where(leads, means[:, 0], means[:, 1])
    freedom = count - 2
    errors = np.sqrt((residuals**2).sum(axis=0) / freedom / count)
    if contrasts == 1:
        return errors, (1 - LEVEL) / 2, float(stdtrit(freedom, (1 + LEVEL) / 2))
    rng = np.random.default_rng([SEED, 11])
    spread = np.where(errors > 0, errors, 1.0) * np.sqrt(freedom * count)
    # residuals of a block go together: a random sign or size for each block keeps their correlations
    normal = rng.standard_normal((20_000, count)) @ (residuals / spread)
    scale = np.sqrt(rng.chisquare(freedom, 20_000) / freedom)
    times = float(np.quantile(np.abs(normal).max(axis=1) / scale, LEVEL))
    times = max(times, float(stdtrit(freedom, (1 + LEVEL) / 2)))
    return errors, float(stdtr(freedom, -times)), times


def _replicates(blocks: Sequence[Seen], lead: np.ndarray, variant: int, resamples: int) -> Array:
    """Bootstrap replicates of the log ratio of ``variant`` to the first."""
    rng = np.random.default_rng([SEED, 12, variant])
    first, second = np.flatnonzero(lead), np.flatnonzero(~lead)
    sides = [[np.sort(np.asarray(block.samples[which], float)) for block in blocks] for which in (variant, 0)]
    chunk = max(1, CHUNK_NUMBERS // (len(first) * len(second)))
    drawn = []
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        parts = []
        for places in (first, second):
            chosen = places[rng.integers(0, len(places), (size, len(places)))]
            above, below = (_medians(side, chosen, rng) for side in sides)
            parts.append(np.log(above) - np.log(below))
        drawn.append(_middle(*parts))
    return np.concatenate(drawn)


def _medians(sessions: list[Array], chosen: np.ndarray, rng: np.random.Generator) -> Array:
    """A resample's median for each chosen session (sorted samples), drawn by its rank.

    The median of n uniform numbers follows Beta((n + 1) / 2, (n + 1) / 2), so that one draw does for n.
    """
    lengths = np.array([len(samples) for samples in sessions])
    padded = np.zeros((len(sessions), int(lengths.max())))
    for row, samples in zip(padded, sessions, strict=True):
        row[: len(samples)] = samples
    counts = lengths[chosen]
    ranks = np.minimum((rng.beta((counts + 1) / 2, (counts + 1) / 2) * counts).astype(int), counts - 1)
    return np.asarray(padded[chosen, ranks])


def half_width(estimate: Estimate) -> float:
    """Half the width of the interval of the log ratio; infinite where there is none."""
    if estimate.low is None or estimate.high is None:
        return float("inf")
    return float(np.log(estimate.high / estimate.low)) / 2


def verdict(estimate: Estimate) -> str:
    """``faster`` or ``slower``: the whole interval lies beyond 2 %; ``same``: all of it within; else ``undecided``."""
    limit = 1 + INDISTINGUISHABLE
    if estimate.low is None or estimate.high is None:
        return "undecided"
    if estimate.low > limit:
        return "faster"
    if estimate.high < 1 / limit:
        return "slower"
    return "same" if estimate.low >= 1 / limit and estimate.high <= limit else "undecided"


def told(name: str, first: str, estimate: Estimate) -> str:
    """The finding as a sentence."""
    found = verdict(estimate)
    if estimate.low is None:
        return f"{name} against {first}: undecided after {estimate.n} blocks"
    interval = f"[{estimate.low:.3f}, {estimate.high:.3f}]"
    if found in ("faster", "slower"):
        return f"{name} is {estimate.value:.3f}x as fast as {first} {interval}"
    if found == "same":
        return f"{name} and {first}: no difference within {INDISTINGUISHABLE:.0%} {interval}"
    return f"{name} against {first}: undecided after {estimate.n} blocks: {estimate.value:.3f}x as fast {interval}"
