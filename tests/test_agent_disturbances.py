"""What disturbs a measurement, read from folders that stand in for boards."""

from __future__ import annotations

import json
from pathlib import Path

from bench_remote import facts
from edgecompress.session import events
from tests import board_trees as trees


def test_a_pi_4_tells_its_flags_its_states_and_its_alarm(tmp_path: Path) -> None:
    told = facts.state(trees.pi4(tmp_path, "0x50005"))
    assert told["throttled"] == "0x50005"
    assert told["time_in_state"] == {"policy0": {"600000": 5000, "1500000": 70, "1800000": 900}}
    assert told["frequency_nominal_khz"] == {"policy0": 1800000}
    assert told["cooling"] == {"cooling_device0:cpufreq-cpu0": 0}
    assert told["under_voltage"] is False
    assert "does not tell its input" in told["absent"]["supply_volts"]
    assert told["absent"]["over_current"] == "no over-current counters: not a Jetson Orin"


def test_a_pi_5_tells_the_volts_at_its_input(tmp_path: Path) -> None:
    told = facts.state(trees.pi5(tmp_path, volts=4.61))
    assert told["supply_volts"] == 4.61
    assert told["cooling"] == {"cooling_device0:pwm-fan": 1}


def test_without_vcgencmd_a_pi_s_flags_come_from_the_firmware_s_file(tmp_path: Path) -> None:
    root = trees.pi5(tmp_path)
    (tmp_path / "usr/bin/vcgencmd").unlink()
    assert facts.state(root)["throttled"] == "0x50000"


def test_an_orin_tells_events_of_its_supply_its_power_mode_and_zram(tmp_path: Path) -> None:
    told = facts.state(trees.orin(tmp_path, events=15))
    assert told["over_current"] == {"oc1": 15, "oc2": 15, "oc3": 15}
    assert told["power_mode"] == 2
    assert told["zram_bytes"] == 4096 + 8192
    assert set(told["time_in_state"]) == {"policy0", "policy4"}


def test_an_rk3588_tells_each_of_its_clusters(tmp_path: Path) -> None:
    told = facts.state(trees.rk3588(tmp_path))
    assert told["frequency_nominal_khz"] == {"policy0": 1800000, "policy4": 2256000, "policy6": 2304000}
    assert told["cooling"] == {"cooling_device0:thermal-cpufreq-0": 0, "cooling_device3:fdab0000.npu": 0}
    assert told["absent"]["power_mode"] == "no nvpmodel: not a Jetson"


def test_an_x86_tells_its_preference_turbo_throttle_counts_and_quota(tmp_path: Path) -> None:
    told = facts.state(trees.x86(tmp_path))
    assert told["energy_preference"] == {"policy0": "balance_performance"}
    assert told["boost"] is True
    assert told["thermal_throttle"] == {"core": 7, "package": 9}
    assert told["pressure_us"] == {"cpu": 12345, "memory": 0, "io": 7}
    assert told["cgroup"] == {"version": 2, "cpu_quota": 1.5, "memory_limit_bytes": None, "throttled": 7}


def test_control_groups_of_the_first_version_tell_their_limits_too(tmp_path: Path) -> None:
    trees.put(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/box\n4:cpu,cpuacct:/box\n0::/\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/box/cpu.stat": "nr_periods 4\nnr_throttled 2\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "83886080\n",
        },
    )
    told = facts.state(str(tmp_path))["cgroup"]
    assert told == {"version": 1, "cpu_quota": 0.5, "memory_limit_bytes": 83886080, "throttled": 2}


def test_a_server_with_a_policy_a_core_tells_no_tables_and_why(tmp_path: Path) -> None:
    for number in range(17):
        trees.put(tmp_path, trees.policy(number, "performance", (1, 1, 1), {1: 1}))
    assert facts.state(str(tmp_path))["absent"]["time_in_state"].startswith("17 frequency policies")


def test_nonsense_in_any_file_is_a_reason_and_not_a_crash(tmp_path: Path) -> None:
    root = trees.x86(tmp_path)
    trees.orin(tmp_path)
    known = set(facts.state(root))
    for file in [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "vcgencmd"]:
        kept = file.read_text()
        file.write_text("\x00what\n\n")
        told = facts.state(root)
        assert set(told) - {"absent"} | set(told["absent"]) >= known - {"absent"}, file
        file.write_text(kept)


def test_this_machine_s_own_clocks_go_on_together() -> None:
    first, second = (facts.state()["clocks_ns"] for _ in range(2))
    passed = {name: second[name] - first[name] for name in first}
    assert passed["monotonic"] > 0
    assert set(passed) == {"monotonic", "boottime"}


def test_the_facts_of_every_board_fit_into_an_event(tmp_path: Path) -> None:
    for name in ("pi4", "pi5", "orin", "rk3588", "x86"):
        told = facts.state(getattr(trees, name)(tmp_path / name))
        line = json.dumps({"event": "facts", "when": "before", "facts": told}).encode()
        assert events.parse(line).facts == told  # type: ignore[union-attr]
