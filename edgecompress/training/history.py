"""What a training was like: loss, rate and parts of every step, what was skipped; and the lines that tell it meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Point = tuple[int, float, float, dict[str, float]]  # step, loss, learning rate, parts of the loss
SAY_EVERY_S = 5.0
SMOOTHING = 0.95  # of the loss that is shown; about the last 20 steps


@dataclass
class History:
    """The course of a training; two of one course are equal, however long they took and wherever they were resumed.

    ``steps`` counts the optimiser's steps with those that were skipped (``skipped``: which) since the loss or the norm
    of the gradients was not finite, or there was nothing to learn from. ``seconds`` is time spent, ``audio_seconds``
    audio seen, ``resumed_at`` the step at which this process took over. ``optimizer_state`` holds, by parameter, what
    the optimiser remembers: another training may begin with it.
    """

    steps: int = 0
    losses: list[Point] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    audio_seconds: float = 0.0
    seconds: float = field(default=0.0, compare=False)
    resumed_at: int | None = field(default=None, compare=False)
    optimizer_state: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def skipped_steps(self) -> int:
        """How many steps changed nothing."""
        return len(self.skipped)

    def mean_loss(self, first: int | None = None, last: int | None = None) -> float | None:
        """The mean loss of the ``first`` or ``last`` so many steps; one step alone is noisy. None without any loss."""
        chosen = self.losses[:first] if first is not None else self.losses[-(last or 0) :]
        return sum(point[1] for point in chosen) / len(chosen) if chosen else None


class Progress:
    """A line every 5 s: how far, the loss and its parts (smoothed), audio seconds per second, time left."""

    def __init__(self, say: Callable[[str], None], steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.say, self.steps, self.clock = say, steps, clock
        self.said = clock()
        self.since: tuple[float, int, float] | None = None  # time, steps and audio at the first step of this process
        self.shown: dict[str, float] = {}

    def after(self, history: History) -> None:
        """Call after every step."""
        now = self.clock()
        if self.since is None:
            self.since = (now, history.steps, history.audio_seconds)
        if history.losses and history.losses[-1][0] == history.steps - 1:
            _, loss, _, parts = history.losses[-1]
            for name, value in {"loss": loss, **parts}.items():
                self.shown[name] = SMOOTHING * self.shown.get(name, value) + (1 - SMOOTHING) * value
        if now - self.said >= SAY_EVERY_S:
            self.said = now
            self.say(self.line(history, now))

    def line(self, history: History, now: float) -> str:
        """``step 120/1000, loss 0.532 (l1 0.41, cosine 0.12), 38.2 s audio/s, 2 min 10 s left``."""
        pieces = [f"step {history.steps}/{self.steps}"]
        if self.shown:
            parts = ", ".join(f"{name} {value:.4g}" for name, value in self.shown.items() if name != "loss")
            pieces.append(f"loss {self.shown['loss']:.4g}" + (f" ({parts})" if parts else ""))
        if history.skipped:
            pieces.append(f"{len(history.skipped)} skipped")
        began, steps, audio = self.since or (now, history.steps, history.audio_seconds)
        if now > began and history.steps > steps:
            pieces.append(f"{(history.audio_seconds - audio) / (now - began):.1f} s audio/s")
            left = (self.steps - history.steps) * (now - began) / (history.steps - steps)
            pieces.append(f"{duration(left)} left")
        return ", ".join(pieces)


def duration(seconds: float) -> str:
    """``45 s``, ``2 min 10 s``, ``3 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
