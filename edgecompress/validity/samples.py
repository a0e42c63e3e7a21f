"""What raw samples say of themselves: scatter, drift, two speeds; and what a canary's samples say of the machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from edgecompress import stats
from edgecompress.validity.rules import RULES, Code, limit

BLOCKS = 50
FEWEST_IN_BLOCK = 2


def unstable(seconds: list[list[float]], seen: stats.Spread) -> Iterator[Code]:
    """pyperf's warnings, and repetitions that do not agree."""
    most = limit("W_UNSTABLE", "variation")
    if seen.coefficient_of_variation >= most:
        text = f"coefficient of variation {seen.coefficient_of_variation:.0%} (limit {most * 100:.0f} %)"
        yield _warning("W_UNSTABLE", text, {"variation": seen.coefficient_of_variation}, most)
    most = limit("W_UNSTABLE", "off_the_mean")
    if seen.highest > 1 + most or seen.lowest < 1 - most:
        text = f"samples reach from {seen.lowest:.2f} to {seen.highest:.2f} times the mean"
        yield _warning("W_UNSTABLE", text, {"lowest": seen.lowest, "highest": seen.highest}, most)
    most = limit("W_UNSTABLE", "between")
    if seen.between_repetitions is not None and seen.between_repetitions > most:
        text = f"medians of the repetitions vary by {seen.between_repetitions:.1%} (limit {most * 100:.0f} %)"
        yield _warning("W_UNSTABLE", text, {"between": seen.between_repetitions}, most)
    shortest, least = min(sample for samples in seconds for sample in samples), limit("W_UNSTABLE", "short_s")
    if shortest < least:
        yield Code("W_UNSTABLE", "samples under 1 ms", {"shortest_s": shortest}, least, False, (), "short")


def drift(seconds: list[list[float]], seen: stats.Spread) -> Iterator[Code]:
    """A slope, or neighbours that are alike: something else than chance moved the samples."""
    per_minute, whole = limit("W_DRIFT", "per_minute"), limit("W_DRIFT", "over_repetition")
    if abs(seen.drift or 0) > whole and abs(seen.drift_per_minute or 0) > per_minute:
        slope = {"over_repetition": seen.drift, "per_minute": seen.drift_per_minute}
        yield _warning("W_DRIFT", f"{seen.drift:+.1%} over one repetition", slope, per_minute)
        return
    most = limit("W_DRIFT", "autocorrelation")
    told = [(one, place) for place, samples in enumerate(seconds) if (one := autocorrelation(samples)) is not None]
    strong = [(one, place) for one, place in told if one > most]
    if strong:
        worst = max(strong)[0]
        where = tuple(place for _, place in strong)
        text = f"latency wanders: neighbouring samples are alike (autocorrelation {worst:.2f}, limit {most:.1f})"
        yield Code("W_DRIFT", text, {"autocorrelation": worst}, most, False, where)


def autocorrelation(samples: Sequence[float]) -> float | None:
    """Correlation of each block of samples with the next one, by the blocks' medians less their own median.

    At most 50 blocks of at least 2; None below 20 blocks, or where the blocks scatter by less than 1 % (whatever their
    order, it moves no result). Of 50 blocks without any order one in 5,000 comes out above 0.5.
    """
    values = np.asarray(samples, float)
    count = min(BLOCKS, len(values) // FEWEST_IN_BLOCK)
    if count < 20:
        return None
    blocks = np.array([np.median(block) for block in np.array_split(values, count)])
    rest = blocks - np.median(blocks)
    if float(rest.std()) < limit("W_DRIFT", "scatter") * float(np.median(blocks)):
        return None
    return float((rest[1:] * rest[:-1]).sum() / (rest**2).sum())


def bimodal(seconds: list[list[float]]) -> Iterator[Code]:
    """More than a few samples far above the median, and close together: two speeds, not a tail."""
    beyond, most, width = (limit("W_BIMODAL", name) for name in ("beyond", "share", "width"))
    worst: tuple[float, float, int] | None = None
    for place, samples in enumerate(seconds):
        if len(samples) < 20:
            continue
        values = np.asarray(samples, float) / float(np.median(samples))
        slow = values[values > beyond]
        share = len(slow) / len(values)
        if share <= most:
            continue
        low, middle, high = np.quantile(slow, [0.1, 0.5, 0.9])
        if (high - low) / middle <= width and (worst is None or share > worst[0]):
            worst = (share, float(middle), place)
    if worst:
        share, middle, place = worst
        text = f"{share:.0%} of the samples take about {middle:.2f} times as long as the median"
        yield Code("W_BIMODAL", text, {"share": share, "times": middle}, most, RULES["W_BIMODAL"].voids, (place,))


def canary(medians_s: Sequence[float]) -> Code | None:
    """A model that was timed at the start, in the middle and at the end of a block: None where it stayed the same.

    Raises:
        ValueError: fewer than two medians, or one that is not above zero.
    """
    if len(medians_s) < 2 or min(medians_s) <= 0:
        raise ValueError("a canary needs two medians above zero")
    moved, most = max(medians_s) / min(medians_s) - 1, limit("E_CANARY", "moved")
    if moved <= most:
        return None
    text = f"the canary's median moved by {moved:.1%} (limit {most * 100:.0f} %)"
    return Code("E_CANARY", text, {"moved": moved, "medians_s": list(medians_s)}, most, RULES["E_CANARY"].voids)


def _warning(code: str, text: str, seen: dict[str, float | None], threshold: float) -> Code:
    return Code(code, text, dict(seen), threshold, RULES[code].voids)
