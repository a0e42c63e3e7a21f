"""Meters that boards have themselves, read from folders that stand in for boards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench_remote import power
from edgecompress import energy
from edgecompress.traces import Trace
from tests import board_trees as trees


class Time:
    """A clock that goes on only when someone waits."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns

    def wait(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)


def only(root: str) -> power.Meter:
    found, _ = power.meters(root)
    assert len(found) == 1
    return found[0]


def test_a_laptop_s_counter_is_told_in_joules_and_its_cores_are_part_of_the_package(tmp_path: Path) -> None:
    meter = only(trees.x86(tmp_path))
    assert (meter.meter_class, meter.unit, meter.total) == ("cpu_counter", "J", ["intel-rapl:0:package-0"])
    assert meter.read() == {"intel-rapl:0:package-0": 5.0, "intel-rapl:0:0:core": 1.0}
    assert meter.wraps["intel-rapl:0:package-0"] == pytest.approx(262143.32885)


def test_an_orin_s_input_is_its_whole(tmp_path: Path) -> None:
    meter = only(trees.orin(tmp_path))
    assert (meter.meter_class, meter.total) == ("board_rail", ["VDD_IN"])
    assert meter.read() == pytest.approx({"VDD_IN": 5.9808, "VDD_CPU_GPU_CV": 1.9936, "VDD_SOC": 1.4952})


def test_a_nano_s_meter_is_found_under_iio(tmp_path: Path) -> None:
    meter = only(trees.jetson_nano(tmp_path))
    assert (meter.meter_class, meter.total) == ("board_rail", ["POM_5V_IN"])
    assert meter.read() == {"POM_5V_IN": 2.4, "POM_5V_GPU": 0.04, "POM_5V_CPU": 0.7}


def test_a_pi_5_s_rails_are_those_with_volts_and_amperes(tmp_path: Path) -> None:
    meter = only(trees.pi5(tmp_path))
    assert (meter.meter_class, sorted(meter.total)) == ("pmic_sum", ["3V3_SYS", "3V7_WL_SW", "VDD_CORE"])
    assert meter.read()["VDD_CORE"] == pytest.approx(1.35)


def test_a_board_without_meters_says_why_of_each_kind(tmp_path: Path) -> None:
    found, absent = power.meters(trees.pi4(tmp_path))
    assert found == []
    assert absent == {
        "rapl": "no energy counters under /sys/class/powercap",
        "ina3221": "no INA3221 under hwmon or iio",
        "pmic": "this board's power chip tells no rails",
    }


def test_counters_that_only_root_may_read_are_absent_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = trees.x86(tmp_path)

    def refuse(folder: str, name: str) -> int:
        if name == "energy_uj":
            raise PermissionError(13, os.strerror(13))
        return 1

    monkeypatch.setattr(power, "whole", refuse)  # whoever runs as root may read anything
    found, absent = power.meters(root)
    assert found == []
    assert absent["rapl"] == "permission denied: only root may read it"


def test_samples_of_a_counter_that_wraps_add_up(tmp_path: Path) -> None:
    root = trees.x86(tmp_path, core_uj=(262_143_328_850 - 1_000_000, 0))
    meter, time = only(root), Time()

    def wait(seconds: float) -> None:
        time.wait(seconds)
        trees.x86(tmp_path, core_uj=(2_000_000 * (time.ns // 500_000_000), 0))

    trace = Trace(**power.sample(meter, 2.0, 2.0, time, wait))
    assert trace.ns == [0, 500_000_000, 1_000_000_000, 1_500_000_000, 2_000_000_000]
    assert energy.total_joules(trace) == pytest.approx(1.0 + 8.0)


def test_a_meter_is_not_asked_more_often_than_it_can_tell(tmp_path: Path) -> None:
    time = Time()
    trace = Trace(**power.sample(only(trees.pi5(tmp_path)), 1.0, 1000.0, time, time.wait))
    assert len(trace.ns) == 11  # ten times a second
    assert energy.joules(trace)["VDD_CORE"] == pytest.approx(1.35)
