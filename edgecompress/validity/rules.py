"""Every code with its thresholds, and whether what it saw voids the measurement: the one table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Rule:
    """``word`` is how the report calls it. ``voids``: whether it keeps a measurement out of every comparison.

    ``noise``: it is about a machine that is not ours alone. There it voids only where it was seen in the timed phase
    itself, and never on a virtual machine, whose host is always someone else's.
    """

    word: str
    voids: bool
    limits: dict[str, float] = field(default_factory=dict)
    noise: bool = False


RULES: dict[str, Rule] = {
    # sbc-bench's 3 %: the measured clock, or the momentary one under a governor that holds it
    "E_CLOCK_DROP": Rule("clock-drop", True, {"kept": 0.97}, noise=True),
    "W_CLOCK_NOMINAL": Rule("clock-nominal", False, {"off": 0.02}),  # sbc-bench's 2 %
    # Raspberry Pi's bits: 0-3 now, 16-19 since boot, of which only those count that came on
    "E_THROTTLE_FLAG": Rule("throttled", True, {"now": 0xF, "since_boot": 0xF0000, "counts": 0}),
    "E_UNDERVOLT": Rule("under-voltage", True, {"now": 0x1, "since_boot": 0x10000, "volts": 4.63}),
    "E_TIME_IN_STATE": Rule("clock-drop", True, {"ticks": 0}),
    "E_CORES_LOST": Rule("cores-changed", True),
    "E_JETSON_OC": Rule("power-limit", True, {"events": 0, "cooling_steps": 0}),
    "E_GOVERNOR_CHANGED": Rule("clock-drop", True),
    "E_BUSY_START": Rule("other-load", True, {"load_per_cpu": 0.10, "busy_share": 0.10}, noise=True),
    # of one CPU: in the timed phase, beyond two ticks of 10 ms; and over the whole process, where only more than our
    # threads could use is seen
    "E_OTHER_LOAD": Rule(
        "other-load",
        True,
        {"share": 0.02, "stolen": 0.005, "resolution_s": 0.02, "whole_process": 0.05, "much": 0.50},
        noise=True,
    ),
    "E_SWAP": Rule("swap", True, {"pages": 0, "zram_bytes": 0}, noise=True),
    "E_MAJFAULT": Rule("page-faults", True, {"faults": 0}, noise=True),
    # a slope of a 1 s window, told per minute, says nothing: it must also show over one repetition
    "W_DRIFT": Rule(
        "drift", False, {"per_minute": 0.01, "over_repetition": 0.02, "autocorrelation": 0.5, "scatter": 0.01}
    ),
    "W_BIMODAL": Rule("bimodal", False, {"beyond": 1.3, "share": 0.05, "width": 0.3}),
    # pyperf's four warnings
    "W_UNSTABLE": Rule("unstable", False, {"variation": 0.10, "off_the_mean": 0.50, "between": 0.03, "short_s": 0.001}),
    "E_CANARY": Rule("canary", True, {"moved": 0.03}),
    "E_ACCURACY": Rule("golden", True),
    "E_CLOCKSTEP": Rule("clock-step", True, {"seconds": 0.01}),
    "E_TEMP_START": Rule("hot-start", True, {"celsius": 65.0}),
}


@dataclass(frozen=True)
class Code:
    """A rule that fired: what exactly was seen, in words and numbers, its threshold, and whether it voids.

    ``repetitions`` are those in which it was seen (from 0), empty where it is about all of them together.
    """

    code: str
    text: str
    seen: dict[str, Any]
    threshold: float | None
    voids: bool
    repetitions: tuple[int, ...] = ()
    word_: str = ""

    @property
    def word(self) -> str:
        """How the report calls it."""
        return self.word_ or RULES[self.code].word


def limit(code: str, name: str) -> float:
    """One threshold of the table."""
    return RULES[code].limits[name]
