"""What disturbs a measurement and leaves a trace: throttling, power limits, other programs, swapping, suspend.

Pure readers under a root folder, of counters that only grow, so that before and after tell what happened between.
"""

from __future__ import annotations

import os
import re
import time
from typing import Any, Callable

from bench_remote.reading import Absent, found, policies, read, some, text, vcgencmd, whole

MOST_POLICIES = 16  # a server has one a core; the tables of 256 would not fit into an event
FIRMWARE_FLAGS = ("sys/devices/platform/soc/soc:firmware/get_throttled", "sys/devices/platform/soc*/*firmware*/get_throttled")  # fmt: skip


def throttle_flags(root: str) -> str | None:
    """Raspberry Pi's flags as the kernel's firmware driver tells them (``0x50000``); None where it has none."""
    for pattern in FIRMWARE_FLAGS:
        for path in found(root, pattern):
            told = some("", path)
            if told and re.fullmatch(r"(0x)?[0-9a-fA-F]{1,8}", told):
                return hex(int(told, 16))
    return None


def _nominal(root: str) -> dict[str, int]:
    """The greatest frequency of each policy by its maker's word, kHz."""
    return {os.path.basename(policy): whole(policy, "cpuinfo_max_freq") for policy in policies(root)}


def _time_in_state(root: str) -> dict[str, dict[str, int]]:
    """Ticks of 10 ms at each frequency (kHz), by policy."""
    folders = policies(root)
    if len(folders) > MOST_POLICIES:
        raise Absent(f"{len(folders)} frequency policies are more than are told")
    told = {}
    for policy in folders:
        if not os.path.exists(os.path.join(policy, "stats/time_in_state")):
            raise Absent("the kernel counts no time in frequencies here")
        pairs = (line.split() for line in read(policy, "stats/time_in_state").splitlines())
        told[os.path.basename(policy)] = {khz: int(ticks) for khz, ticks in pairs}
    return told


def _energy_preference(root: str) -> dict[str, str]:
    return _of_policies(root, "energy_performance_preference", "no energy preference: not a driver that has one")


def _driver(root: str) -> dict[str, str]:
    return _of_policies(root, "scaling_driver", "no cpufreq driver is named")


def _of_policies(root: str, name: str, reason: str) -> dict[str, str]:
    told = {os.path.basename(policy): some(policy, name) for policy in policies(root)}
    kept = {policy: value for policy, value in told.items() if value}
    if not kept:
        raise Absent(reason)
    return kept


def _boost(root: str) -> bool:
    """Whether turbo is allowed."""
    for path, inverted in (
        ("sys/devices/system/cpu/cpufreq/boost", False),
        ("sys/devices/system/cpu/intel_pstate/no_turbo", True),
    ):
        told = some(root, path)
        if told is not None:
            return (told == "1") != inverted
    raise Absent("no switch for turbo")


def _cooling(root: str) -> dict[str, int]:
    """State of each cooling device by ``<device>:<type>``: 0 is at rest, higher is more cooling (a fan, or less clock)."""
    folders = found(root, "sys/class/thermal/cooling_device*")
    told = {}
    for folder in folders:
        kind, state = some(folder, "type"), some(folder, "cur_state")
        if kind and state and re.fullmatch(r"-?\d{1,9}", state):
            told[f"{os.path.basename(folder)}:{kind}"] = int(state)
    if not told:
        raise Absent("no cooling device can be read" if folders else "no cooling device here")
    return told


def _thermal_throttle(root: str) -> dict[str, int]:
    """x86: how often cores (summed) and packages (the greatest, since each of its cores tells it) were too hot."""
    cores = [
        whole("", path) for path in found(root, "sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")
    ]
    packages = [
        whole("", path) for path in found(root, "sys/devices/system/cpu/cpu*/thermal_throttle/package_throttle_count")
    ]
    if not cores:
        raise Absent("no thermal throttle counts: not x86, or a virtual machine")
    return {"core": sum(cores), "package": max(packages, default=0)}


def _over_current(root: str) -> dict[str, int]:
    """Jetson: events of under-voltage (oc1) and over-current (oc2, oc3) since boot."""
    told = {}
    for path in found(root, "sys/class/hwmon/hwmon*/oc*_event_cnt"):
        told[os.path.basename(path)[: -len("_event_cnt")]] = whole("", path)
    if not told:
        raise Absent("no over-current counters: not a Jetson Orin")
    return told


def _power_mode(root: str) -> int:
    """Jetson: the number of the nvpmodel in force."""
    status = some(root, "var/lib/nvpmodel/status")
    told = re.search(r"pmode:(\d+)", status or "")
    if not told:
        raise Absent("no nvpmodel: not a Jetson" if status is None else f"nvpmodel's status is {status[:40]!r}")
    return int(told.group(1))


def _supply(root: str) -> float:
    """Raspberry Pi 5: volts at the 5 V input."""
    said = vcgencmd(root, "pmic_read_adc", "EXT5V_V")
    told = re.search(r"EXT5V_V\s+volt\(\d+\)=([0-9.]+)V", said)
    if not told:
        raise Absent("this board's power chip does not tell its input")
    return float(told.group(1))


def _under_voltage(root: str) -> bool:
    """The kernel's alarm of Raspberry Pi's supply."""
    for folder in found(root, "sys/class/hwmon/hwmon*"):
        if some(folder, "name") == "rpi_volt":
            return text(folder, "in0_lcrit_alarm") == "1"
    raise Absent("no rpi_volt: not a Raspberry Pi")


def _clocks(root: str) -> dict[str, int]:
    """Two clocks read together, nanoseconds: only ``boottime`` goes on in suspend."""
    if os.path.realpath(root) != "/":
        raise Absent("clocks are those of this machine")
    return {name: time.clock_gettime_ns(getattr(time, f"CLOCK_{name.upper()}")) for name in ("monotonic", "boottime")}


def _pressure(root: str) -> dict[str, int]:
    """Microseconds since boot in which some task waited, for cpu, memory and io."""
    if not os.path.isdir(os.path.join(root, "proc/pressure")):
        raise Absent("the kernel does not count pressure")
    told = {}
    for kind in ("cpu", "memory", "io"):
        total = re.search(r"^some .*total=(\d+)", read(root, f"proc/pressure/{kind}"), re.M)
        if total:
            told[kind] = int(total.group(1))
    return told


def _zram(root: str) -> int:
    """Bytes that are held compressed in memory (before compression): swapping that touches no disk."""
    sizes = [text("", path).split()[0] for path in found(root, "sys/block/zram*/mm_stat")]
    if not sizes:
        raise Absent("no zram")
    return sum(int(size) for size in sizes)


def _cgroup(root: str) -> dict[str, Any]:
    """Limits of our own control group and how often they bit: a throttled container looks like a slow processor.

    ``cpu_quota`` in CPUs, ``memory_limit_bytes``: None where there is no limit; ``throttled`` counts periods.
    """
    lines = [line.split(":", 2) for line in read(root, "proc/self/cgroup").splitlines()]
    for number, controllers, path in lines:
        if (number, controllers) == ("0", ""):
            folder = os.path.join("sys/fs/cgroup", path.strip("/"))
            if os.path.exists(os.path.join(root, folder, "cgroup.controllers")):
                return _unified(os.path.join(root, folder))
    for _, controllers, path in lines:
        if "cpu" in controllers.split(","):
            return _first_version(root, path.strip("/"))
    raise Absent("no control group tells its limits")


def _unified(folder: str) -> dict[str, Any]:
    quota, period = ([*(some(folder, "cpu.max") or "max 0").split(), "0"])[:2]
    memory = some(folder, "memory.max") or "max"
    return {
        "version": 2,
        "cpu_quota": None if quota == "max" else int(quota) / int(period),
        "memory_limit_bytes": None if memory == "max" else int(memory),
        "throttled": _throttled_periods(some(folder, "cpu.stat") or ""),
    }


def _first_version(root: str, path: str) -> dict[str, Any]:
    folder = os.path.join(root, "sys/fs/cgroup/cpu", path)
    folder = folder if os.path.isdir(folder) else os.path.join(root, "sys/fs/cgroup/cpu")
    quota, period = int(some(folder, "cpu.cfs_quota_us") or -1), int(some(folder, "cpu.cfs_period_us") or 0)
    memory = int(some(root, os.path.join("sys/fs/cgroup/memory", path, "memory.limit_in_bytes")) or 1 << 62)
    return {
        "version": 1,
        "cpu_quota": quota / period if quota > 0 and period > 0 else None,
        "memory_limit_bytes": memory if memory < 1 << 60 else None,  # its word for none is about 2**63
        "throttled": _throttled_periods(some(folder, "cpu.stat") or ""),
    }


def _throttled_periods(stat: str) -> int | None:
    told = re.search(r"^nr_throttled (\d+)", stat, re.M)
    return int(told.group(1)) if told else None


STATE: dict[str, Callable[[str], Any]] = {
    "frequency_nominal_khz": _nominal,
    "time_in_state": _time_in_state,
    "energy_preference": _energy_preference,
    "frequency_driver": _driver,
    "boost": _boost,
    "cooling": _cooling,
    "thermal_throttle": _thermal_throttle,
    "over_current": _over_current,
    "power_mode": _power_mode,
    "supply_volts": _supply,
    "under_voltage": _under_voltage,
    "clocks_ns": _clocks,
    "pressure_us": _pressure,
    "zram_bytes": _zram,
    "cgroup": _cgroup,
}
