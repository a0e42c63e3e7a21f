"""What a device says about itself, read from folders that stand in for boards."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench_remote import facts


def board(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root)


@pytest.fixture
def pi(tmp_path: Path) -> str:
    """As a Raspberry Pi 4 shows itself under /proc and /sys."""
    policy = "sys/devices/system/cpu/cpufreq/policy0"
    root = board(
        tmp_path,
        {
            "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
            "proc/device-tree/compatible": "raspberrypi,4-model-b\0brcm,bcm2711\0",
            "proc/cpuinfo": "Features : fp asimd evtstrm crc32 cpuid\nCPU implementer : 0x41\nCPU part : 0xd08\n" * 4,
            "proc/meminfo": "MemTotal: 3882676 kB\nMemAvailable: 3000000 kB\n",
            "proc/loadavg": "0.05 0.10 0.09 1/120 999\n",
            "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n',
            f"{policy}/scaling_governor": "ondemand\n",
            f"{policy}/scaling_cur_freq": "600000\n",
            f"{policy}/scaling_min_freq": "600000\n",
            f"{policy}/scaling_max_freq": "1800000\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "48312\n",
            "usr/bin/vcgencmd": "#!/bin/sh\necho throttled=0x50000\n",
        },
    )
    (tmp_path / "usr/bin/vcgencmd").chmod(0o755)
    return root


def test_a_raspberry_pi_is_told_by_its_device_tree_and_cores(pi: str) -> None:
    found = facts.identity(pi)
    assert found["model"] == "Raspberry Pi 4 Model B Rev 1.4"
    assert found["compatible"] == ["raspberrypi,4-model-b", "brcm,bcm2711"]
    assert found["cpu"] == ["0x41/0xd08"]
    assert found["isa"] == "asimd cpuid crc32 evtstrm fp"
    assert found["mem_total_bytes"] == 3882676 * 1024
    assert found["virtual"] is False


def test_governor_frequency_temperature_and_throttle_flags_are_read(pi: str) -> None:
    found = facts.state(pi)
    assert found["governor"] == {"policy0": "ondemand"}
    assert found["frequency_khz"] == {"policy0": {"cur": 600000, "min": 600000, "max": 1800000}}
    assert found["temperature_celsius"] == {"thermal_zone0:cpu-thermal": 48.312}
    assert found["throttled"] == "0x50000"
    assert found["load_1min"] == 0.05


def test_every_fact_that_is_not_there_has_a_reason(tmp_path: Path) -> None:
    found = facts.state(str(tmp_path)) | {"absent": facts.state(str(tmp_path))["absent"]}
    assert set(found) == {"absent"}
    assert set(found["absent"]) == set(facts.STATE)
    assert found["absent"]["throttled"] == "no vcgencmd: not a Raspberry Pi"
    assert all(found["absent"].values())


def test_nonsense_in_the_kernel_s_files_is_a_reason_and_not_a_crash(tmp_path: Path) -> None:
    root = board(tmp_path, {"proc/loadavg": "much\n", "proc/stat": "", "proc/meminfo": "\xff\n"})
    absent = facts.state(root)["absent"]
    assert absent["load_1min"].startswith("not understood")
    assert "MemAvailable" in absent["mem_available_bytes"]


def test_an_emulated_board_is_called_virtual(tmp_path: Path) -> None:
    root = board(tmp_path, {"proc/device-tree/compatible": "linux,dummy-virt\0", "proc/cpuinfo": "Features : fp\n"})
    assert facts.identity(root)["virtual"] is True
