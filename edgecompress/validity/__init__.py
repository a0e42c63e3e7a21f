"""Whether a measurement may be believed: codes, each with what was seen, its threshold, and whether it voids.

A voided measurement is kept and shown, and enters no mean, ratio or correlation. Codes are computed from what is stored
whenever it is read, so a record that was made before a rule is judged by it too, as far as it tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from edgecompress import stats
from edgecompress.records import GoldenCheck, Measurement, Repetition
from edgecompress.validity import samples, state
from edgecompress.validity.rules import RULES as RULES
from edgecompress.validity.rules import Code as Code
from edgecompress.validity.rules import limit as limit
from edgecompress.validity.samples import canary as canary


def of_measurement(measurement: Measurement) -> list[Code]:
    """All codes of one measurement: of each rule what voids before what only warns."""
    found = [*_golden(measurement), *_timed(measurement), *_by_repetition(measurement), *_together(measurement)]
    if measurement.identity.get("virtual") is True:
        found = [replace(one, voids=False) if RULES[one.code].noise else one for one in found]
    return found


def voiding(measurement: Measurement) -> list[Code]:
    """Those codes that keep a measurement out of every comparison; empty for a good one."""
    return [code for code in of_measurement(measurement) if code.voids]


def _golden(measurement: Measurement) -> Iterator[Code]:
    wrong = [
        (check, place)
        for place, repetition in enumerate(measurement.repetitions)
        for check in repetition.golden
        if not check.passed
    ]
    if wrong:
        worst: GoldenCheck = max(wrong, key=lambda one: one[0].relative)[0]
        text = f"output {worst.output}: relative error {worst.relative:.2g}, cosine {worst.cosine:.4f}"
        seen = {"output": worst.output, "relative": worst.relative, "cosine": worst.cosine}
        where = tuple(dict.fromkeys(place for _, place in wrong))
        yield Code("E_ACCURACY", text, seen, None, RULES["E_ACCURACY"].voids, where)


def _timed(measurement: Measurement) -> Iterator[Code]:
    seconds = [[sample / 1e9 for sample in repetition.samples_ns] for repetition in measurement.repetitions]
    if any(seconds):
        spread = stats.spread(seconds)
        yield from samples.unstable(seconds, spread)
        yield from samples.drift(seconds, spread)
        yield from samples.bimodal(seconds)


def _by_repetition(measurement: Measurement) -> Iterator[Code]:
    """Each rule over all repetitions: told once, as it was first seen, by what voids if anything does."""
    seen: dict[str, list[Code]] = {}
    for place, repetition in enumerate(measurement.repetitions):
        for code in _of_repetition(measurement, repetition):
            seen.setdefault(code.code, []).append(replace(code, repetitions=(place,)))
    for codes in seen.values():
        first = next((code for code in codes if code.voids), codes[0])
        where = dict.fromkeys(place for code in codes for place in code.repetitions)
        yield replace(first, repetitions=tuple(where))


def _of_repetition(measurement: Measurement, repetition: Repetition) -> Iterator[Code]:
    yield from state.throttled(repetition)
    yield from state.under_voltage(repetition)
    yield from state.clock(repetition)
    yield from state.nominal(measurement, repetition)
    yield from state.time_in_state(repetition)
    yield from state.cores_lost(repetition)
    yield from state.governor_changed(repetition)
    yield from state.power_limit(repetition)
    yield from state.suspended(repetition)
    yield from state.swapped(repetition)
    yield from state.page_faults(repetition)


def _together(measurement: Measurement) -> Iterator[Code]:
    yield from state.other_load(measurement)
    if measurement.repetitions:
        facts = {**measurement.identity, **measurement.repetitions[0].facts_before}
        yield from state.busy_start(measurement, facts)
        yield from state.hot_start(measurement, facts)
