"""Folders that stand in for boards: what Linux shows of them under /proc and /sys, as small as the readers need it.

Layouts are those of the kernel's documentation (ABI/testing/sysfs-devices-system-cpu, hwmon/ina3221.rst,
driver-api/thermal/sysfs-api.rst, admin-guide/cgroup-v2.rst, power/powercap) and of the boards' own tools: Raspberry Pi's
`vcgencmd pmic_read_adc`, NVIDIA's iio nodes of JetPack 4 as jetson_stats reads them.
"""

from __future__ import annotations

from pathlib import Path

CPU = "sys/devices/system/cpu"


def plant(root: Path, files: dict[str, str]) -> str:
    """Write files, those under ``bin`` to be run; the root as text."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
        if "/bin/" in name:
            (root / name).chmod(0o755)
    return str(root)


def cores(parts: list[tuple[str, str, int, int]]) -> dict[str, str]:
    """/proc/cpuinfo and each core's folder, from (implementer, part, kHz, capacity) of every core."""
    blocks = [
        f"processor\t: {n}\nBogoMIPS\t: 48.00\nFeatures\t: fp asimd asimdhp asimddp\n"
        f"CPU implementer\t: {implementer}\nCPU architecture: 8\nCPU part\t: {part}\n\n"
        for n, (implementer, part, _, _) in enumerate(parts)
    ]
    found = {"proc/cpuinfo": "".join(blocks)}
    for n, (_, _, khz, capacity) in enumerate(parts):
        found[f"{CPU}/cpu{n}/cpufreq/cpuinfo_max_freq"] = f"{khz}\n"
        found[f"{CPU}/cpu{n}/cpu_capacity"] = f"{capacity}\n"
    return found


def rk3588(root: Path) -> str:
    """Orange Pi 5: four A55, and two pairs of A76 in policies of their own."""
    parts = [("0x41", "0xd05", 1800000, 530)] * 4 + [("0x41", "0xd0b", 2400000, 1024)] * 4
    zone, cooler = "sys/class/thermal/thermal_zone0", "sys/class/thermal/cooling_device0"
    return plant(
        root,
        cores(parts)
        | {
            "proc/device-tree/compatible": "xunlong,orangepi-5\0rockchip,rk3588s\0",
            f"{zone}/type": "soc-thermal\n", f"{zone}/temp": "41615\n",
            f"{zone}/trip_point_0_type": "passive\n", f"{zone}/trip_point_0_temp": "75000\n",
            f"{zone}/trip_point_1_type": "critical\n", f"{zone}/trip_point_1_temp": "115000\n",
            f"{cooler}/type": "thermal-cpufreq-0\n", f"{cooler}/cur_state": "0\n", f"{cooler}/max_state": "8\n",
            "sys/class/thermal/cooling_device1/type": "pwm-fan\n", "sys/class/thermal/cooling_device1/cur_state": "1\n",
            "proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 2048000 512 100\n",
        },
    )  # fmt: skip


def orin_nano(root: Path) -> str:
    """Jetson Orin Nano, JetPack 6: rails by hwmon, one of them gone; a zone that refuses to be read while asleep."""
    rails, events = "sys/class/hwmon/hwmon1", "sys/class/hwmon/hwmon2"
    files = cores([("0x41", "0xd42", 1510400, 1024)] * 6)
    files |= {
        "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0",
        f"{rails}/name": "ina3221\n",
    }
    for n, label in enumerate(("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"), 1):
        files |= {f"{rails}/in{n}_label": f"{label}\n", f"{rails}/in{n}_input": "5024\n"}
        files |= {f"{rails}/curr{n}_input": "960\n"} if n < 3 else {}
    files |= {f"{events}/name": "soctherm_oc\n", f"{events}/oc1_event_cnt": "0\n"}
    files |= {"sys/class/thermal/thermal_zone0/type": "cv0-thermal\n"}
    return plant(root, files)


def nano(root: Path) -> str:
    """Jetson Nano, JetPack 4: rails by iio."""
    place = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    rails = {f"{place}/rail_name_0": "POM_5V_IN\n", f"{place}/in_power0_input": "1880\n"}
    return plant(root, cores([("0x41", "0xd07", 1428000, 1024)] * 4) | rails)


def pi5(root: Path, program: str = "") -> str:
    """Raspberry Pi 5, whose power chip is asked through the firmware."""
    answer = "     3V3_SYS_A current(1)=0.08002100A\n     VDD_CORE_A current(7)=1.05301000A\n     EXT5V_V volt(24)=5.11104000V\n"
    return plant(
        root,
        cores([("0x41", "0xd0b", 2400000, 1024)] * 4)
        | {
            "proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0",
            "usr/bin/vcgencmd": program or f"#!/bin/sh\ncat <<'.'\n{answer}.\n",
            "sys/class/hwmon/hwmon0/name": "rpi_volt\n",
            "sys/class/hwmon/hwmon0/in0_lcrit_alarm": "0\n",
        },
    )


def n100(root: Path) -> str:
    """An x86 board whose energy counter only root may read: in its place a folder, which nobody can."""
    zone = "sys/class/powercap/intel-rapl:0"
    named = "".join(f"processor\t: {n}\nmodel name\t: Intel(R) N100\nflags\t\t: fpu avx2\n\n" for n in range(4))
    files = {"proc/cpuinfo": named, f"{zone}/name": "package-0\n", f"{zone}/energy_uj/x": ""}
    files |= {f"{CPU}/cpu{n}/cpufreq/cpuinfo_max_freq": "3400000\n" for n in range(4)}
    files |= {f"{CPU}/cpu0/thermal_throttle/package_throttle_count": "0\n"}
    return plant(root, files)
