"""How to measure: a plan and its levels, which are plans with names."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from bench_remote.phases import MAX_SAMPLES
from edgecompress.errors import RecipeError

SCENARIOS = ("single_stream", "paced_stream", "offline")
CUSTOM = "custom"
SMOKE = "smoke"
DEFAULT = "default"
LEVELS: dict[str, dict[str, Any]] = {
    SMOKE: {"repetitions": 1, "min_samples": 1, "min_seconds": 2.0, "max_seconds": 10.0, "timeout_s": 600.0},
    "quick": {"repetitions": 3, "min_samples": 64, "min_seconds": 5.0, "max_seconds": 30.0, "timeout_s": 900.0},
    DEFAULT: {"repetitions": 5, "min_samples": 64, "min_seconds": 20.0, "max_seconds": 60.0, "timeout_s": 1800.0},
    "publish": {
        "repetitions": 10, "min_samples": 1024, "min_seconds": 60.0, "max_seconds": 600.0, "timeout_s": 14_400.0,
        "cooldown_s": 600.0,
    },
}  # fmt: skip
BOUNDS = ("repetitions", "min_samples", "min_seconds", "max_seconds", "cooldown_s")
LIMITS: dict[str, tuple[float, float]] = {
    "threads": (1, 256), "repetitions": (1, 100), "warmup_s": (0, 600), "min_samples": (1, MAX_SAMPLES),
    "min_seconds": (0, 3600), "max_seconds": (0, 3600), "timeout_s": (0.1, 86_400), "busy_wait_s": (0, 3600),
    "batch": (1, 4096), "cooldown_s": (0, 3600),
}  # fmt: skip
OPTIONAL: dict[str, tuple[float, float]] = {
    "seconds": (1e-6, 3600), "hop_s": (1e-4, 3600), "ambient_celsius": (-60, 90),
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How to measure: ``repetitions`` fresh processes, each with warm-up and samples by the device's own clock.

    Sampling ends with ``min_samples`` over ``min_seconds``, or at ``max_seconds``. ``affinity`` pins to cores.
    ``seconds`` times another audio length than the golden input's, which is tiled or cropped (the golden check comes
    first all the same). ``timeout_s`` is for the whole job; ``busy_wait_s`` for another session's lock.

    ``scenario``: "single_stream"; "paced_stream", a run every ``hop_s`` seconds, latency counted from when it was due;
    "offline", ``batch`` inputs in one run. ``memory_pass`` and ``profile_operators`` are processes of their own after
    the timed ones. ``cooldown_s`` is waited before the next measurement on the same device; ``ambient_celsius`` is what
    a person read off. ``level`` is the name of the plan: ``Plan.of`` makes those that have one.
    """

    threads: int = 1
    repetitions: int = 3
    warmup_s: float = 0.5
    min_samples: int = 20
    min_seconds: float = 2.0
    max_seconds: float = 20.0
    timeout_s: float = 600.0
    seconds: float | None = None
    affinity: tuple[int, ...] = ()
    spinning: bool = True
    busy_wait_s: float = 60.0
    level: str = CUSTOM
    scenario: str = "single_stream"
    hop_s: float | None = None
    batch: int = 1
    memory_pass: bool = True
    profile_operators: bool = False
    cooldown_s: float = 0.0
    ambient_celsius: float | None = None

    def __post_init__(self) -> None:
        values = asdict(self)
        limits = LIMITS | {name: limit for name, limit in OPTIONAL.items() if values[name] is not None}
        faults = [f"{name} = {values[name]}" for name, (low, high) in limits.items() if not low <= values[name] <= high]
        if faults:
            raise RecipeError(f"a plan cannot have {', '.join(faults)}", hint="see edgecompress.session.Plan")
        if self.scenario not in SCENARIOS:
            raise RecipeError(f"no scenario is called {self.scenario!r}", hint=f"there are: {', '.join(SCENARIOS)}")
        if (self.hop_s is not None) != (self.scenario == "paced_stream"):
            hint = "give the seconds between two arrivals" if self.hop_s is None else "leave hop_s out"
            raise RecipeError("paced_stream needs hop_s, and nothing else has one", hint=hint)
        if self.batch > 1 and self.scenario != "offline":
            raise RecipeError(f"batch = {self.batch} in {self.scenario}", hint="batches are timed in offline")
        if self.level == "publish" and self.ambient_celsius is None:
            hint = "give ambient_celsius, the temperature of the room"
            raise RecipeError("what is published says how warm the room was", hint=hint)

    @classmethod
    def of(cls, level: str, **asked: Any) -> Plan:
        """The plan of a level, with what is asked (None: not asked) in the place of its own values.

        Where that is less than the level has, the plan is "custom"; a smoke plan stays one whatever it is asked.

        Raises:
            RecipeError: no such level, or an impossible number.
        """
        if level not in LEVELS:
            raise RecipeError(f"no level is called {level!r}", hint=f"there are: {', '.join(LEVELS)}")
        own = LEVELS[level]
        given = {name: value for name, value in asked.items() if value is not None}
        values = own | given
        if "max_seconds" not in given:
            values["max_seconds"] = max(values["max_seconds"], values["min_seconds"])
        elif "min_seconds" not in given:
            values["min_seconds"] = min(values["max_seconds"], values["min_seconds"])
        less = any(values[name] < own[name] for name in BOUNDS if name in own)
        return cls(**values, level=CUSTOM if less and level != SMOKE else level)

    @property
    def job(self) -> dict[str, Any]:
        """What the agent is told of it."""
        names = ("threads", "repetitions", "warmup_s", "min_samples", "min_seconds", "max_seconds", "busy_wait_s",
                 "scenario", "hop_s", "batch")  # fmt: skip
        passes = {"memory_pass": self.memory_pass, "operators": self.profile_operators}
        return {name: getattr(self, name) for name in names} | {
            "affinity": list(self.affinity),
            "options": {"spinning": self.spinning},
            "passes": [name for name, wanted in passes.items() if wanted],
        }


def cool_down(
    plan: Plan, say: Callable[[str], None] | None = None, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Wait as long as the plan has it before the next measurement on the same device."""
    if plan.cooldown_s > 0:
        if say is not None:
            say(f"cooling down for {plan.cooldown_s:g} s")
        sleep(plan.cooldown_s)
