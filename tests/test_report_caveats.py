"""Warnings that raw samples and facts give rise to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress import report
from edgecompress.records import GoldenCheck, Measurement
from edgecompress.report.caveats import of_measurement
from tests import report_builder as made

QUIET = {**made.STATE, "cpu_ticks": {"user": 0, "idle": 0, "steal": 0}}


def measured(count: int = 3, seconds: float = 0.1, **changed: Any) -> Measurement:
    """A measurement of ``count`` repetitions, each with the ``changed`` fields."""
    rng = np.random.default_rng(0)
    repetitions = [made.repetition(seconds, rng, **changed) for _ in range(count)]
    return made.measurement("dense-x", made.RECIPES[0], "fp32", "pi4", repetitions)


def codes(measurement: Measurement) -> dict[str, bool]:
    """Code -> whether it voids the measurement."""
    return {caveat.code: caveat.invalid for caveat in of_measurement(measurement)}


def state(**changed: Any) -> dict[str, Any]:
    return {**made.STATE, **changed}


def test_a_quiet_board_with_enough_samples_warns_of_nothing():
    assert codes(measured()) == {}


def test_a_wrong_golden_output_voids_and_an_unchecked_one_warns():
    wrong = GoldenCheck(output="logits", max_abs=1.0, relative=0.4, cosine=0.6, passed=False)
    assert codes(measured(golden=[wrong])) == {"golden": True}
    assert codes(measured(golden=[])) == {"golden-unchecked": False}


def test_few_samples_and_few_processes_are_told():
    assert "few-samples" in codes(measured(count=1))
    assert "few-samples" in codes(measured(samples=10))


def test_scattered_samples_are_unstable():
    assert "unstable" in codes(measured(noise=0.4))


def test_processes_that_disagree_are_unstable_though_each_is_calm():
    rng = np.random.default_rng(0)
    repetitions = [made.repetition(seconds, rng) for seconds in (0.10, 0.12, 0.14)]
    one = made.measurement("dense-x", made.RECIPES[0], "fp32", "pi4", repetitions)
    assert any("medians of the repetitions" in caveat.text for caveat in of_measurement(one))


def test_latency_that_climbs_while_measuring_is_drift():
    climbing = [int(1e8 * (1 + 0.1 * place / 100)) for place in range(100)]
    assert "drift" in codes(measured(samples_ns=climbing))


def test_iterations_under_a_millisecond_are_told():
    assert "short" in codes(measured(seconds=0.0004))


@pytest.mark.parametrize(
    ("before", "after", "void"),
    [
        ("0x0", "0x50000", True),  # came on while measuring
        ("0x50000", "0x50000", False),  # on since boot: not this measurement's fault
        ("0x0", "0x4", True),  # throttled right now
        ("0x0", "nonsense", False),
    ],
)
def test_only_throttle_flags_that_come_on_void_a_measurement(before, after, void):
    found = codes(measured(facts_before=state(throttled=before), facts_after=state(throttled=after)))
    assert found.get("throttled", False) is void


@pytest.mark.parametrize(
    ("governor", "limits", "void"),
    [
        ("performance", {"cur": 1500000, "min": 600000, "max": 1800000}, True),
        ("ondemand", {"cur": 600000, "min": 600000, "max": 1800000}, False),  # idles between repetitions
        ("ondemand", {"cur": 600000, "min": 600000, "max": 1200000}, True),
    ],
)
def test_a_clock_that_falls_voids_where_it_should_have_held(governor, limits, void):
    before = state(governor={"policy0": governor})
    after = {**before, "frequency_khz": {"policy0": limits}}
    assert codes(measured(facts_before=before, facts_after=after)).get("clock-drop", False) is void


def test_another_governor_afterwards_voids():
    after = state(governor={"policy0": "powersave"})
    assert codes(measured(facts_after=after)) == {"clock-drop": True}


def test_a_hot_busy_or_virtual_device_is_told():
    hot = state(temperature_celsius={"zone0": 71.0}, load_1min=1.7)
    assert codes(measured(facts_before=hot)) == {"other-load": False, "hot-start": False}
    one = measured().model_copy(update={"identity": {**made.IDENTITY, "virtual": True}})
    assert codes(one) == {"virtual": False}


def test_ticks_that_our_threads_cannot_have_used_are_other_load():
    ours = {"user": 2000, "idle": 2000, "steal": 0}  # two of four CPUs: our two threads
    others = {"user": 2500, "idle": 1500, "steal": 0}
    assert codes(measured(facts_before=QUIET, facts_after={**QUIET, "cpu_ticks": ours})) == {}
    assert codes(measured(facts_before=QUIET, facts_after={**QUIET, "cpu_ticks": others})) == {"other-load": False}


def test_a_load_average_that_we_may_have_made_ourselves_is_not_told_where_ticks_are() -> None:
    before = {**QUIET, "load_1min": 1.9}
    after = {**before, "cpu_ticks": {"user": 2000, "idle": 2000, "steal": 0}}
    assert codes(measured(facts_before=before, facts_after=after)) == {}
    assert codes(measured(facts_before=state(load_1min=1.9))) == {"other-load": False}


def test_more_than_half_a_cpu_taken_by_others_is_told_apart() -> None:
    after = {**QUIET, "cpu_ticks": {"user": 2600, "idle": 1400, "steal": 0}}
    assert codes(measured(facts_before=QUIET, facts_after=after)) == {"busy": False}


def test_pages_that_went_to_swap_are_told():
    before, after = state(swapped_pages={"pswpin": 5, "pswpout": 5}), state(swapped_pages={"pswpin": 9, "pswpout": 5})
    assert codes(measured(facts_before=before, facts_after=after)) == {"swap": False}


def test_facts_of_any_shape_break_nothing():
    odd = {
        "governor": 3,
        "frequency_khz": [1],
        "throttled": None,
        "load_1min": "x",
        "cpu_ticks": "y",
        "absent": 4,
        "cores_online": "a-b",
    }
    assert codes(measured(facts_before=odd, facts_after={"throttled": {}})) == {"governor": False}


def void(folder: Path, pattern: str) -> None:
    """Let a throttle flag come on in the measurements that match."""
    for file in (folder / "measurements").glob(pattern):
        one = Measurement.read(file)
        raised = [part.model_copy(update={"facts_after": state(throttled="0x50005")}) for part in one.repetitions]
        one.model_copy(update={"repetitions": raised}).write(file)


def test_a_voided_dense_is_no_reference_and_not_on_the_front(tmp_path):
    made.build(tmp_path, made.RECIPES[:3])
    void(tmp_path, "dense-onnx-fp32-*-pi4-*")
    rows = [row for row in report.summary(tmp_path) if (row["precision"], row["device"]) == ("fp32", "pi4")]
    assert [row["speedup_over_dense"] for row in rows] == [None, None, None]
    assert rows[0]["pareto_front"] is False
    others = [row for row in report.summary(tmp_path) if row["device"] == "loopback" and row["recipe"] != "dense"]
    assert all(row["speedup_over_dense"] for row in others)


def test_a_voided_measurement_stays_in_the_table_and_out_of_every_comparison(tmp_path):
    made.build(tmp_path, made.RECIPES[:2])
    void(tmp_path, "zeros-30-onnx-fp32-*-pi4-*")
    report.write(tmp_path)
    row = next(
        row
        for row in report.summary(tmp_path)
        if (row["recipe"], row["precision"], row["device"]) == ("zeros-30", "fp32", "pi4")
    )
    assert (row["comparable"], row["warnings"]) == (False, "throttled under-voltage")
    assert (row["validity"], row["speedup_over_dense"]) == ("E_THROTTLE_FLAG E_UNDERVOLT", None)
    assert row["latency_median_ms"] > 1000
    assert "of 3 timings" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


def test_a_smoke_test_is_kept_out_of_every_comparison():
    smoke = measured().model_copy(update={"plan": {"threads": 2, "level": "smoke"}})
    assert codes(smoke) == {"smoke": True}
    assert codes(measured().model_copy(update={"plan": {"threads": 2, "level": "quick"}})) == {}
