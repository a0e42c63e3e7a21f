"""What a probe learns of a board: read from folders that stand in for boards, checked by the host, held to a profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench_remote import board as reader
from edgecompress import devices
from edgecompress.devices import board, programs
from edgecompress.devices.config import DeviceConfig
from edgecompress.devices.fake import FakeTransport, Killed, Silent
from edgecompress.devices.profile import profile
from edgecompress.errors import AgentDied, AgentFailed, Busy, DeviceError, DeviceFull, DeviceTimeout, Refused
from tests import boards
from tests.calling import Call


def test_cores_of_two_kinds_are_told_apart_and_the_strong_ones_come_first(tmp_path: Path) -> None:
    found = reader.clusters(boards.rk3588(tmp_path))
    assert [(one["core"], one["ids"], one["khz_max"], one["capacity"]) for one in found] == [
        ("cortex-a76", [4, 5, 6, 7], 2400000, 1024),
        ("cortex-a55", [0, 1, 2, 3], 1800000, 530),
    ]


def test_a_core_without_an_entry_in_cpuinfo_is_named_by_its_register(tmp_path: Path) -> None:
    root = boards.rk3588(tmp_path)
    text = (tmp_path / "proc/cpuinfo").read_text()
    (tmp_path / "proc/cpuinfo").write_text(text[: text.index("processor\t: 7")])
    boards.plant(tmp_path, {f"{boards.CPU}/cpu7/regs/identification/midr_el1": "0x00000000414fd0b0\n"})
    assert reader.clusters(root)[0] == {"core": "cortex-a76", "ids": [4, 5, 6, 7], "khz_max": 2400000, "capacity": 1024}


def test_a_core_that_no_table_knows_keeps_its_numbers(tmp_path: Path) -> None:
    root = boards.plant(tmp_path, boards.cores([("0x61", "0x032", 3200000, 1024)]))
    assert reader.clusters(root)[0]["core"] == "0x61/0x032"


def test_zones_trips_and_what_shows_throttling_are_found(tmp_path: Path) -> None:
    root = boards.rk3588(tmp_path)
    assert reader.thermal_zones(root) == [
        {
            "zone": "thermal_zone0", "type": "soc-thermal", "celsius": 41.615, "why": "",
            "trips": [["passive", 75.0], ["critical", 115.0]],
        }
    ]  # fmt: skip
    source = {"kind": "cooling_state", "path": "/sys/class/thermal/cooling_device0/cur_state", "why": ""}
    assert reader.throttle_sources(root) == [source], "a fan that turns is no throttling"


def test_a_zone_that_refuses_to_be_read_is_there_with_its_reason(tmp_path: Path) -> None:
    zone = reader.thermal_zones(boards.orin_nano(tmp_path))[0]
    assert (zone["type"], zone["celsius"], zone["why"]) == ("cv0-thermal", None, "no such file or directory")


def test_rails_of_a_jetson_are_read_by_hwmon_and_by_the_older_iio(tmp_path: Path) -> None:
    new = reader.rails(boards.orin_nano(tmp_path / "new"))
    assert [(one["name"], bool(one["why"])) for one in new] == [
        ("VDD_IN", False), ("VDD_CPU_GPU_CV", False), ("VDD_SOC", True),
    ]  # fmt: skip
    old = reader.rails(boards.nano(tmp_path / "old"))
    assert [(one["meter"], one["name"], one["why"]) for one in old] == [("ina3221", "POM_5V_IN", "")]
    assert [one["kind"] for one in reader.throttle_sources(str(tmp_path / "new"))] == ["jetson_over_current"]


def test_rails_of_a_pi_5_are_those_with_a_current(tmp_path: Path) -> None:
    root = boards.pi5(tmp_path)
    assert [(one["meter"], one["name"]) for one in reader.rails(root)] == [("pmic", "3V3_SYS"), ("pmic", "VDD_CORE")]
    assert {one["kind"] for one in reader.throttle_sources(root)} == {"vcgencmd", "rpi_volt"}


def test_a_meter_that_refuses_says_why(tmp_path: Path) -> None:
    refused = boards.pi5(tmp_path / "pi", "#!/bin/sh\necho 'Can not open device /dev/vcio' >&2\nexit 255\n")
    assert reader.rails(refused)[0]["why"] == "Can not open device /dev/vcio"
    counter = reader.rails(boards.n100(tmp_path / "n100"))[0]
    assert (counter["meter"], counter["name"], counter["why"]) == ("rapl", "package-0", "is a directory")


def test_a_container_s_tightest_limits_are_found_on_the_way_up(tmp_path: Path) -> None:
    top = "sys/fs/cgroup"
    root = boards.plant(
        tmp_path / "v2",
        {
            "proc/self/cgroup": "0::/machine/box\n",
            f"{top}/cgroup.controllers": "cpu memory\n",
            f"{top}/machine/cpu.max": "50000 100000\n",
            f"{top}/machine/box/cpu.max": "max 100000\n",
            f"{top}/machine/box/memory.max": "536870912\n",
            f"{top}/machine/box/cpu.stat": "usage_usec 1\nnr_throttled 7\n",
        },
    )
    wanted = {"version": 2, "cpus": 0.5, "memory_bytes": 512 << 20, "throttled_periods": 7}
    assert reader.cgroup(root) == wanted
    older = boards.plant(
        tmp_path / "v1",
        {
            "proc/self/cgroup": "4:memory:/box\n3:cpu,cpuacct:/box\n0::/\n",
            f"{top}/cpu/cpu.cfs_quota_us": "-1\n",
            f"{top}/cpu/box/cpu.cfs_quota_us": "150000\n",
            f"{top}/cpu/box/cpu.cfs_period_us": "100000\n",
            f"{top}/memory/box/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert reader.cgroup(older) == {"version": 1, "cpus": 1.5, "memory_bytes": None, "throttled_periods": None}


def test_swap_in_compressed_memory_is_called_so(tmp_path: Path) -> None:
    area = reader.swap(boards.rk3588(tmp_path))[0]
    assert (area["zram"], area["bytes"], area["used_bytes"]) == (True, 2048000 << 10, 512 << 10)


def test_every_detail_that_is_not_there_has_a_reason_and_nonsense_breaks_nothing(tmp_path: Path) -> None:
    found = reader.details(str(tmp_path / "nothing"), "/")
    assert set(found["absent"]) == {"clusters", "cgroup", "thermal_zones", "throttle_sources", "rails", "swap"}
    assert all(found["absent"].values())
    odd = {
        "proc/swaps": "x\ny z\n",
        "proc/self/cgroup": "no colons\n",
        "proc/cpuinfo": "CPU part : 0xzz\nprocessor : 0\n",
    }
    assert board.parse(reader.details(boards.plant(tmp_path, odd), "/")).clusters == []


@pytest.mark.parametrize("plant", [boards.rk3588, boards.orin_nano, boards.nano, boards.pi5, boards.n100])
def test_what_a_board_tells_is_what_the_host_takes(plant: Any, tmp_path: Path) -> None:
    told = json.loads(json.dumps(reader.details(plant(tmp_path), str(tmp_path / "not/yet/there"))))
    found = board.parse(told)
    assert found.clusters
    assert found.python is not None
    assert found.disk_free_bytes


def test_this_machine_tells_of_itself(local_device: devices.Device) -> None:
    found = board.read(local_device)
    assert found.python is not None
    assert found.usable_cores
    assert not Path(local_device.config.cache).exists(), "asking leaves nothing behind"


@pytest.mark.parametrize(
    ("name", "plant", "facts", "lines"),
    [
        ("orangepi5", boards.rk3588, {"mem_total_bytes": 8 << 30}, []),
        ("rpi5-8gb", boards.pi5, {"mem_total_bytes": 8060 << 20}, []),
        ("rpi5-8gb", boards.pi5, {"mem_total_bytes": 4040 << 20}, ["ram: the profile says 8192 MiB, the device has 4040 MiB"]),
        ("rpi4b", boards.pi5, {"isa": "asimd crc32 aes"}, [
            "isa: the device has aes, which this board does not",
            "cores: the profile says cortex-a72, the device has cortex-a76",
            "clock: the profile says 1800 MHz for cortex-a72, the device 2400 MHz",
        ]),
        ("jetson-orin-nano", boards.rk3588, {}, [
            "cores: the profile says 6, the device has 8",
            "cores: the profile says cortex-a78ae, the device has cortex-a55, cortex-a76",
            "clock: the profile says 1510 MHz for cortex-a78ae, the device 1800 MHz",
            "clock: the profile says 1510 MHz for cortex-a78ae, the device 2400 MHz",
            "rails: the profile says ina3221, the device shows none",
        ]),
        ("n100", boards.n100, {"machine": "x86_64", "isa": "avx2 fma avx_vnni"}, [
            "rails: rapl is there but cannot be read: is a directory",
        ]),
    ],
)  # fmt: skip
def test_what_a_device_has_otherwise_than_its_profile_is_told_line_by_line(
    name: str, plant: Any, facts: dict[str, Any], lines: list[str], tmp_path: Path
) -> None:
    known = profile(name)
    identity = {"machine": "aarch64", "isa": " ".join(known.cpu.isa), **facts}
    found = board.parse(reader.details(plant(tmp_path), "/"))
    assert board.disagreements(known, identity, found) == lines


def test_core_numbers_are_written_as_taskset_writes_them() -> None:
    assert [board.as_ranges(ids) for ids in ([], [3], [0, 1, 2, 5, 7, 6])] == ["", "3", "0-2,5-7"]


@pytest.mark.parametrize(
    "change",
    [
        {"clusters": [{"core": "x", "ids": [99999]}]},
        {"clusters": [{"core": "x" * 5000, "ids": [0]}]},
        {"disk_free_bytes": -1},
        {"glibc": "2.36; rm"},
        {"cgroup": {"version": 3}},
        {"python": {"version": [3, 11], "implementation": "cpython", "bits": 64, "machine": "x"}},
    ],
)
def test_what_no_board_could_say_of_itself_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(AgentFailed, match=next(iter(change))):
        board.parse(change)


def fake(*replies: Any) -> devices.Device:
    return devices.Device("fake", DeviceConfig(transport="local"), FakeTransport(replies=replies))


@pytest.mark.parametrize(
    ("replies", "error", "word"),
    [
        ([b'edgecompress {"board": 7}\n'], AgentFailed, "impossible"),
        ([b"edgecompress [1]\n"], AgentFailed, "not an object"),
        ([b"edgecompress {{{\n"], AgentFailed, "not JSON"),
        ([b'edgecompress {"x": NaN}\n'], AgentFailed, "not JSON"),
        ([b'edgecompress {"x": ' + b"[" * 3000 + b"]" * 3000 + b"}\n"], AgentFailed, "not JSON"),
        ([b'edgecompress {"x": ' + b"[" * 9000 + b"}\n"], AgentFailed, "larger"),
        ([b'edgecompress {"x": "' + b"x" * (2 << 20) + b'"}\n'], AgentFailed, "larger"),
        ([b'edgecompress {"done": true}\n'], AgentFailed, "nothing"),
        ([b'edgecompress {"error": "full", "message": "no space"}\n'], DeviceFull, "no space"),
        ([b'edgecompress {"error": "python", "message": "Python 3.6"}\n'], Refused, "3.6"),
        ([b'edgecompress {"error": "lock", "message": "busy"}\n'], Busy, "busy"),
        ([b'edgecompress {"error": "odd\\u001b[2J", "message": "x\\u001b[2Jy"}\n'], Refused, r"x \[2Jy"),
        ([b"WELCOME\n", Killed(-11, b"oh\x1b")], AgentDied, "status -11; it said: oh"),
        ([Killed(127, b"python3: not found")], Refused, "not found"),
    ],
)
def test_a_bad_answer_is_an_error_and_not_a_crash(replies: list[Any], error: type[DeviceError], word: str) -> None:
    with pytest.raises(error, match=word):
        board.read(fake(*replies))


def test_a_device_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "GRACE_S", 0.0)
    silent = fake(Silent())
    with pytest.raises(DeviceTimeout):
        board.read(silent, timeout_s=0.01)
    assert silent.transport.processes[0].was_killed  # type: ignore[attr-defined]


def test_a_probe_tells_details_wheels_and_what_disagrees(call: Call) -> None:
    told = json.loads(call("device", "probe", "local", "--json").out)
    assert told["board"]["python"]["version"][0] == 3
    assert set(told["wheels"]) >= {"onnxruntime", "openvino", "tflite"}
    assert told["disagreements"] == []
    text = call("device", "probe", "local").out
    assert "wheel onnxruntime" in text
    assert "cores usable" in text
