"""What ``bench`` tells of measurements: the few numbers that a person at a terminal wants."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgecompress.records import Measurement, Repetition

MIB = 2**20
OPERATORS = 15  # of the slowest, in the table
PERCENTILES = {"p90": 0.90, "p95": 0.95, "p99": 0.99}
Lines = list[tuple[str, object]]


def told(measurement: Measurement) -> None:
    """One measurement; the report says how sure its numbers are."""
    from edgecompress.cli import say

    lines = [*_what(measurement), *_times(measurement), *_phases(measurement), *_memory(measurement)]
    checks = [check for one in measurement.repetitions for check in one.golden]
    right = "right" if checks and all(check.passed for check in checks) else "none to compare with"
    lines += [("bytes sent", measurement.bytes_sent), ("golden output", right), *_validity(measurement)]
    say.table(("what", "value"), lines)
    _operators(measurement)


def _validity(measurement: Measurement) -> Lines:
    """Whether to believe it, and everything that speaks against it."""
    from edgecompress import validity

    codes = validity.of_measurement(measurement)
    void = [one.code for one in codes if one.voids]
    verdict = f"void by {', '.join(void)}: kept, and compared with nothing" if void else "valid"
    return [("validity", verdict), *((one.code, one.text) for one in codes)]


def told_lengths(measurements: list[Measurement]) -> None:
    """The same file at several lengths of audio, one row each."""
    from edgecompress import validity
    from edgecompress.cli import say

    rows = []
    for one in measurements:
        seconds = one.audio_seconds or 0.0
        latency = statistics.median(_samples(one)) / 1e9
        factor = f"{latency / seconds:.4f}" if seconds else "n/a"
        tails = [percentile(one, share) for share in PERCENTILES.values()]
        codes = ", ".join(told.code for told in validity.of_measurement(one))
        rows.append((f"{seconds:g}", f"{latency * 1e3:.3f}", *tails, factor, len(_samples(one)), _peak(one), codes))
    columns = ("audio, s", "median, ms", *(f"{name}, ms" for name in PERCENTILES), "real-time factor", "n", "peak, MiB")
    say.table((*columns, "against it"), rows, numbers=range(len(columns)))


def percentile(measurement: Measurement, share: float) -> str:
    """A tail in milliseconds, or how many samples it would need."""
    from edgecompress import stats

    found = stats.percentile(_samples(measurement), share)
    return f"n/a (needs {found.needed})" if found.value is None else f"{found.value / 1e6:.3f}"


def _samples(measurement: Measurement) -> list[int]:
    return [ns for one in measurement.repetitions for ns in one.samples_ns]


def _peak(measurement: Measurement) -> str:
    peaks = [one.peak_rss_bytes for one in measurement.repetitions]
    return f"{max(peaks) / MIB:.1f}"


def _what(measurement: Measurement) -> Lines:
    plan = measurement.plan
    shapes = measurement.input.get("shapes", {})
    level = str(plan.get("level", "custom"))
    return [
        ("device", measurement.device),
        ("runtime", f"{measurement.runtime} {measurement.runtime_version}, {plan.get('threads')} thread(s)"),
        ("input", ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())),
        ("level", f"{level} (not comparable)" if level == "smoke" else level),
        ("scenario", _scenario(measurement)),
    ]


def _scenario(measurement: Measurement) -> str:
    plan = measurement.plan
    name = str(plan.get("scenario", "single_stream"))
    if name == "paced_stream":
        return f"{name}, a run every {plan['hop_s']:g} s; latency from when each was due"
    return f"{name}, batches of {plan['batch']}" if name == "offline" else name


def _times(measurement: Measurement) -> Lines:
    samples, plan = _samples(measurement), measurement.plan
    median_s = statistics.median(samples) / 1e9
    count = f"n = {len(samples)}, {len(measurement.repetitions)} processes"
    lines: Lines = [("median latency", f"{median_s * 1e3:.3f} ms ({count})")]
    if measurement.audio_seconds:
        factor = f"{median_s / measurement.audio_seconds:.4f} on {measurement.audio_seconds:g} s"
        lines.append(("real-time factor", factor))
    if plan.get("scenario") == "offline":
        lines.append(("throughput", f"{plan['batch'] / median_s:.2f} inputs/s"))
    if plan.get("scenario") == "paced_stream":
        late = sum(ns > plan["hop_s"] * 1e9 for ns in samples)
        lines.append(
            ("deadline misses", f"{late} of {len(samples)} ({late / len(samples):.1%} ended after the next was due)")
        )
    for name, share in PERCENTILES.items():
        text = percentile(measurement, share)
        lines.append((name, text if text.startswith("n/a") else f"{text} ms"))
    return [*lines, ("fastest, slowest", f"{min(samples) / 1e6:.3f} ms, {max(samples) / 1e6:.3f} ms")]


def _phases(measurement: Measurement) -> Lines:
    """How it was loaded and warmed up, and which bound ended the sampling."""
    repetitions = measurement.repetitions
    lines: Lines = []
    cold = [one.first_load_s for one in repetitions if one.page_cache and one.page_cache.state == "cold"]
    first = [one.first_load_s for one in repetitions if one.first_load_s is not None]
    if first:
        known = len(cold) == len(repetitions)
        name = "cold load" if known else "first load (not proven cold)"
        lines.append((name, f"{statistics.median(first) * 1e3:.1f} ms"))
    lines.append(("warm load", f"{statistics.median(one.load_s for one in repetitions) * 1e3:.1f} ms"))
    lines.append(("first inference", f"{statistics.median(one.first_inference_s for one in repetitions) * 1e3:.3f} ms"))
    if any(one.warmup_ended for one in repetitions):
        lines.append(("warm-up ended by", _endings(one.warmup_ended for one in repetitions)))
    if any(one.steady for one in repetitions):
        lines.append(("sampling ended by", _endings(one.steady.ended for one in repetitions if one.steady)))
    slowed = [kept for one in repetitions if (kept := clock_kept(one)) is not None]
    if slowed:
        lines.append(("clock after / before", f"{min(slowed):.3f} (least of the processes)"))
    return lines


def _endings(endings: object) -> str:
    from collections import Counter

    counted = Counter(str(one) for one in endings)  # type: ignore[attr-defined]
    return ", ".join(name if len(counted) == 1 else f"{name} ({count})" for name, count in counted.items())


def clock_kept(repetition: Repetition) -> float | None:
    """The measured clock after the samples over that before them: the least of the cores; None where it is not known."""
    before = {one.core: one for one in repetition.clock_before}
    kept = [
        min(before[one.core].ns) / min(one.ns)
        for one in repetition.clock_after
        if one.core in before and before[one.core].iterations == one.iterations and min(one.ns)
    ]
    return min(kept, default=None)


def _memory(measurement: Measurement) -> Lines:
    lines: Lines = [("peak memory", f"{_peak(measurement)} MiB")]
    found = measurement.memory_pass
    if found is None:
        return lines
    if found.absent is not None:
        return [*lines, ("memory pass", f"absent: {found.absent}")]
    for name, title in (("baseline", "with the runtime alone"), ("loaded", "model loaded"), ("steady", "after runs")):
        kinds: dict[str, int] = getattr(found, name)
        parts = [f"{kinds[kind] / MIB:.1f} MiB {word}" for kind, word in KINDS if kind in kinds]
        lines.append((f"memory, {title}", ", ".join(parts)))
    return lines


KINDS = (("peak_rss_bytes", "peak"), ("pss_anonymous_bytes", "anonymous"), ("pss_file_bytes", "of files"))


def _operators(measurement: Measurement) -> None:
    """The slowest operators, by the median of their runs."""
    from edgecompress.cli import say

    found = measurement.operators
    if found is None:
        return
    if found.absent is not None:
        say.note(f"no profile of operators: {found.absent}")
        return
    medians = {(one.op, one.name): statistics.median(one.ns) for one in found.operators}
    whole = sum(medians.values()) or 1
    slowest = sorted(medians.items(), key=lambda item: -item[1])[:OPERATORS]
    print()
    rows = [(op, name, f"{ns / 1e6:.3f}", f"{ns / whole:.1%}") for (op, name), ns in slowest]
    say.table(("operator", "name", "ms", "share"), rows, numbers=(2, 3))
