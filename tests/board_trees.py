"""Folders that stand in for boards: /proc and /sys as their kernels lay them out, only what the agent reads.

Layouts are those named in the drivers' documentation: cpufreq, thermal, powercap, hwmon and iio of the kernel's
Documentation/ABI; ``get_throttled`` and ``pmic_read_adc`` of Raspberry Pi's firmware; ``soctherm_oc`` and ``ina3221`` as
NVIDIA's Jetson Orin developer guide has them. Numbers are made up within what such boards tell.
"""

from __future__ import annotations

from pathlib import Path

TICKS = "cpu  {user} 0 {system} {idle} 0 0 0 {steal} 0 0\n"
PMIC = """ 3V7_WL_SW_A current(0)=0.10247270A
  VDD_CORE_A current(7)=1.50000000A
   3V3_SYS_A current(1)=0.10000000A
 3V7_WL_SW_V volt(8)=3.71091200V
  VDD_CORE_V volt(15)=0.90000000V
   3V3_SYS_V volt(9)=3.30000000V
     EXT5V_V volt(24)={volts:.8f}V
      BATT_V volt(25)=0.00000000V
"""


def put(root: Path, files: dict[str, str]) -> str:
    """Write the files below ``root``; the root as text."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root)


def program(root: Path, name: str, answers: dict[str, str]) -> None:
    """A program that answers its first word; anything else it does not know, as vcgencmd says so."""
    cases = "\n".join(f"{word}) cat <<'END'\n{text.rstrip()}\nEND\n;;" for word, text in answers.items())
    unknown = "*) echo 'error=1 error_msg=\"Command not registered\"';;"
    put(root, {name: f'#!/bin/sh\ncase "$1" in\n{cases}\n{unknown}\nesac\n'})
    (root / name).chmod(0o755)


def policy(number: int, governor: str, khz: tuple[int, int, int], states: dict[int, int]) -> dict[str, str]:
    """One frequency policy: (now, least, most) kHz, and ticks at each."""
    folder = f"sys/devices/system/cpu/cpufreq/policy{number}"
    return {
        f"{folder}/scaling_governor": f"{governor}\n",
        f"{folder}/scaling_driver": "cpufreq-dt\n",
        f"{folder}/scaling_cur_freq": f"{khz[0]}\n",
        f"{folder}/scaling_min_freq": f"{khz[1]}\n",
        f"{folder}/scaling_max_freq": f"{khz[2]}\n",
        f"{folder}/cpuinfo_max_freq": f"{khz[2]}\n",
        f"{folder}/stats/time_in_state": "".join(f"{at} {ticks}\n" for at, ticks in states.items()),
    }


def zone(number: int, kind: str, millicelsius: int) -> dict[str, str]:
    folder = f"sys/class/thermal/thermal_zone{number}"
    return {f"{folder}/type": f"{kind}\n", f"{folder}/temp": f"{millicelsius}\n"}


def cooler(number: int, kind: str, state: int) -> dict[str, str]:
    folder = f"sys/class/thermal/cooling_device{number}"
    return {f"{folder}/type": f"{kind}\n", f"{folder}/cur_state": f"{state}\n", f"{folder}/max_state": "4\n"}


def common(user: int = 1000) -> dict[str, str]:
    """What every kernel has."""
    return {
        "proc/stat": TICKS.format(user=user, system=100, idle=90000, steal=0),
        "proc/loadavg": "0.05 0.10 0.09 1/120 999\n",
        "proc/meminfo": "MemTotal: 3882676 kB\nMemAvailable: 3000000 kB\n",
        "proc/vmstat": "nr_free_pages 1\npswpin 3\npswpout 4\n",
        "proc/self/cgroup": "0::/user.slice\n",
        "sys/devices/system/cpu/online": "0-3\n",
    }


def pi4(root: Path, throttled: str = "0x0") -> str:
    """Raspberry Pi 4: one policy, firmware flags by vcgencmd, the kernel's alarm of the supply."""
    program(root, "usr/bin/vcgencmd", {"get_throttled": f"throttled={throttled}"})
    files = {
        **common(),
        **policy(0, "ondemand", (600000, 600000, 1800000), {600000: 5000, 1500000: 70, 1800000: 900}),
        **zone(0, "cpu-thermal", 48312),
        **cooler(0, "cpufreq-cpu0", 0),
        "sys/class/hwmon/hwmon1/name": "rpi_volt\n",
        "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "0\n",
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    }
    return put(root, files)


def pi5(root: Path, volts: float = 5.05716) -> str:
    """Raspberry Pi 5: flags in the firmware driver's file, rails by vcgencmd, a fan that is a cooling device."""
    program(root, "usr/bin/vcgencmd", {"get_throttled": "throttled=0x50000", "pmic_read_adc": PMIC.format(volts=volts)})
    files = {
        **common(),
        **policy(0, "performance", (2400000, 1500000, 2400000), {1500000: 0, 2400000: 7000}),
        **zone(0, "cpu-thermal", 51200),
        **cooler(0, "pwm-fan", 1),
        "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled": "50000\n",
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    }
    return put(root, files)


def orin(root: Path, events: int = 0) -> str:
    """Jetson Orin Nano with JetPack 6: two policies, over-current counters, INA3221 under hwmon, nvpmodel, zram."""
    rails = {1: ("VDD_IN", 4984, 1200), 2: ("VDD_CPU_GPU_CV", 4984, 400), 3: ("VDD_SOC", 4984, 300)}
    files = {
        **common(),
        **policy(0, "schedutil", (1510400, 115200, 1510400), {115200: 100, 1510400: 600}),
        **policy(4, "schedutil", (729600, 115200, 1510400), {115200: 900, 1510400: 60}),
        **zone(0, "cpu-thermal", 49000),
        **zone(8, "tj-thermal", 51500),
        **cooler(0, "pwm-fan", 1),
        **cooler(1, "cpufreq-cpu0", 0),
        "sys/class/hwmon/hwmon3/name": "soctherm_oc\n",
        **{f"sys/class/hwmon/hwmon3/oc{each}_event_cnt": f"{events}\n" for each in (1, 2, 3)},
        "sys/class/hwmon/hwmon1/name": "ina3221\n",
        "var/lib/nvpmodel/status": "pmode:0002\n",
        "sys/block/zram0/mm_stat": "4096 74 12288 0 12288 0 0 0 0\n",
        "sys/block/zram1/mm_stat": "8192 74 12288 0 12288 0 0 0 0\n",
    }
    for channel, (label, millivolts, milliamperes) in rails.items():
        files[f"sys/class/hwmon/hwmon1/in{channel}_label"] = f"{label}\n"
        files[f"sys/class/hwmon/hwmon1/in{channel}_enable"] = "1\n"
        files[f"sys/class/hwmon/hwmon1/in{channel}_input"] = f"{millivolts}\n"
        files[f"sys/class/hwmon/hwmon1/curr{channel}_input"] = f"{milliamperes}\n"
    files["sys/class/hwmon/hwmon1/in4_label"] = "sum of shunt voltages\n"
    return put(root, files)


def jetson_nano(root: Path) -> str:
    """Jetson Nano with JetPack 4: INA3221 under iio, milliwatts."""
    device = "sys/bus/iio/devices/iio:device0"
    files = {**common(), f"{device}/name": "ina3221x\n"}
    for channel, (label, milliwatts) in enumerate([("POM_5V_IN", 2400), ("POM_5V_GPU", 40), ("POM_5V_CPU", 700)]):
        files[f"{device}/rail_name_{channel}"] = f"{label}\n"
        files[f"{device}/in_power{channel}_input"] = f"{milliwatts}\n"
    return put(root, files)


def rk3588(root: Path) -> str:
    """RK3588: three policies (four A55, two and two A76), thermal zones of each, no meter and no flags."""
    files = {
        **common(),
        **policy(0, "ondemand", (1008000, 408000, 1800000), {408000: 10, 1800000: 90}),
        **policy(4, "ondemand", (2256000, 408000, 2256000), {408000: 10, 2256000: 90}),
        **policy(6, "ondemand", (2304000, 408000, 2304000), {408000: 10, 2304000: 90}),
        **zone(0, "soc-thermal", 41000),
        **zone(1, "bigcore0-thermal", 42000),
        **zone(2, "bigcore1-thermal", 42900),
        **cooler(0, "thermal-cpufreq-0", 0),
        **cooler(3, "fdab0000.npu", 0),
    }
    return put(root, files)


def x86(root: Path, core_uj: tuple[int, int] = (5_000_000, 1_000_000)) -> str:
    """A laptop: intel_pstate with energy preference, throttle counts of two cores, RAPL of a package and its cores."""
    files = {
        **common(),
        **policy(0, "powersave", (3400000, 400000, 4600000), {}),
        "sys/devices/system/cpu/cpufreq/policy0/energy_performance_preference": "balance_performance\n",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_driver": "intel_pstate\n",
        "sys/devices/system/cpu/intel_pstate/no_turbo": "0\n",
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
        "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "4\n",
        "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "9\n",
        "sys/devices/system/cpu/cpu1/thermal_throttle/package_throttle_count": "9\n",
        "sys/class/powercap/intel-rapl:0/name": "package-0\n",
        "sys/class/powercap/intel-rapl:0/energy_uj": f"{core_uj[0]}\n",
        "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850\n",
        "sys/class/powercap/intel-rapl:0:0/name": "core\n",
        "sys/class/powercap/intel-rapl:0:0/energy_uj": f"{core_uj[1]}\n",
        "sys/class/powercap/intel-rapl:0:0/max_energy_range_uj": "262143328850\n",
        "sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
        "sys/fs/cgroup/user.slice/cgroup.controllers": "cpu memory\n",
        "sys/fs/cgroup/user.slice/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/user.slice/memory.max": "max\n",
        "sys/fs/cgroup/user.slice/cpu.stat": "usage_usec 1\nnr_periods 10\nnr_throttled 7\nthrottled_usec 3\n",
        "proc/pressure/cpu": "some avg10=0.00 avg60=0.00 avg300=0.00 total=12345\nfull avg10=0.00 total=0\n",
        "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        "proc/pressure/io": "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
    }
    return put(root, files)
