"""A comparison on a device: sessions run in the order of the schedule, and each is kept as soon as it is over.

A comparison that was killed goes on in its folder: the same seed gives the same order. The block that was cut short is
void and run again from its start, since the machine may be another by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.comparing import conditions
from edgecompress.comparing.loop import Block, Outcome, Rule, carry_out, moved
from edgecompress.comparing.record import (
    FILE,
    INTERRUPTED,
    SESSIONS,
    BlockRun,
    Comparison,
    Question,
    Session,
    Subject,
    load,
)
from edgecompress.errors import RecipeError, RecordError
from edgecompress.records import Measurement, now
from edgecompress.report.caveats import of_measurement
from edgecompress.session import Plan
from edgecompress.stats import Estimate

Say = Callable[[str], None]
# The subject and how to measure it; None is the canary.
Measure = Callable[[int | None, Plan], Measurement]
OF_A_RUNTIME = ("options", conditions.RUNTIME)
NOT_OF_THE_DEVICE = ("input", "shapes", "seconds", "seconds of audio", *OF_A_RUNTIME)
CANARY_SHARE = 4  # a canary takes a quarter of a session's samples: it must show 3 %, no less


def session_plan(plan: Plan) -> Plan:
    """One repetition: a session of a block is one fresh process."""
    return replace(plan, repetitions=1)


def canary_plan(plan: Plan) -> Plan:
    """A shorter session."""
    fewer = max(5, plan.min_samples // CANARY_SHARE)
    return replace(
        plan, repetitions=1, min_samples=min(fewer, plan.min_samples), min_seconds=plan.min_seconds / CANARY_SHARE
    )


class Campaign:
    """Runs blocks by ``measure`` and keeps them in ``folder``."""

    def __init__(
        self, folder: Path, question: Question, plan: Plan, measure: Measure, tool: str, say: Say | None = None
    ) -> None:
        """Begin, or take up what is in ``folder``.

        Raises:
            RecordError: the folder holds another comparison, or something else.
        """
        self.folder, self.plan, self.measure, self.say = folder, plan, measure, say or (lambda _: None)
        self.comparison = self._taken_up(Comparison(question=question, tool=tool))
        self.firsts: dict[int | None, Measurement] = {}

    def _taken_up(self, fresh: Comparison) -> Comparison:
        path = self.folder / FILE
        if not path.is_file():
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise RecordError(f"{self.folder} is not empty and has no {FILE}", hint="give a new folder")
            return fresh
        found = Comparison.read(path)
        if found.key != fresh.key:
            was, asked = found.question.model_dump(), fresh.question.model_dump()
            differ = ", ".join(name.replace("_", " ") for name in was if was[name] != asked[name])
            raise RecordError(f"{self.folder} holds another comparison: {differ} differ", hint="give a new folder")
        runs = [
            run if run.void or run.seconds else run.model_copy(update={"void": INTERRUPTED}) for run in found.blocks
        ]
        return found.model_copy(update={"blocks": runs})

    def carry_out(self, rule: Rule) -> Outcome:
        """Run what is still to be run, and tell what all of it says.

        Raises:
            RecipeError: what is compared turns out not to be comparable.
            DeviceError: a session failed; what was measured is kept, and the same call goes on from there.
        """
        done = load(self.folder, self.comparison)
        self.firsts = self._first_of_each()
        return carry_out(rule, len(self.comparison.question.variants), self._block, done)

    def _first_of_each(self) -> dict[int | None, Measurement]:
        """The first session of each subject: all later ones must be like it."""
        found: dict[int | None, Measurement] = {}
        for run in self.comparison.blocks:
            for session in run.sessions:
                path, subject = self.folder / SESSIONS / Path(session.file).name, self._subject(session.variant)
                if subject not in found and path.is_file():
                    found[subject] = Measurement.read(path)
        return found

    def _subject(self, variant: int | None) -> int | None:
        """What is run: without a canary of its own, the comparison has its first variant as canary."""
        return 0 if variant is None and self.comparison.question.canary is None else variant

    def _block(self, number: int, order: tuple[int, ...]) -> Block:
        began = time.monotonic()
        run = BlockRun(order=list(order), started=now())
        self._keep([*self.comparison.blocks, run])
        middle = len(order) // 2
        wanted: list[int | None] = [None, *order[:middle], None, *order[middle:], None]
        taken = []
        for place, variant in enumerate(wanted):
            name = "canary" if variant is None else self.comparison.question.variants[variant].name
            self.say(f"block {number + 1}, session {place + 1} of {len(wanted)}: {name}")
            plan = canary_plan(self.plan) if variant is None else session_plan(self.plan)
            measurement = self.measure(variant, plan)
            self._comparable(measurement, self._subject(variant))
            file = f"{number:04d}-{place:02d}-{'canary' if variant is None else f'variant-{variant}'}.json"
            measurement.write(self.folder / SESSIONS / file)
            taken.append(measurement)
            run = run.model_copy(update={"sessions": [*run.sessions, Session(variant=variant, file=file)]})
            self._keep([*self.comparison.blocks[:-1], run])
        samples = [tuple(ns for one in measurement.repetitions for ns in one.samples_ns) for measurement in taken]
        canary = tuple(one for one, variant in zip(samples, wanted, strict=True) if variant is None)
        void = _void(taken, canary)
        run = run.model_copy(update={"seconds": max(time.monotonic() - began, 1e-6), "void": void})
        self._keep([*self.comparison.blocks[:-1], run])
        if void:
            self.say(f"block {number + 1} is void: {void}")
        by_variant = {variant: one for one, variant in zip(samples, wanted, strict=True) if variant is not None}
        return Block(order, tuple(by_variant[variant] for variant in sorted(by_variant)), canary, run.seconds, void)

    def _comparable(self, measurement: Measurement, subject: int | None) -> None:
        """Refuse a session whose model changed, or that differs from earlier ones in more than the model."""
        same = self.firsts.setdefault(subject, measurement)
        found = conditions.differences(same, measurement)
        if same.artifact_sha256 != measurement.artifact_sha256:
            found.append("the file has changed since the comparison began")
        for other, first in self.firsts.items():
            # a canary of its own may be a small model with an input of its own
            passed_over = NOT_OF_THE_DEVICE if None in (subject, other) else ()
            if self.comparison.question.across_runtimes:
                passed_over = (*passed_over, *OF_A_RUNTIME)
            if other != subject:
                found += conditions.differences(first, measurement, passed_over)
        if found:
            raise RecipeError(
                f"{measurement.artifact} is not comparable with what ran before it: {'; '.join(dict.fromkeys(found))}",
                hint="compare what differs in the model alone; after a change of the device begin a new folder",
            )

    def _keep(self, runs: Sequence[BlockRun]) -> None:
        self.comparison = self.comparison.model_copy(update={"blocks": list(runs)})
        self.comparison.write(self.folder / FILE)


def _void(taken: Sequence[Measurement], canary: Sequence[Sequence[int]]) -> str:
    """Why a block does not count: a canary that moved, a measurement that its own facts make invalid, a reboot."""
    if not all(ns > 0 for one in taken for repetition in one.repetitions for ns in repetition.samples_ns):
        return "the device told samples that took no time"
    reasons = [moved(canary)]
    boots = {measurement.identity.get("boot_id") for measurement in taken} - {None}
    if len(boots) > 1:
        reasons.append("the device was started anew within the block")
    for measurement in taken:
        reasons += [
            f"{one.code}: {measurement.artifact}: {one.text}" for one in of_measurement(measurement) if one.invalid
        ]
    return "; ".join(dict.fromkeys(filter(None, reasons)))


def medians_s(outcome: Outcome) -> list[float | None]:
    """Each variant's median of the medians of its valid sessions, seconds."""
    valid = [block for block in outcome.blocks if not block.void]
    if not valid:
        return []
    return [
        float(np.median([np.median(one) for one in each])) / 1e9
        for each in zip(*(b.samples for b in valid), strict=True)
    ]


def as_data(comparison: Comparison, outcome: Outcome) -> dict[str, Any]:
    """What ``compare --json`` prints."""
    from edgecompress.comparing.estimate import METHOD, half_width, told, verdict

    variants = comparison.question.variants
    first = variants[0].name

    def one(variant: Subject, speed: Estimate) -> dict[str, Any]:
        known = speed.has_interval
        return {
            "variant": variant.name, "against": first, "verdict": verdict(speed), "speed": speed.value,
            "low": speed.low, "high": speed.high, "half_width_log": half_width(speed) if known else None,
            "text": told(variant.name, first, speed),
        }  # fmt: skip

    return {
        "device": comparison.question.device,
        "variants": [
            {"name": variant.name, "sha256": variant.sha256, "runtime": variant.runtime, "median_s": median}
            for variant, median in zip(variants, medians_s(outcome) or [None] * len(variants), strict=True)
        ],
        "blocks": len(outcome.blocks),
        "counted": outcome.valid,
        "void": [{"block": n + 1, "why": block.void} for n, block in enumerate(outcome.blocks) if block.void],
        "ended": outcome.ended,
        "method": METHOD,
        "results": [one(variant, speed) for variant, speed in zip(variants[1:], outcome.speeds, strict=False)],
        "plan": comparison.question.plan,
    }
