"""What the device says about itself: pure readers under a given root, so that a folder can stand in for a board.

A fact that cannot be read is listed under ``absent`` with the reason; nothing is guessed.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from typing import Any, Callable

from bench_remote import disturbances
from bench_remote.reading import Absent as Absent
from bench_remote.reading import collect as _collect
from bench_remote.reading import found as _found
from bench_remote.reading import policies as _policies
from bench_remote.reading import read as _read
from bench_remote.reading import text as _text
from bench_remote.reading import vcgencmd


def identity(root: str = "/") -> dict[str, Any]:
    """What stays the same while a job runs: board, CPU, memory, operating system, Python."""
    return _collect(root, IDENTITY)


def state(root: str = "/") -> dict[str, Any]:
    """What may change while a job runs: governor, frequencies (kHz), temperatures, throttle flags, load, memory."""
    return _collect(root, STATE)


def memory_bytes(field: str, root: str = "/") -> int:
    """``VmHWM`` or ``VmRSS`` of this process.

    Not ru_maxrss: that counts whoever spawned us (788 MB was reported for a child of 9).
    """
    found = re.search(rf"^{field}:\s+(\d+) kB", _read(root, "proc/self/status"), re.M)
    if not found:
        raise Absent(f"no {field} in /proc/self/status")
    return int(found.group(1)) * 1024


def _model(root: str) -> str:
    for path in ("proc/device-tree/model", "sys/class/dmi/id/product_name"):
        if os.path.exists(os.path.join(root, path)):
            return _text(root, path)
    raise Absent("neither a device tree nor DMI")


def _compatible(root: str) -> list[str]:
    return [name for name in _read(root, "proc/device-tree/compatible").split("\0") if name.strip()]


def _cpu(root: str) -> list[str]:
    """Kinds of cores: names where there are names (x86), else implementer/part as arm64 gives them."""
    text = _read(root, "proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", text, re.M)
    if not names:
        parts = zip(
            re.findall(r"^CPU implementer\s*:\s*(\S+)", text, re.M), re.findall(r"^CPU part\s*:\s*(\S+)", text, re.M)
        )
        names = ["{}/{}".format(*pair) for pair in parts]
    if not names:
        raise Absent("no CPU named in /proc/cpuinfo")
    return sorted(set(names))


def _isa(root: str) -> str:
    """Instruction-set flags of the first core, sorted, one line."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _read(root, "proc/cpuinfo"), re.M)
    if not found:
        raise Absent("no flags in /proc/cpuinfo")
    return " ".join(sorted(set(found.group(1).split())))


def _meminfo(root: str, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", _read(root, "proc/meminfo"), re.M)
    if not found:
        raise Absent(f"no {field} in /proc/meminfo")
    return int(found.group(1)) * 1024


def _system(root: str) -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', _read(root, "etc/os-release"), re.M)
    if not found:
        raise Absent("no PRETTY_NAME in /etc/os-release")
    return found.group(1)


def _libc(root: str) -> str:
    name = " ".join(part for part in platform.libc_ver() if part)
    if not name:
        raise Absent("not known to Python")
    return name


def _virtual(root: str) -> bool:
    """Whether this is visibly a virtual or emulated machine, whose times are nobody's board's."""
    flags = re.search(r"^flags\s*:.*\bhypervisor\b", _read(root, "proc/cpuinfo"), re.M)
    tree = os.path.join(root, "proc/device-tree/compatible")
    return bool(flags) or (os.path.exists(tree) and "linux,dummy-virt" in _compatible(root))


def _governor(root: str) -> dict[str, str]:
    return {os.path.basename(policy): _text(policy, "scaling_governor") for policy in _policies(root)}


def _frequency(root: str) -> dict[str, dict[str, int]]:
    kinds = ("cur", "min", "max")
    return {
        os.path.basename(policy): {kind: int(_text(policy, f"scaling_{kind}_freq")) for kind in kinds}
        for policy in _policies(root)
    }


def _thermal(root: str) -> dict[str, float]:
    """Degrees Celsius by ``<zone>:<type>``; a zone that refuses to be read (some do while asleep) is left out."""
    zones = _found(root, "sys/class/thermal/thermal_zone*")
    found = {}
    for zone in zones:
        try:
            found["{}:{}".format(os.path.basename(zone), _text(zone, "type"))] = int(_text(zone, "temp")) / 1000
        except (OSError, ValueError):
            continue
    if not found:
        raise Absent("no thermal zone can be read" if zones else "no thermal zone on this device")
    return found


def _throttled(root: str) -> str:
    """Raspberry Pi's flags as hexadecimal: bits 0-3 now, bits 16-19 since boot (so compare before and after)."""
    try:
        said = vcgencmd(root, "get_throttled")
    except Absent:
        flags = disturbances.throttle_flags(root)
        if flags is None:
            raise
        return flags
    told = re.search(r"throttled=(0x[0-9a-fA-F]+)", said)
    if not told:
        raise Absent(f"vcgencmd said {said.strip()[:80]!r}")
    return told.group(1)


def _cpu_ticks(root: str) -> dict[str, int]:
    """Ticks of all cores together since boot, by kind; ``steal`` tells of a busy host under a virtual machine."""
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    return dict(zip(names, (int(word) for word in _read(root, "proc/stat").split("\n", 1)[0].split()[1:9])))


def _swapped(root: str) -> dict[str, int]:
    pairs = (line.split() for line in _read(root, "proc/vmstat").splitlines())
    return {name: int(value) for name, value in pairs if name in ("pswpin", "pswpout")}


IDENTITY: dict[str, Callable[[str], Any]] = {
    "model": _model,
    "compatible": _compatible,
    "machine": lambda root: os.uname().machine,
    "cpu": _cpu,
    "isa": _isa,
    "cores_possible": lambda root: _text(root, "sys/devices/system/cpu/possible"),
    "mem_total_bytes": lambda root: _meminfo(root, "MemTotal"),
    "system": _system,
    "kernel": lambda root: _text(root, "proc/sys/kernel/osrelease"),
    "libc": _libc,
    "python": lambda root: sys.version.split()[0],
    "virtual": _virtual,
    "boot_id": lambda root: _text(root, "proc/sys/kernel/random/boot_id"),
}
STATE: dict[str, Callable[[str], Any]] = {
    "governor": _governor,
    "frequency_khz": _frequency,
    "temperature_celsius": _thermal,
    "throttled": _throttled,
    "cores_online": lambda root: _text(root, "sys/devices/system/cpu/online"),
    "load_1min": lambda root: float(_read(root, "proc/loadavg").split()[0]),
    "mem_available_bytes": lambda root: _meminfo(root, "MemAvailable"),
    "swapped_pages": _swapped,
    "cpu_ticks": _cpu_ticks,
    **disturbances.STATE,
}
