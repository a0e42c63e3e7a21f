"""Meters of energy that a board has itself, each with its class; classes are never mixed.

``cpu_counter``: the processor's own energy counters (RAPL), joules. ``board_rail``: a shunt monitor on the board
(INA3221 of a Jetson), watts. ``pmic_sum``: the rails of Raspberry Pi 5's power chip, watts, without the 5 V input and USB.
A meter tells raw values of its rails; which of them add up to the whole is ``total``.
"""

from __future__ import annotations

import os
import re
import time
from typing import Any, Callable

from bench_remote.reading import Absent, found, some, vcgencmd, whole

BOARD_TOTALS = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0")  # one of them is all that the module takes; else rails add up
MAX_HZ = {"cpu_counter": 100.0, "board_rail": 50.0, "pmic_sum": 10.0}
MAX_SAMPLES = 100_000


class Meter:
    """One meter.

    ``unit``: "J" for counters that only grow, "W" for powers. ``total``: the rails that add up to what it measures.
    ``wraps``: for counters, the joules at which each starts again at zero.
    """

    def __init__(
        self,
        name: str,
        meter_class: str,
        unit: str,
        read: Callable[[], dict[str, float]],
        total: list[str],
        wraps: dict[str, float] | None = None,
    ) -> None:
        self.name, self.meter_class, self.unit, self.read, self.total = name, meter_class, unit, read, total
        self.wraps = wraps or {}


def meters(root: str = "/") -> tuple[list[Meter], dict[str, str]]:
    """All meters of this device that can be read now, and why there is none of the other kinds."""
    usable: list[Meter] = []
    absent: dict[str, str] = {}
    for name, find in (("rapl", _rapl), ("ina3221", _ina3221), ("pmic", _pmic)):
        try:
            meter = find(root)
            meter.read()
            usable.append(meter)
        except Absent as why:
            absent[name] = str(why)
        except PermissionError:
            absent[name] = "permission denied: only root may read it"
        except OSError as why:
            absent[name] = (why.strerror or "unreadable").lower()
        except (ValueError, IndexError) as why:
            absent[name] = f"not understood: {why}"
    return usable, absent


def _rapl(root: str) -> Meter:
    """Energy counters of powercap, by zone name. Packages and memory add up; core and uncore are parts of a package."""
    zones: dict[str, str] = {}
    total = []
    wraps = {}
    for folder in found(root, "sys/class/powercap/intel-rapl:*"):
        kind = some(folder, "name")
        if not kind or not os.path.exists(os.path.join(folder, "energy_uj")):
            continue
        name = f"{os.path.basename(folder)}:{kind}"
        zones[name] = folder
        wraps[name] = whole(folder, "max_energy_range_uj") / 1e6
        if kind.startswith("package") or kind == "dram":
            total.append(name)
    if not zones:
        raise Absent("no energy counters under /sys/class/powercap")

    def read() -> dict[str, float]:
        return {name: whole(folder, "energy_uj") / 1e6 for name, folder in zones.items()}

    return Meter("rapl", "cpu_counter", "J", read, total or list(zones), wraps)


def _ina3221(root: str) -> Meter:
    """Watts of each labelled rail: by hwmon (JetPack 5 and later), else by iio (JetPack 4)."""
    rails: dict[str, Callable[[], float]] = {}
    for folder in found(root, "sys/class/hwmon/hwmon*"):
        if some(folder, "name") == "ina3221":
            rails.update(_hwmon_rails(folder))
    if not rails:
        for folder in found(root, "sys/bus/iio/devices/iio:device*"):
            if some(folder, "name") in ("ina3221", "ina3221x"):
                rails.update(_iio_rails(folder))
    if not rails:
        raise Absent("no INA3221 under hwmon or iio")
    whole_board = [name for name in BOARD_TOTALS if name in rails]

    def read() -> dict[str, float]:
        return {name: power() for name, power in rails.items()}

    return Meter("ina3221", "board_rail", "W", read, whole_board[:1] or list(rails))


def _hwmon_rails(folder: str) -> dict[str, Callable[[], float]]:
    """Channels 1 to 3 by label: millivolts by milliamperes. Higher ones are shunts and sums of them."""
    rails: dict[str, Callable[[], float]] = {}
    for channel in (1, 2, 3):
        label = some(folder, f"in{channel}_label")
        if label and label.upper() != "NC" and some(folder, f"in{channel}_enable") != "0":

            def power(channel: int = channel) -> float:
                return whole(folder, f"in{channel}_input") * whole(folder, f"curr{channel}_input") / 1e6

            rails[label] = power
    return rails


def _iio_rails(folder: str) -> dict[str, Callable[[], float]]:
    """Channels 0 to 2 by name, milliwatts."""
    rails: dict[str, Callable[[], float]] = {}
    for channel in (0, 1, 2):
        label = some(folder, f"rail_name_{channel}")
        if label and label.upper() != "NC":

            def power(channel: int = channel) -> float:
                return whole(folder, f"in_power{channel}_input") / 1e3

            rails[label] = power
    return rails


def _pmic(root: str) -> Meter:
    """Volts by amperes of each rail that has both: not ``EXT5V`` and ``BATT``, of which only the voltage is known."""

    def read() -> dict[str, float]:
        said = vcgencmd(root, "pmic_read_adc")
        told = re.findall(r"(\w+)_([AV])\s+(?:current|volt)\(\d+\)=([0-9.]+)[AV]", said)
        values = {(rail, unit): float(value) for rail, unit, value in told}
        return {rail: value * values[rail, "A"] for (rail, unit), value in values.items() if unit == "V" and (rail, "A") in values}  # fmt: skip

    rails = list(read())
    if not rails:
        raise Absent("this board's power chip tells no rails")
    return Meter("pmic", "pmic_sum", "W", read, rails)


def sample(
    meter: Meter,
    seconds: float,
    hz: float,
    clock: Callable[[], int] = time.monotonic_ns,
    pause: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Raw values of a meter over so many seconds, at ``hz`` or as fast as this kind of meter may be asked.

    Returns:
        ``{"meter", "meter_class", "unit", "total", "wraps", "rails", "ns", "values"}``: ``values[i][j]`` is what rail
        ``rails[j]`` told at ``ns[i]``, the middle of its reading.
    """
    hz = min(hz, MAX_HZ[meter.meter_class])
    rails: list[str] = []
    ns: list[int] = []
    values: list[list[float]] = []
    started = clock()
    while True:
        before = clock()
        told = meter.read()
        after = clock()
        rails = rails or list(told)
        ns.append((before + after) // 2)
        values.append([told[rail] for rail in rails])
        passed = (after - started) / 1e9
        if passed >= seconds or len(ns) >= MAX_SAMPLES:
            break
        pause(max(0.0, min(len(ns) / hz, seconds) - passed))
    about = {"meter": meter.name, "meter_class": meter.meter_class, "unit": meter.unit, "total": meter.total}
    return dict(about, wraps=meter.wraps, rails=rails, ns=ns, values=values)
