"""What a board is made of, beyond what every job asks: kinds of cores, limits, meters, what its Python can load.

Pure readers under a given root, as in ``facts``: asked for once, by a probe, so they may take a moment.
"""

from __future__ import annotations

import glob
import os
import re
import struct
import subprocess
import sys
import sysconfig
from typing import Any, Callable

from bench_remote import reading
from bench_remote.reading import Absent

MAX_CORES = 1024
UNLIMITED_BYTES = 1 << 60  # cgroup v1 says "no limit" by a number near 2**63
# util-linux, sys-utils/lscpu-arm.c: (implementer, part) of the main ID register
CORES = {
    (0x41, 0xD03): "cortex-a53", (0x41, 0xD04): "cortex-a35", (0x41, 0xD05): "cortex-a55", (0x41, 0xD07): "cortex-a57",
    (0x41, 0xD08): "cortex-a72", (0x41, 0xD09): "cortex-a73", (0x41, 0xD0A): "cortex-a75", (0x41, 0xD0B): "cortex-a76",
    (0x41, 0xD0C): "neoverse-n1", (0x41, 0xD0D): "cortex-a77", (0x41, 0xD40): "neoverse-v1", (0x41, 0xD41): "cortex-a78",
    (0x41, 0xD42): "cortex-a78ae", (0x41, 0xD44): "cortex-x1", (0x41, 0xD46): "cortex-a510",
    (0x41, 0xD47): "cortex-a710", (0x41, 0xD48): "cortex-x2", (0x41, 0xD49): "neoverse-n2", (0x41, 0xD4D): "cortex-a715",
    (0x41, 0xD4E): "cortex-x3", (0x41, 0xD4F): "neoverse-v2", (0x41, 0xD80): "cortex-a520", (0x41, 0xD81): "cortex-a720",
    (0x41, 0xC07): "cortex-a7", (0x41, 0xC08): "cortex-a8", (0x41, 0xC09): "cortex-a9", (0x4E, 0x004): "carmel",
}  # fmt: skip


def main(order: dict[str, Any], say: Callable[..., None]) -> None:
    """Tell one answer: ``board``, the details."""
    say(board=details("/", os.path.expanduser(order["cache"])))


def details(root: str = "/", cache: str = "/") -> dict[str, Any]:
    """Every detail that can be read, and ``absent`` with a reason for the others. ``cache``: whose disk is asked for."""
    return reading.collect(root, dict(DETAILS, disk_free_bytes=lambda _: _disk_free(cache)))


def clusters(root: str) -> list[dict[str, Any]]:
    """Cores of one kind together, the strongest kind first: ``core``, ``ids``, ``khz_max``, ``capacity``."""
    found = glob.glob(os.path.join(root, "sys/devices/system/cpu/cpu[0-9]*"))
    numbers = sorted(int(os.path.basename(path)[3:]) for path in found if os.path.basename(path)[3:].isdigit())
    named = _core_names(root)
    kinds: dict[Any, list[int]] = {}
    for number in (numbers or sorted(named))[:MAX_CORES]:
        folder = f"sys/devices/system/cpu/cpu{number}"
        name = named.get(number) or _by_register(root, folder)
        kind = (name, _number(root, f"{folder}/cpufreq/cpuinfo_max_freq"), _number(root, f"{folder}/cpu_capacity"))
        kinds.setdefault(kind, []).append(number)
    if not kinds:
        raise Absent("no core in /sys/devices/system/cpu or /proc/cpuinfo")
    order = sorted(kinds.items(), key=lambda item: (-(item[0][2] or 0), -(item[0][1] or 0), item[1]))
    return [{"core": name, "khz_max": khz, "capacity": many, "ids": ids} for (name, khz, many), ids in order]


def _core_names(root: str) -> dict[int, str]:
    """By core number: Arm's names by implementer and part, x86's ``model name``."""
    names: dict[int, str] = {}
    try:
        text = reading.read(root, "proc/cpuinfo")
    except OSError:
        return names
    number = -1
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "processor" and value.isdigit():
            number = int(value)
        elif key == "model name" and number >= 0 and not value.startswith(("ARM", "AArch64")):
            names[number] = value
        elif key == "CPU implementer":
            implementer = value
        elif key == "CPU part" and number >= 0:
            names[number] = _arm_name(int(implementer, 16), int(value, 16))
    return names


def _by_register(root: str, folder: str) -> str:
    """From MIDR_EL1, which a core also shows while another has no entry in /proc/cpuinfo."""
    try:
        register = int(reading.text(root, f"{folder}/regs/identification/midr_el1"), 16)
    except (OSError, ValueError):
        return ""
    return _arm_name(register >> 24 & 0xFF, register >> 4 & 0xFFF)


def _arm_name(implementer: int, part: int) -> str:
    return CORES.get((implementer, part), f"0x{implementer:02x}/0x{part:03x}")


def _number(root: str, path: str) -> int | None:
    try:
        return int(reading.text(root, path))
    except (OSError, ValueError):
        return None


def cgroup(root: str) -> dict[str, Any]:
    """The tightest limits on our way to the root of control groups: ``cpus`` (of quota), ``memory_bytes``.

    Without it a container held to half a core looks like a slow board. ``throttled_periods`` counts when it was.
    """
    paths: dict[str, str] = {}
    for line in reading.read(root, "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            paths[name] = path
    second = "" in paths and os.path.exists(os.path.join(root, "sys/fs/cgroup/cgroup.controllers"))
    cpus, memory, throttled = [], [], []
    for folder in _upwards(root, "" if second else "cpu", paths):
        quota, period = _quota(root, folder, second)
        if quota > 0 and period > 0:
            cpus.append(quota / period)
        found = re.search(r"^nr_throttled (\d+)", _maybe(root, f"{folder}/cpu.stat"), re.M)
        throttled += [int(found.group(1))] if found else []
    for folder in _upwards(root, "" if second else "memory", paths):
        limit = _number(root, "{}/{}".format(folder, "memory.max" if second else "memory.limit_in_bytes"))
        memory += [limit] if limit is not None and limit < UNLIMITED_BYTES else []
    limits = {"cpus": min(cpus, default=None), "memory_bytes": min(memory, default=None)}
    return dict(limits, version=2 if second else 1, throttled_periods=max(throttled, default=None))


def _upwards(root: str, controller: str, paths: dict[str, str]) -> list[str]:
    """Folders of a control group and of those above it. In a container the path may not be there: then the top alone."""
    top = os.path.join("sys/fs/cgroup", controller)
    parts = [part for part in paths.get(controller, "/").split("/") if part not in ("", "..")]
    places = [os.path.join(top, *parts[:depth]) for depth in range(len(parts), -1, -1)]
    return [place for place in places if os.path.isdir(os.path.join(root, place))]


def _quota(root: str, folder: str, second: bool) -> tuple[int, int]:
    if second:
        words = _maybe(root, f"{folder}/cpu.max").split()
        return (int(words[0]), int(words[1])) if len(words) == 2 and words[0].isdigit() else (0, 0)
    return _number(root, f"{folder}/cpu.cfs_quota_us") or 0, _number(root, f"{folder}/cpu.cfs_period_us") or 0


def _maybe(root: str, path: str) -> str:
    return reading.some(root, path) or ""


def thermal_zones(root: str) -> list[dict[str, Any]]:
    """``zone``, ``type``, ``celsius`` (null, with ``why``, where it refuses), and its ``trips``: [kind, celsius]."""
    found = []
    for zone in reading.found(root, "sys/class/thermal/thermal_zone*"):
        celsius, why = None, ""
        try:
            celsius = int(reading.text(zone, "temp")) / 1000
        except (OSError, ValueError) as cause:
            why = _reason(cause)
        trips = []
        for path in reading.found(zone, "trip_point_*_temp"):
            degrees = _number(zone, os.path.basename(path))
            if degrees is not None:
                trips.append([_maybe("", path.replace("_temp", "_type")).strip(), degrees / 1000])
        found.append(
            {
                "zone": os.path.basename(zone),
                "type": _maybe(zone, "type").strip(),
                "celsius": celsius,
                "why": why,
                "trips": trips,
            }
        )
    if not found:
        raise Absent("no thermal zone on this device")
    return found


def throttle_sources(root: str) -> list[dict[str, Any]]:
    """Where it can be seen that the board slowed down: ``kind``, ``path``, ``why`` it cannot be read ("" if it can)."""
    patterns = (
        ("x86_counts", "sys/devices/system/cpu/cpu0/thermal_throttle/*_throttle_count"),
        ("cooling_state", "sys/class/thermal/cooling_device*/cur_state"),
        ("time_in_state", "sys/devices/system/cpu/cpufreq/policy*/stats/time_in_state"),
    )
    found = [_source("vcgencmd", root, program) for program in _vcgencmd(root)]
    for chip in reading.found(root, "sys/class/hwmon/hwmon*"):
        kind = {"rpi_volt": "rpi_volt", "soctherm_oc": "jetson_over_current"}.get(_maybe(chip, "name").strip())
        for path in glob.glob(os.path.join(chip, "in0_lcrit_alarm")) + glob.glob(os.path.join(chip, "oc*_event_cnt")):
            found += [_source(kind, root, path)] if kind else []
    for kind, pattern in patterns:
        for path in reading.found(root, pattern):
            cooler = "" if kind != "cooling_state" else _maybe(os.path.dirname(path), "type")
            if kind != "cooling_state" or re.search("cpu|processor", cooler, re.I):
                found.append(_source(kind, root, path))
    if not found:
        raise Absent("nothing here tells of throttling: only measured clocks can")
    return found[:64]


def _source(kind: str, root: str, path: str) -> dict[str, Any]:
    return {"kind": kind, "path": _shown(root, path), "why": "" if kind == "vcgencmd" else _unreadable(path)}


def rails(root: str) -> list[dict[str, Any]]:
    """What can tell watts: ``meter``, ``name`` of the rail, ``path``, ``why`` it cannot be read ("" if it can)."""
    found = _ina3221(root) + _pmic(root)
    for zone in reading.found(root, "sys/class/powercap/intel-rapl:*"):
        path = os.path.join(zone, "energy_uj")
        found.append(_rail("rapl", _maybe(zone, "name").strip(), root, path))
    for supply in reading.found(root, "sys/class/power_supply/*"):
        paths = [os.path.join(supply, name) for name in ("power_now", "current_now")]
        there = [path for path in paths if os.path.exists(path)]
        found += [_rail("battery", os.path.basename(supply), root, path) for path in there[:1]]
    if not found:
        raise Absent("no meter on this device: measure at the supply")
    return found[:64]


def _ina3221(root: str) -> list[dict[str, Any]]:
    """hwmon (JetPack 5 and later, mainline): volts times amperes of a channel; iio (JetPack 4): milliwatts."""
    found = []
    for chip in reading.found(root, "sys/class/hwmon/hwmon*"):
        if _maybe(chip, "name").strip() == "ina3221":
            for label in sorted(glob.glob(os.path.join(chip, "in[1-3]_label"))):
                channel = os.path.basename(label)[2]
                one = _rail("ina3221", _maybe("", label).strip(), root, os.path.join(chip, f"in{channel}_input"))
                one["why"] = one["why"] or _unreadable(os.path.join(chip, f"curr{channel}_input"))
                found.append(one)
    for path in reading.found(root, "sys/bus/i2c/drivers/ina3221x/*/iio:device*/in_power[0-9]_input"):
        label = os.path.join(os.path.dirname(path), f"rail_name_{os.path.basename(path)[8]}")
        found.append(_rail("ina3221", _maybe("", label).strip(), root, path))
    return found


def _pmic(root: str) -> list[dict[str, Any]]:
    """Raspberry Pi 5: the rails for which its power chip tells a current."""
    if "bcm2712" not in _maybe(root, "proc/device-tree/compatible"):
        return []
    programs = _vcgencmd(root)
    if not programs:
        return [{"meter": "pmic", "name": "", "path": "", "why": "no vcgencmd on this system"}]
    shown = _shown(root, programs[0]) + " pmic_read_adc"
    try:
        answer = subprocess.run([programs[0], "pmic_read_adc"], capture_output=True, timeout=5)
    except (OSError, subprocess.SubprocessError) as cause:
        return [{"meter": "pmic", "name": "", "path": shown, "why": _reason(cause)}]
    names = re.findall(rb"^\s*(\w{1,32})_A current\(\d+\)=", answer.stdout, re.M)
    if not names:
        said = answer.stderr.decode("utf-8", "replace").strip()[:80]
        return [{"meter": "pmic", "name": "", "path": shown, "why": said or "told no current"}]
    return [{"meter": "pmic", "name": name.decode("ascii"), "path": shown, "why": ""} for name in names]


def _rail(meter: str, name: str, root: str, path: str) -> dict[str, Any]:
    return {"meter": meter, "name": name, "path": _shown(root, path), "why": _unreadable(path)}


def _vcgencmd(root: str) -> list[str]:
    places = [os.path.join(root, path) for path in reading.VCGENCMD]
    return [place for place in places if os.path.exists(place)][:1]


def _shown(root: str, path: str) -> str:
    return "/" + os.path.relpath(path, root)


def _unreadable(path: str) -> str:
    """Why a file cannot be read; "" when it can. Read, not asked for its mode: some refuse only then."""
    try:
        with open(path, "rb") as stream:
            stream.read(64)
    except OSError as cause:
        return _reason(cause)
    return ""


def _reason(cause: Exception) -> str:
    return (getattr(cause, "strerror", None) or f"not understood: {cause}").lower()


def swap(root: str) -> list[dict[str, Any]]:
    """Each swap area: ``name``, ``bytes``, ``used_bytes``, and whether it is ``zram`` (memory that pretends)."""
    rows = [line.split() for line in reading.read(root, "proc/swaps").splitlines()[1:]]
    return [
        {"name": row[0], "bytes": int(row[2]) * 1024, "used_bytes": int(row[3]) * 1024, "zram": "/zram" in row[0]}
        for row in rows[:32]
    ]


def _glibc(root: str) -> str:
    """Version of the C library that this Python runs on, ``2.36``."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError, AttributeError):
        name, version = "", ""
    if name != "glibc" or not version:
        raise Absent("not glibc: wheels for manylinux do not run here")
    return version


def _python(root: str) -> dict[str, Any]:
    """What decides which wheels fit. ``machine`` is the kernel's; ``bits`` those of this Python, which may be 32 there."""
    return {
        "version": list(sys.version_info[:3]),
        "implementation": sys.implementation.name,
        "bits": 8 * struct.calcsize("P"),
        "machine": os.uname().machine,
        "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    }


def _usable(root: str) -> list[int]:
    return sorted(os.sched_getaffinity(0))


def _disk_free(cache: str) -> int:
    """Bytes that we may still write where ``cache`` is, or will be."""
    place = os.path.abspath(cache)
    while not os.path.exists(place) and place != os.path.dirname(place):
        place = os.path.dirname(place)
    space = os.statvfs(place)
    return space.f_bavail * space.f_frsize


DETAILS: dict[str, Callable[[str], Any]] = {
    "clusters": clusters,
    "usable_cores": _usable,
    "cgroup": cgroup,
    "thermal_zones": thermal_zones,
    "throttle_sources": throttle_sources,
    "rails": rails,
    "swap": swap,
    "glibc": _glibc,
    "python": _python,
    "page_bytes": lambda root: os.sysconf("SC_PAGE_SIZE"),
}
