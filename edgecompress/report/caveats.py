"""What a measurement warns of, in the report's words: the codes of ``validity``, and what is no fault of the machine.

``invalid`` caveats (a clock that fell, a throttle flag that came on, a wrong golden output) keep a measurement out of
correlations, fronts and the headline. It stays in the table: nothing that was measured is deleted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgecompress import validity
from edgecompress.records import Measurement
from edgecompress.report import facts as known

FEWEST_SAMPLES = 64  # what MLPerf's rule needs for a p90
FEWEST_REPETITIONS = 3

TITLES = {
    "golden": "The device's output differs from torch's on the golden input",
    "golden-unchecked": "No golden output was checked on the device",
    "throttled": "A throttle flag came on while measuring",
    "under-voltage": "The supply was too weak while measuring",
    "power-limit": "Cooling or the supply took clock away while measuring",
    "clock-drop": "The clock, its limit or its governor changed while measuring",
    "cores-changed": "Cores came or went while measuring",
    "clock-step": "The device was suspended while measuring",
    "canary": "A model that should not have changed took another time at the end than at the start",
    "smoke": "A smoke test: it ran, and its numbers are compared with nothing",
    "few-samples": "Too few samples to say much",
    "unstable": "Unstable samples",
    "drift": "Latency drifts within a repetition",
    "bimodal": "Samples run at two speeds",
    "busy": "Other programs took more than half a CPU while measuring",
    "other-load": "Other programs were busy on the device",
    "hot-start": "The device was hot at the start",
    "governor": "The governor may change the clock while measuring",
    "short": "Iterations under 1 ms: the clock's own cost shows",
    "swap": "The device swapped while measuring",
    "page-faults": "The model's pages had to come from disk while timing",
    "clock-nominal": "The clock was not what its maker says",
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
    """A warning: its code (a key of ``TITLES``), what exactly was seen, and whether it voids the measurement.

    ``rule`` is the code of ``validity`` behind it, where there is one.
    """

    code: str
    text: str
    invalid: bool = False
    rule: str = ""


def of_measurement(measurement: Measurement) -> list[Caveat]:
    """All that one measurement warns of."""
    judged = [Caveat(one.word, one.text, one.voids, one.code) for one in validity.of_measurement(measurement)]
    others = (_unchecked, _few, _surroundings, _told, _level)
    return [*judged, *(caveat for look in others for caveat in look(measurement))]


def _level(measurement: Measurement) -> Iterator[Caveat]:
    if measurement.plan.get("level") == "smoke":
        yield Caveat("smoke", "one process, two seconds", True)


def _unchecked(measurement: Measurement) -> Iterator[Caveat]:
    if not any(repetition.golden for repetition in measurement.repetitions):
        yield Caveat("golden-unchecked", "a fast wrong kernel would not be noticed")


def _few(measurement: Measurement) -> Iterator[Caveat]:
    counts = [len(repetition.samples_ns) for repetition in measurement.repetitions]
    if sum(counts) < FEWEST_SAMPLES or len(counts) < FEWEST_REPETITIONS:
        wanted = f"wanted at least {FEWEST_SAMPLES} in {FEWEST_REPETITIONS}"
        yield Caveat("few-samples", f"{sum(counts)} samples in {len(counts)} fresh processes; {wanted}")


def _surroundings(measurement: Measurement) -> Iterator[Caveat]:
    facts = known.before(measurement)
    governor = known.fact(facts, "governor")
    if governor.value is not None and "performance" not in str(governor):
        yield Caveat("governor", f"governor {governor}")
    if facts.get("virtual") is True:
        yield Caveat("virtual", "compare its rows with each other only")


def _told(measurement: Measurement) -> Iterator[Caveat]:
    told = dict.fromkeys(text for repetition in measurement.repetitions for text in repetition.warnings)
    for text in told:
        yield Caveat("device", known.plain(text))
