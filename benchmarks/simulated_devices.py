"""Devices that do not exist: their time passes in sessions, and what slows them is known.

A session draws samples around the variant's own latency, times how slow the device is then, times what this process
happened to get (layout, cache colours). Time passes between sessions too. Kinds of restlessness are those that boards and
shared machines show; ``truth`` is the ratio that a comparison ought to find.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgecompress.comparing.loop import Block, moved

SESSION_S = 3.0
SAMPLES = 40
LATENCY_NS = 10e6
OF_A_PROCESS = 0.005  # standard deviation of the log: from one fresh process to the next
OF_A_SAMPLE = 0.01
HORIZON = 4000  # sessions


def _quiet(rng: np.random.Generator) -> np.ndarray:
    return np.zeros(HORIZON)


def _drift(rng: np.random.Generator) -> np.ndarray:
    """Up to 6 % a minute either way for the first ten minutes, as a board that heats up; then it stays."""
    return float(rng.uniform(-0.06, 0.06)) / 60 * SESSION_S * np.minimum(np.arange(HORIZON), 600 / SESSION_S)


def _slow(rng: np.random.Generator) -> np.ndarray:
    """First-order autoregression: 3 % standard deviation, a memory of two minutes."""
    keep = np.exp(-SESSION_S / 120)
    state = np.empty(HORIZON)
    state[0] = rng.normal(0, 0.03)
    for index, shock in enumerate(rng.normal(0, 0.03 * np.sqrt(1 - keep**2), HORIZON - 1)):
        state[index + 1] = keep * state[index] + shock
    return state


def _step(rng: np.random.Generator) -> np.ndarray:
    """10 % slower or faster from some moment on."""
    return np.where(np.arange(HORIZON) >= rng.integers(5, 60), 0.1 * rng.choice([-1, 1]), 0.0)


def _bimodal(rng: np.random.Generator) -> np.ndarray:
    """Two clocks 12 % apart; it stays with one for a minute on average."""
    return 0.12 * (np.cumsum(rng.random(HORIZON) < SESSION_S / 60) % 2)


def _mixed(rng: np.random.Generator) -> np.ndarray:
    return np.asarray(_drift(rng) / 2 + _slow(rng) / 2 + _bimodal(rng) / 2)


KINDS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "quiet": _quiet, "drift": _drift, "slow noise": _slow, "spikes": _quiet, "step": _step, "bimodal clock": _bimodal,
    "uneven processes": _quiet, "mixed": _mixed,
}  # fmt: skip
SPIKY = ("spikes", "mixed")
UNEVEN = {"uneven processes": 0.012}


class SimulatedDevice:
    """One device of a kind; ``latencies`` are the variants' own, the first one's is 1."""

    def __init__(self, kind: str, seed: int, latencies: tuple[float, ...] = (1.0, 1.0)) -> None:
        self.rng = np.random.default_rng([seed, list(KINDS).index(kind)])
        self.kind, self.latencies, self.session_number = kind, latencies, 0
        self.slowness = KINDS[kind](self.rng)

    def session(self, variant: int, samples: int = SAMPLES) -> tuple[int, ...]:
        """Samples of one fresh process in nanoseconds."""
        slow = self.slowness[self.session_number % HORIZON] + self.rng.normal(0, UNEVEN.get(self.kind, OF_A_PROCESS))
        noise = self.rng.normal(slow, OF_A_SAMPLE, samples)
        if self.kind in SPIKY:
            often = 0.3 if self.rng.random() < 0.1 else 0.03
            noise = noise + (self.rng.random(samples) < often) * self.rng.exponential(0.7, samples)
        self.session_number += 1
        return tuple(int(value) for value in LATENCY_NS * self.latencies[variant] * np.exp(noise))

    def block(self, number: int, order: tuple[int, ...]) -> Block:
        """A block as the loop wants it, the first variant as its canary."""
        began = self.session_number
        canary = [self.session(0)]
        samples = {}
        for place, variant in enumerate(order):
            if place == len(order) // 2:
                canary.append(self.session(0))
            samples[variant] = self.session(variant)
        canary.append(self.session(0))
        taken = tuple(samples[variant] for variant in sorted(samples))
        return Block(order, taken, tuple(canary), (self.session_number - began) * SESSION_S, moved(canary))
