"""Rows of what a device does meanwhile, and the process that takes them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bench_remote import telemetry
from bench_remote.reading import Absent
from tests import board_trees as trees


def test_a_row_of_a_pi_5_has_its_zones_clock_fan_and_flags(tmp_path: Path) -> None:
    row = telemetry.row(trees.pi5(tmp_path))
    assert row["celsius:thermal_zone0"] == 51.2
    assert (row["khz:policy0"], row["cooling:cooling_device0"], row["flags"]) == (2400000, 1, 0x50000)
    assert (row["busy_ticks"], row["stolen_ticks"]) == (1100, 0)


def test_a_zone_that_refuses_to_be_read_is_none_and_the_rest_is_there(tmp_path: Path) -> None:
    root = trees.orin(tmp_path)
    (tmp_path / "sys/class/thermal/thermal_zone8/temp").write_text("\n")
    row = telemetry.row(root)
    assert (row["celsius:thermal_zone0"], row["celsius:thermal_zone8"]) == (49.0, None)


def test_our_own_ticks_and_faults_are_read_from_this_machine() -> None:
    row = telemetry.row(pid=os.getpid())
    ticks = row["measured_ticks"]
    assert ticks is not None
    assert ticks >= 0
    assert telemetry.process("/", 2**22 + 1) == (None, None)


def test_rows_beyond_the_most_are_thinned_and_come_half_as_often(tmp_path: Path) -> None:
    root, waits = trees.pi4(tmp_path), iter([False] * 11 + [True])
    rows, period = telemetry.sampled(root, 0, 1.0, lambda seconds: next(waits), most=8)
    assert len(rows) < 8
    assert period == 4.0  # halved twice


def test_columns_are_named_once_and_missing_values_are_none() -> None:
    told = telemetry.table([{"ns": 1, "khz": 5}, {"ns": 2}], 5.0)
    assert (told["columns"], told["rows"]) == (["ns", "khz"], [[1, 5], [2, None]])


def test_the_sampler_is_kept_off_the_measured_cores() -> None:
    cores = sorted(os.sched_getaffinity(0))
    assert telemetry.spare_cores(cores, 1) == set()
    assert telemetry.spare_cores([], len(cores)) == set()
    assert telemetry.beside(os.getpid(), cores, 1) is None
    if len(cores) > 1:
        assert telemetry.spare_cores(cores[1:], 1) == {cores[0]}


def test_a_running_sampler_gives_its_rows_when_stopped_and_is_gone() -> None:
    sampler = telemetry.Sampler(os.getpid(), set(), 50.0)
    time.sleep(1.5)
    parts = sampler.stop()
    assert parts
    assert {"ns", "busy_ticks", "own_ticks", "measured_ticks"} <= set(parts[0]["columns"])
    assert sampler._process.returncode == 0


def test_a_sampler_that_died_costs_its_rows_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "PROGRAM", "raise SystemExit(3)")
    assert telemetry.Sampler(os.getpid(), set()).stop() == []


def test_how_busy_a_machine_is_is_counted_while_we_wait(tmp_path: Path) -> None:
    root = trees.pi4(tmp_path)
    share = telemetry.busy_share(2.0, root, lambda seconds: trees.put(tmp_path, trees.common(user=1050)))
    assert share == pytest.approx(50 / os.sysconf("SC_CLK_TCK") / 2.0)
    (tmp_path / "proc/stat").unlink()
    with pytest.raises(Absent):
        telemetry.busy_share(2.0, root, lambda seconds: None)
