"""What the raw samples and facts warn of; every rule with its threshold, none of them silent.

``invalid`` caveats (a clock that fell, a throttle flag that came on, a wrong golden output) keep a measurement out of
correlations, fronts and the headline. It stays in the table: nothing that was measured is deleted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgecompress import stats
from edgecompress.records import Measurement, Repetition
from edgecompress.report import facts as known

COEFFICIENT_OF_VARIATION = 0.10  # pyperf's rule for "unstable"
OFF_THE_MEAN = 0.50  # pyperf's rule for the lowest and highest sample
BETWEEN_REPETITIONS = 0.03
DRIFT_PER_MINUTE = 0.01
DRIFT = 0.02  # and over one repetition: a slope of a 1 s window, told per minute, says nothing
FEWEST_SAMPLES = 64  # what MLPerf's rule needs for a p90
FEWEST_REPETITIONS = 3
CLOCK_KEPT = 0.97  # sbc-bench's rule
HOT_CELSIUS = 65.0
LOAD_PER_CPU = 0.10
OTHERS = 0.05  # of one CPU, beyond all that our own threads could have used
OTHERS_MUCH = 0.50  # from here on the page's first sentence tells of it
SHORT_S = 0.001

TITLES = {
    "golden": "The device's output differs from torch's on the golden input",
    "golden-unchecked": "No golden output was checked on the device",
    "throttled": "A throttle flag came on while measuring",
    "clock-drop": "The clock, its limit or its governor changed while measuring",
    "smoke": "A smoke test: it ran, and its numbers are compared with nothing",
    "few-samples": "Too few samples to say much",
    "unstable": "Unstable samples",
    "drift": "Latency drifts within a repetition",
    "busy": "Other programs took more than half a CPU while measuring",
    "other-load": "Other programs were busy on the device",
    "hot-start": "The device was hot at the start",
    "governor": "The governor may change the clock while measuring",
    "short": "Iterations under 1 ms: the clock's own cost shows",
    "swap": "The device swapped while measuring",
    "virtual": "A virtual machine: its times are no board's",
    "device": "The device warned",
    "zeros": "Zeros without a smaller network",
    "length": "Speed-up across different input lengths",
    "random": "Random weights",
    "twice": "A recipe was made more than once",
    "unreadable": "Files that could not be read",
    "skipped": "Clips that were skipped",
    "heard": "Scored on recordings whose sound the model was trained on",
    "torch-score": "Scores from torch shown for an exported model",
}


@dataclass(frozen=True)
class Caveat:
    """A warning: its code (a key of ``TITLES``), what exactly was seen, and whether it voids the measurement."""

    code: str
    text: str
    invalid: bool = False


def of_measurement(measurement: Measurement) -> list[Caveat]:
    """All that one measurement warns of."""
    return [
        *_golden(measurement),
        *_samples(measurement),
        *_clock(measurement),
        *_surroundings(measurement),
        *_told(measurement),
        *_level(measurement),
    ]


def _level(measurement: Measurement) -> Iterator[Caveat]:
    if measurement.plan.get("level") == "smoke":
        yield Caveat("smoke", "one process, two seconds", True)


def _golden(measurement: Measurement) -> Iterator[Caveat]:
    checks = [check for repetition in measurement.repetitions for check in repetition.golden]
    wrong = [check for check in checks if not check.passed]
    if wrong:
        worst = max(wrong, key=lambda check: check.relative)
        yield Caveat(
            "golden", f"output {worst.output}: relative error {worst.relative:.2g}, cosine {worst.cosine:.4f}", True
        )
    elif not checks:
        yield Caveat("golden-unchecked", "a fast wrong kernel would not be noticed")


def _samples(measurement: Measurement) -> Iterator[Caveat]:
    seconds = [[sample / 1e9 for sample in repetition.samples_ns] for repetition in measurement.repetitions]
    total = sum(map(len, seconds))
    if total < FEWEST_SAMPLES or len(seconds) < FEWEST_REPETITIONS:
        wanted = f"wanted at least {FEWEST_SAMPLES} in {FEWEST_REPETITIONS}"
        yield Caveat("few-samples", f"{total} samples in {len(seconds)} fresh processes; {wanted}")
    if not total:
        return
    seen = stats.spread(seconds)
    if seen.coefficient_of_variation >= COEFFICIENT_OF_VARIATION:
        yield Caveat("unstable", f"coefficient of variation {seen.coefficient_of_variation:.0%} (limit 10 %)")
    if seen.highest > 1 + OFF_THE_MEAN or seen.lowest < 1 - OFF_THE_MEAN:
        yield Caveat("unstable", f"samples reach from {seen.lowest:.2f} to {seen.highest:.2f} times the mean")
    if seen.between_repetitions is not None and seen.between_repetitions > BETWEEN_REPETITIONS:
        yield Caveat("unstable", f"medians of the repetitions vary by {seen.between_repetitions:.1%} (limit 3 %)")
    if abs(seen.drift or 0) > DRIFT and abs(seen.drift_per_minute or 0) > DRIFT_PER_MINUTE:
        yield Caveat("drift", f"{seen.drift:+.1%} over one repetition")
    if min(sample for samples in seconds for sample in samples) < SHORT_S:
        yield Caveat("short", "samples under 1 ms")


def _clock(measurement: Measurement) -> Iterator[Caveat]:
    for repetition in measurement.repetitions:
        raised = _new_flags(repetition)
        if raised:
            yield Caveat("throttled", raised, True)
            return
    for repetition in measurement.repetitions:
        fallen = _changed_clock(repetition)
        if fallen:
            yield Caveat("clock-drop", fallen, True)
            return


def flags(value: Any) -> int | None:
    """Throttle flags as bits: from a number or from text such as ``0x50000``."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        return int(str(value).rpartition("=")[2].strip(), 0)
    except ValueError:
        return None


def _new_flags(repetition: Repetition) -> str:
    """Bits 0-3 say now, bits 16-19 say since boot: of the latter only what came on between before and after counts."""
    before, after = flags(repetition.facts_before.get("throttled")), flags(repetition.facts_after.get("throttled"))
    if before is None or after is None:
        return ""
    raised = (after & ~before) | (after & 0xF)
    return f"flags {before:#x} before, {after:#x} after" if raised else ""


def _changed_clock(repetition: Repetition) -> str:
    """A lower limit or another governor always counts; a lower momentary clock only where the governor holds it."""
    before, after = repetition.facts_before, repetition.facts_after
    for name in ("governor", "cores_online"):
        if before.get(name) and after.get(name) and before[name] != after[name]:
            return f"{name.replace('_', ' ')}: {known.plain(before[name])} before, {known.plain(after[name])} after"
    held = "performance" in known.plain(before.get("governor"))
    policies = [facts.get("frequency_khz") for facts in (before, after)]
    first, second = (one if isinstance(one, dict) else {} for one in policies)
    for policy in sorted(first.keys() & second.keys()):
        was, now = known.numbers(first[policy]), known.numbers(second[policy])
        for kind in ("max", "cur") if held else ("max",):
            if kind in was and kind in now and now[kind] < CLOCK_KEPT * was[kind]:
                return f"{policy}: {kind} {was[kind] / 1e6:.2f} GHz before, {now[kind] / 1e6:.2f} GHz after"
    return ""


def _surroundings(measurement: Measurement) -> Iterator[Caveat]:
    facts = known.before(measurement)
    yield from _load(measurement, facts)
    if any(_swapped(repetition) for repetition in measurement.repetitions):
        yield Caveat("swap", "pages went to or came from swap between before and after")
    hottest = max(known.numbers(facts.get("temperature_celsius")).values(), default=None)
    if hottest is not None and hottest >= HOT_CELSIUS:
        yield Caveat("hot-start", f"{hottest:.0f} °C before the first repetition (limit {HOT_CELSIUS:.0f} °C)")
    governor = known.fact(facts, "governor")
    if governor.value is not None and "performance" not in str(governor):
        yield Caveat("governor", f"governor {governor}")
    if facts.get("virtual") is True:
        yield Caveat("virtual", "compare its rows with each other only")


def _load(measurement: Measurement, facts: dict[str, Any]) -> Iterator[Caveat]:
    """What others took while we measured. The load average only where ticks are unknown: it remembers our own last
    measurement for a minute.
    """
    told = [_others(repetition, measurement) for repetition in measurement.repetitions]
    shares = [share for share in told if share is not None]
    if shares:
        busy = max(shares)
        text = f"at least {busy:.0%} of a CPU went to other programs or to the host"
        if busy > OTHERS_MUCH:
            yield Caveat("busy", text)
        elif busy > OTHERS:
            yield Caveat("other-load", text)
        return
    load, cpus = facts.get("load_1min"), known.cpu_count(facts)
    if isinstance(load, float) and cpus and load > LOAD_PER_CPU * cpus:
        yield Caveat("other-load", f"1-minute load {load:.2f} on {cpus} CPUs before the first repetition")


def _others(repetition: Repetition, measurement: Measurement) -> float | None:
    """CPUs that others surely used: all busy and stolen ticks, less all that our threads could have used.

    None where the device did not tell its ticks.
    """
    was, now = (known.numbers(facts.get("cpu_ticks")) for facts in (repetition.facts_before, repetition.facts_after))
    cpus = known.cpu_count(repetition.facts_before)
    spent = {kind: now[kind] - was[kind] for kind in was.keys() & now.keys()}
    wall = sum(spent.values()) / cpus if cpus else 0.0
    if wall <= 0:
        return None
    busy = sum(ticks for kind, ticks in spent.items() if kind not in ("idle", "iowait"))
    ours = known.threads(measurement).value
    return max(0.0, busy / wall - (ours if isinstance(ours, int) and ours > 0 else cpus or 1))


def _swapped(repetition: Repetition) -> bool:
    was, now = (
        known.numbers(facts.get("swapped_pages")) for facts in (repetition.facts_before, repetition.facts_after)
    )
    return any(now[kind] > was[kind] for kind in was.keys() & now.keys())


def _told(measurement: Measurement) -> Iterator[Caveat]:
    told = dict.fromkeys(text for repetition in measurement.repetitions for text in repetition.warnings)
    for text in told:
        yield Caveat("device", known.plain(text))
