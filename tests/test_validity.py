"""Each code fires on what it is about, and does not on what looks like it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgecompress import validity
from edgecompress.phases import ClockLoop, Machine, Steady
from edgecompress.records import GoldenCheck, Measurement
from edgecompress.traces import Telemetry
from tests import report_builder as made

SECOND = 1_000_000_000
COUNT = 3


def measured(identity: dict[str, Any] | None = None, plan: dict[str, Any] | None = None, **changed: Any) -> Measurement:
    """Three repetitions, each with the ``changed`` fields."""
    rng = np.random.default_rng(0)
    one = made.measurement(
        "dense-x", made.RECIPES[0], "fp32", "pi4", [made.repetition(0.1, rng, **changed) for _ in range(COUNT)]
    )
    return one.model_copy(
        update={"identity": {**one.identity, **(identity or {})}, "plan": {**one.plan, **(plan or {})}}
    )


def voids(measurement: Measurement) -> dict[str, bool]:
    """Code -> whether it voids."""
    return {code.code: code.voids for code in validity.of_measurement(measurement)}


def between(before: dict[str, Any], after: dict[str, Any], **more: Any) -> dict[str, bool]:
    """Codes of facts that changed from ``before`` to ``after``."""
    return voids(measured(facts_before={**made.STATE, **before}, facts_after={**made.STATE, **before, **after}, **more))


def steady(cpu_s: float = 10.0, busy: int = 1000, stolen: int = 0, faults: int = 0, pages: int = 0) -> Steady:
    """Ten seconds of one busy core; ticks of 10 ms."""
    return Steady(
        ended="enough",
        started_ns=0,
        ended_ns=10 * SECOND,
        major_faults=faults,
        cpu_s=cpu_s,
        machine_before=Machine(busy_ticks=0, stolen_ticks=0, swapped_pages=0, tick_hz=100),
        machine_after=Machine(busy_ticks=busy, stolen_ticks=stolen, swapped_pages=pages, tick_hz=100),
    )


def telemetry(**columns: list[float]) -> list[Telemetry]:
    """A row a second of the columns named (``_`` stands for ``:``)."""
    length = len(next(iter(columns.values())))
    names = ["ns", *(name.replace("__", ":") for name in columns)]
    rows = [[float(place * SECOND), *(column[place] for column in columns.values())] for place in range(length)]
    return [Telemetry(hz=1.0, tick_hz=100, columns=names, rows=rows)]


def loops(ns: int) -> list[ClockLoop]:
    return [ClockLoop(core=0, iterations=1_000_000, ns=[ns, ns + 500_000])]


def test_a_quiet_board_has_no_codes():
    assert voids(measured(steady=steady(), clock_before=loops(20_000_000), clock_after=loops(20_100_000))) == {}


@pytest.mark.parametrize(
    ("code", "before", "after", "fires"),
    [
        ("E_THROTTLE_FLAG", {"throttled": "0x0"}, {"throttled": "0x40000"}, True),
        ("E_THROTTLE_FLAG", {"throttled": "0x40000"}, {"throttled": "0x40000"}, False),
        ("E_THROTTLE_FLAG", {"thermal_throttle": {"core": 3}}, {"thermal_throttle": {"core": 4}}, True),
        ("E_THROTTLE_FLAG", {"thermal_throttle": {"core": 3}}, {"thermal_throttle": {"core": 3}}, False),
        ("E_UNDERVOLT", {"throttled": "0x0"}, {"throttled": "0x10000"}, True),
        ("E_UNDERVOLT", {"throttled": "0x0"}, {"throttled": "0x40000"}, False),
        ("E_UNDERVOLT", {"supply_volts": 5.06}, {"supply_volts": 4.6}, True),
        ("E_UNDERVOLT", {"supply_volts": 5.06}, {"supply_volts": 4.8}, False),
        ("E_UNDERVOLT", {"under_voltage": False}, {"under_voltage": True}, True),
        ("E_CORES_LOST", {"cores_online": "0-3"}, {"cores_online": "0-2"}, True),
        ("E_CORES_LOST", {"cores_online": "0-3"}, {"cores_online": "0-3"}, False),
        ("E_JETSON_OC", {"over_current": {"oc3": 37}}, {"over_current": {"oc3": 38}}, True),
        ("E_JETSON_OC", {"over_current": {"oc3": 37}}, {"over_current": {"oc3": 37}}, False),
        ("E_JETSON_OC", {"cooling": {"d0:cpufreq-cpu0": 0}}, {"cooling": {"d0:cpufreq-cpu0": 2}}, True),
        ("E_JETSON_OC", {"cooling": {"d0:pwm-fan": 0}}, {"cooling": {"d0:pwm-fan": 2}}, False),
        ("E_GOVERNOR_CHANGED", {}, {"governor": {"policy0": "powersave"}}, True),
        ("E_GOVERNOR_CHANGED", {"power_mode": 2}, {"power_mode": 0}, True),
        ("E_GOVERNOR_CHANGED", {"energy_preference": {"policy0": "power"}}, {}, False),
        ("E_CLOCKSTEP", {"clocks_ns": {"monotonic": 0, "boottime": 0}},
         {"clocks_ns": {"monotonic": SECOND, "boottime": 9 * SECOND}}, True),
        ("E_CLOCKSTEP", {"clocks_ns": {"monotonic": 0, "boottime": 0}},
         {"clocks_ns": {"monotonic": SECOND, "boottime": SECOND + 1000}}, False),
        ("E_TIME_IN_STATE", {"time_in_state": {"policy0": {"600000": 5, "1800000": 10}}},
         {"time_in_state": {"policy0": {"600000": 9, "1800000": 900}}}, True),
        ("E_TIME_IN_STATE", {"time_in_state": {"policy0": {"600000": 5, "1800000": 10}}},
         {"time_in_state": {"policy0": {"600000": 5, "1800000": 900}}}, False),
    ],
)  # fmt: skip
def test_what_changed_between_before_and_after_voids(code, before, after, fires):
    found = between(before, after)
    assert (code in found) is fires
    assert all(found.values())


def test_time_below_the_limit_is_no_fault_of_a_governor_that_saves():
    before = {"governor": {"policy0": "ondemand"}, "time_in_state": {"policy0": {"600000": 5}}}
    assert between(before, {"time_in_state": {"policy0": {"600000": 900}}}) == {}


def test_a_clock_loop_that_slowed_voids_on_a_board_and_warns_on_a_virtual_machine():
    slowed = {"clock_before": loops(20_000_000), "clock_after": loops(21_000_000)}
    assert voids(measured(**slowed)) == {"E_CLOCK_DROP": True}
    assert voids(measured(identity={"virtual": True}, **slowed)) == {"E_CLOCK_DROP": False}


def test_a_clock_that_is_not_its_maker_s_is_told_of_the_measured_cores_only():
    facts = {**made.STATE, "frequency_nominal_khz": {"policy0": 1800000, "policy4": 2400000}}
    rows = telemetry(khz__policy0=[1800000.0] * 3, khz__policy4=[2100000.0] * 3)
    held = {"facts_before": facts, "facts_after": facts, "telemetry": rows}
    assert voids(measured(plan={"affinity": [5, 6]}, **held)) == {"W_CLOCK_NOMINAL": False}
    assert voids(measured(plan={"affinity": [0, 1]}, **held)) == {}


def test_a_flag_that_was_up_only_while_timing_is_seen_by_telemetry():
    rows = telemetry(flags=[0.0, 4.0, 0.0])
    assert voids(measured(telemetry=rows)) == {"E_THROTTLE_FLAG": True}
    assert voids(measured(telemetry=telemetry(flags=[0.0, 0.0, 0.0]))) == {}


@pytest.mark.parametrize(
    ("timed", "found"),
    [
        (steady(busy=1015), {}),  # 1.5 % of a core
        (steady(busy=1040), {"E_OTHER_LOAD": True}),
        (steady(busy=1010, stolen=10), {"E_OTHER_LOAD": True}),  # 1 % to the host
        (steady(faults=1), {"E_MAJFAULT": True}),
        (steady(pages=8), {"E_SWAP": True}),
    ],
)
def test_what_others_do_while_we_time_voids(timed, found):
    assert voids(measured(steady=timed)) == found


def test_the_sampler_s_own_time_is_not_another_s():
    rows = telemetry(own_ticks=[0.0, 20.0, 40.0], busy_ticks=[0.0, 0.0, 0.0])
    assert voids(measured(steady=steady(busy=1040), telemetry=rows)) == {}


def test_without_edges_telemetry_tells_who_used_the_processor():
    ours = {"measured_ticks": [0.0, 100.0, 200.0], "own_ticks": [0.0, 1.0, 2.0], "stolen_ticks": [0.0] * 3}
    assert voids(measured(telemetry=telemetry(busy_ticks=[0.0, 101.0, 202.0], **ours))) == {}
    busy = validity.of_measurement(measured(telemetry=telemetry(busy_ticks=[0.0, 200.0, 400.0], **ours)))
    assert [(code.code, code.word, code.repetitions) for code in busy] == [("E_OTHER_LOAD", "busy", (0, 1, 2))]


def test_a_machine_that_was_in_use_before_we_began_voids():
    assert between({"busy_share": 0.4}, {}) == {"E_BUSY_START": True}
    assert between({"busy_share": 0.05, "load_1min": 3.0}, {}) == {}


def test_a_hot_start_voids_where_a_cool_one_was_asked_for():
    hot = {**made.STATE, "temperature_celsius": {"zone0": 71.0}}
    assert voids(measured(facts_before=hot)) == {"E_TEMP_START": False}
    assert voids(measured(facts_before=hot, plan={"thermal": "burst"})) == {"E_TEMP_START": True}
    assert voids(measured(plan={"thermal": "burst"})) == {}


def test_a_wrong_answer_voids():
    wrong = GoldenCheck(output="y", max_abs=1.0, relative=0.4, cosine=0.6, passed=False)
    assert voids(measured(golden=[wrong])) == {"E_ACCURACY": True}


def test_samples_that_wander_drift_though_they_end_where_they_began():
    wave = [int(1e8 * (1 + 0.05 * np.sin(place / 16))) for place in range(200)]
    noise = np.random.default_rng(1).normal(1, 0.05, 200)
    assert voids(measured(samples_ns=wave)) == {"W_DRIFT": False}
    assert voids(measured(samples_ns=[int(1e8 * one) for one in noise])) == {}


def test_two_speeds_are_told_apart_from_a_long_tail():
    rng = np.random.default_rng(2)
    two = [int(1e8 * (1.45 if one < 0.2 else 1.0)) for one in rng.random(200)]
    tail = [int(1e8 * (1 + (rng.random() * 3 if one < 0.1 else 0))) for one in rng.random(200)]
    assert "W_BIMODAL" in voids(measured(samples_ns=two))
    assert "W_BIMODAL" not in voids(measured(samples_ns=tail))


def test_short_or_scattered_samples_are_unstable():
    assert voids(measured(samples_ns=[500_000] * 100)) == {"W_UNSTABLE": False}
    assert voids(measured(samples_ns=[100_000_000] * 100)) == {}


def test_a_canary_that_moved_voids_its_block():
    moved = validity.canary([1.0, 1.01, 1.04])
    assert moved is not None
    assert (moved.code, moved.voids, moved.threshold) == ("E_CANARY", True, 0.03)
    assert validity.canary([1.0, 1.01, 0.99]) is None
    with pytest.raises(ValueError, match="two medians"):
        validity.canary([1.0])


def test_a_code_tells_numbers_threshold_and_repetitions():
    code = validity.voiding(measured(clock_before=loops(20_000_000), clock_after=loops(25_000_000)))[0]
    assert code.seen == {"kept": pytest.approx(0.8)}
    assert (code.threshold, code.repetitions, code.word) == (0.97, (0, 1, 2), "clock-drop")


def test_every_word_has_a_title_in_the_report():
    from edgecompress.report.caveats import TITLES

    assert {rule.word for rule in validity.RULES.values()} <= set(TITLES)
