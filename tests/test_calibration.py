"""Calibrating: raw samples of fixed work with their conditions, and what goes wrong on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from bench_remote import calibrate as stages
from edgecompress import devices
from edgecompress.devices import calibration, programs
from edgecompress.devices.config import DeviceConfig
from edgecompress.devices.fake import FakeTransport, Killed
from edgecompress.errors import AgentDied, AgentFailed, DeviceTimeout, RecordError
from tests.calling import Call
from tests.device_fixtures import gone

SMALL: dict[str, Any] = {"sizes": (16, 64), "seconds": 0.0, "threads": (1,)}


def test_the_graph_that_is_written_by_hand_is_a_valid_model_that_multiplies() -> None:
    onnx = pytest.importorskip("onnx")
    weights = numpy.random.default_rng(0).standard_normal((300, 300)).astype("float32")
    model = onnx.load_from_string(stages.matmul_model(300, weights.tobytes()))
    onnx.checker.check_model(model, full_check=True)
    assert (onnx.numpy_helper.to_array(model.graph.initializer[0]) == weights).all()


def test_a_calibration_is_stored_with_raw_samples_and_conditions(local_device: devices.Device) -> None:
    made = calibration.calibrate(local_device, **SMALL)
    assert calibration.read("local") == made
    assert [(one.library, one.size) for one in made.matmul] == [
        ("numpy", 16), ("numpy", 64), ("onnxruntime", 16), ("onnxruntime", 64),
    ]  # fmt: skip
    assert {one.kind for one in made.memory} == {"copy", "read"}
    assert [one.core for one in made.clock] == made.affinity
    assert all(len(one.ns) >= 3 for one in [*made.memory, *made.matmul, *made.clock])
    assert made.absent == {}
    assert made.identity["machine"]
    assert made.state_before["load_1min"] >= 0
    assert not (Path(local_device.config.cache) / "objects").exists(), "nothing is sent for it"


def test_a_rate_is_that_of_the_best_sample() -> None:
    one = calibration.Product(library="numpy", threads=1, size=100, inner=2, ns=[4_000_000, 2_000_000], version="2")
    assert one.gmacs_per_s == pytest.approx(1.0)
    assert calibration.Pass(kind="copy", threads=1, bytes=8, ns=[4, 2], version="2").gb_per_s == 4.0


def test_over_ssh_too(ssh_device: Callable[..., devices.Device]) -> None:
    made = calibration.calibrate(ssh_device(), **SMALL)
    assert {one.library for one in made.matmul} == {"numpy", "onnxruntime"}
    assert made.device == "loopback"


def test_a_library_that_is_not_there_costs_its_stages_and_the_rest_is_kept(
    ssh_device: Callable[..., devices.Device],
) -> None:
    made = calibration.calibrate(ssh_device(site=""), **SMALL)
    assert set(made.absent) == {"memory x1", "numpy x1", "onnxruntime x1"}
    assert all("numpy" in why for why in made.absent.values())
    assert made.clock


def replies(stage: dict[str, Any], *more: Any) -> list[Any]:
    state = {"state": {"load_1min": 0.1}, "when": "before", "identity": {"machine": "aarch64"}}
    told = {"board": {"usable_cores": [0, 1], "clusters": [{"core": "cortex-a53", "ids": [0, 1]}]}}
    return [b"edgecompress " + json.dumps(one).encode() + b"\n" for one in (told | state, stage)] + list(more)


@pytest.mark.parametrize(
    "wrong", [{"core": 0, "iterations": 5, "ns": []}, {"core": 0, "iterations": 5, "ns": [0]}, {"core": -1}, {"odd": 1}]
)
def test_samples_that_no_board_could_have_are_refused(wrong: dict[str, Any], device_home: Path) -> None:
    device = devices.Device("fake", DeviceConfig(transport="local"), FakeTransport(replies=replies(wrong)))
    with pytest.raises(AgentFailed, match="impossible clock sample"):
        calibration.calibrate(device)
    assert not calibration.path_of("fake").exists()


def test_a_device_that_dies_in_the_first_stage_is_an_error_and_leaves_no_record(device_home: Path) -> None:
    chain = {"core": 0, "iterations": 5, "ns": [9]}
    device = devices.Device("fake", DeviceConfig(transport="local"), FakeTransport(replies=replies(chain, Killed(-9))))
    with pytest.raises(AgentDied):
        calibration.calibrate(device)
    assert not calibration.path_of("fake").exists()


LONG = {
    "stage": "numpy",
    "threads": 1,
    "affinity": [],
    "sizes": [256] * 1000,
    "seconds": 60.0,
    "busy_wait_s": 1.0,
    "site": "",
}


@pytest.mark.parametrize("over_ssh", [False, True], ids=["local", "ssh"])
def test_a_program_ends_with_the_connection_that_it_was_started_on(
    over_ssh: bool, ssh_device: Callable[..., devices.Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = ssh_device() if over_ssh else devices.open_device("local")
    started: list[Any] = []
    start = device.transport.start
    monkeypatch.setattr(device.transport, "start", lambda argv: (started.append(start(argv)), started[-1])[1])
    order = LONG | {"cache": device.config.cache, "site": device.config.site}
    answers = programs.run(device, "calibrate", order, 120)
    next(answers)
    started[0].end_input()
    assert gone([started[0].group])
    answers.close()


def test_a_program_that_takes_too_long_ends_itself(local_device: devices.Device) -> None:
    order = LONG | {"cache": local_device.config.cache}
    with pytest.raises(DeviceTimeout, match="not done in time"):
        list(programs.run(local_device, "calibrate", order, 2.0))


def test_one_that_was_never_calibrated_is_told_how() -> None:
    with pytest.raises(RecordError) as missing:
        calibration.read("kitchen-pi")
    assert "device calibrate kitchen-pi" in missing.value.hint


def test_the_command_line_prints_rates_and_stores_samples(call: Call) -> None:
    answer = call("device", "calibrate", "local", "--seconds", "0", "--threads", "1")
    assert answer.status == 0
    assert "numpy matmul 1024" in answer.out
    assert calibration.read("local").matmul
    assert call("device", "calibrate", "local", "--threads", "0").is_refused()
    assert call("device", "calibrate", "local", "--affinity", "x").is_refused()
