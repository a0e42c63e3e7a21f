"""The loop of a comparison: block after block until the interval is narrow enough or the budget ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgecompress import validity
from edgecompress.comparing import schedule
from edgecompress.comparing.estimate import RESAMPLES, Seen, half_width, speeds
from edgecompress.errors import RecipeError
from edgecompress.stats import Estimate

MOST_BLOCKS = 200


@dataclass(frozen=True)
class Rule:
    """When to stop: ``half_width`` of the 95 % interval of the log ratio, or ``budget_s`` seconds spent in blocks."""

    half_width: float = 0.01
    budget_s: float = 600.0
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {"half_width": (0.0005, 1.0), "budget_s": (1.0, 7 * 86_400.0), "seed": (0, 2**63 - 1)}
        faults = [
            f"{name} = {getattr(self, name):g}"
            for name, (low, high) in limits.items()
            if not low <= getattr(self, name) <= high
        ]
        if faults:
            raise RecipeError(f"a comparison cannot have {', '.join(faults)}", hint="edgecompress compare --help")


@dataclass(frozen=True)
class Block:
    """One run of a block. ``void`` says why it does not count; samples are whole nanoseconds, by variant."""

    order: tuple[int, ...]
    samples: tuple[tuple[int, ...], ...]
    canary: tuple[tuple[int, ...], ...]
    seconds: float
    void: str = ""


@dataclass(frozen=True)
class Outcome:
    """All runs of blocks, the void ones too, what the valid ones say, and why there are no more."""

    blocks: tuple[Block, ...]
    speeds: tuple[Estimate, ...]
    ended: str  # "precise", "budget" or "most blocks"

    @property
    def valid(self) -> int:
        """How many blocks counted."""
        return self.speeds[0].n if self.speeds else 0


RunBlock = Callable[[int, tuple[int, ...]], Block]


def moved(canary: Sequence[Sequence[int]]) -> str:
    """Why a block is void by its canaries, or nothing: their medians differ by more than 3 %."""
    medians = [float(np.median(samples)) for samples in canary]
    code = validity.canary([median / 1e9 for median in medians])
    if code is None:
        return ""
    told = ", ".join(f"{median / 1e6:.3f}" for median in medians)
    return f"{code.code}: the canary moved by {code.seen['moved']:.1%} within the block ({told} ms)"


def carry_out(
    rule: Rule, variants: int, run: RunBlock, done: Sequence[Block] = (), resamples: int = RESAMPLES
) -> Outcome:
    """Run blocks after those already ``done`` until ``rule`` says stop.

    Args:
        rule: when that is, and the seed of the order.
        variants: how many there are.
        run: given the number of the run and the order, runs a block. A void one is run again in the same order.
        done: runs of this comparison up to now.
        resamples: of the bootstrap.
    """
    blocks = list(done)
    while True:
        valid = [Seen(block.order, block.samples) for block in blocks if not block.void]
        if len(valid) >= schedule.LOOKS[0] and schedule.is_look(len(valid)) and not blocks[-1].void:
            found = speeds(valid, resamples)
            if max(map(half_width, found)) <= rule.half_width:
                return Outcome(tuple(blocks), tuple(found), "precise")
        spent = sum(block.seconds for block in blocks)
        if blocks and (spent >= rule.budget_s or len(valid) >= MOST_BLOCKS):
            found = speeds(valid, resamples) if len(valid) > 1 else []
            return Outcome(tuple(blocks), tuple(found), "budget" if spent >= rule.budget_s else "most blocks")
        blocks.append(run(len(blocks), schedule.order(rule.seed, len(valid), variants)))
