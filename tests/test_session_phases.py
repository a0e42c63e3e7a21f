"""Phases, scenarios and passes as a host sees them: a real agent on this machine, and devices that lie about them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest

from edgecompress import devices, records, session
from edgecompress.errors import AgentFailed, Refused
from edgecompress.session import events, stream
from tests.device_fixtures import DOUBLER, ONCE


def test_a_repetition_keeps_its_clock_loads_and_how_its_phases_ended(
    local_device: devices.Device, tiny_artifact: Any
) -> None:
    one = session.measure(local_device, *tiny_artifact, ONCE).repetitions[0]
    assert one.clock_before[0].iterations == one.clock_after[0].iterations
    assert len(one.clock_before[0].ns) == 3
    assert one.page_cache is not None
    assert one.page_cache.pages == 1
    assert (one.page_cache.state == "cold") == (one.page_cache.resident == 0)
    assert one.first_load_s is not None
    assert one.warmup_ended in ("steady", "runs")
    assert one.steady is not None
    assert one.steady.ended == "enough"
    assert one.steady.ended_ns - one.steady.started_ns >= sum(one.samples_ns)


def test_the_clock_is_measured_on_each_core_that_is_used(local_device: devices.Device, tiny_model: Path) -> None:
    import os

    cores = tuple(sorted(os.sched_getaffinity(0)))[:2]
    one = session.measure_file(local_device, tiny_model, replace(ONCE, affinity=cores)).repetitions[0]
    assert tuple(loop.core for loop in one.clock_after) == cores


def test_a_paced_stream_counts_from_when_each_run_was_due(local_device: devices.Device, stranger: Any) -> None:
    slow = DOUBLER.replace("lambda feeds: {", "lambda feeds: time.sleep(0.02) or {")
    plan = replace(ONCE, scenario="paced_stream", hop_s=0.01, min_samples=8)
    path = Path(__file__).parent / "device_fixtures.py"
    measurement = session.measure_file(local_device, path, plan, runtime=stranger("slow", slow))
    one = measurement.repetitions[0]
    assert one.arrivals is not None
    assert one.arrivals.scheduled_ns == [number * 10_000_000 for number in range(len(one.samples_ns))]
    assert one.samples_ns == one.arrivals.latencies_ns()
    assert one.samples_ns[-1] > one.samples_ns[0] + 7 * 9_000_000  # each run is late by all that came before it
    assert measurement.plan["scenario"] == "paced_stream"


def test_offline_feeds_batches_and_counts_all_of_their_audio(local_device: devices.Device, tiny_artifact: Any) -> None:
    measurement = session.measure(local_device, *tiny_artifact, replace(ONCE, scenario="offline", batch=3))
    assert measurement.input["shapes"] == {"x": [3, 20, 16]}
    assert measurement.audio_seconds == 6.0
    assert measurement.repetitions[0].golden[0].passed


def test_a_file_of_a_fixed_batch_takes_no_other(local_device: devices.Device, stranger: Any) -> None:
    path = Path(__file__).parent / "device_fixtures.py"
    plan = replace(ONCE, scenario="offline", batch=2)
    with pytest.raises(Refused, match="'x' takes a batch of 3 only, asked are 2"):
        session.measure_file(local_device, path, plan, runtime=stranger("doubler", DOUBLER))


def test_memory_is_looked_at_in_a_process_of_its_own_from_the_import_on(
    local_device: devices.Device, tiny_artifact: Any
) -> None:
    found = session.measure(local_device, *tiny_artifact, ONCE).memory_pass
    assert found is not None
    assert found.absent is None
    assert found.runs >= 1
    assert found.baseline["peak_rss_bytes"] <= found.loaded["peak_rss_bytes"] <= found.steady["peak_rss_bytes"]
    assert found.baseline["anonymous_bytes"] + found.baseline["file_bytes"] <= found.baseline["peak_rss_bytes"]
    assert session.measure(local_device, *tiny_artifact, replace(ONCE, memory_pass=False)).memory_pass is None


@pytest.mark.parametrize(
    ("name", "end", "word"),
    [
        ("killed", "os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("raising", 'raise RuntimeError("no room")', "RuntimeError: no room"),
    ],
)
def test_a_pass_that_dies_is_absent_and_the_samples_stay(
    local_device: devices.Device, stranger: Any, tmp_path: Path, name: str, end: str, word: str
) -> None:
    """The runtime loads a model twice in its life, as a repetition does; a third time it ends as it is told to."""
    count = tmp_path / "loads"
    dying = f"""
if path:
    with open({str(count)!r}, "a") as stream: stream.write("x")
    if os.path.getsize({str(count)!r}) > 2: {end}
{DOUBLER.strip()}
"""
    path = Path(__file__).parent / "device_fixtures.py"
    measurement = session.measure_file(local_device, path, ONCE, runtime=stranger(name, dying))
    assert len(measurement.repetitions[0].samples_ns) >= 3
    assert measurement.memory_pass is not None
    assert word in (measurement.memory_pass.absent or "")


def test_operators_of_an_onnx_file_are_told_by_name_for_each_run(
    local_device: devices.Device, tiny_model: Path
) -> None:
    measurement = session.measure_file(local_device, tiny_model, replace(ONCE, profile_operators=True))
    assert measurement.operators is not None
    assert [one.op for one in measurement.operators.operators] == ["MatMul"]
    assert len(measurement.operators.operators[0].ns) == 5
    assert session.measure_file(local_device, tiny_model, ONCE).operators is None


def test_operators_are_told_by_openvino_too(local_device: devices.Device, tiny_model: Path) -> None:
    pytest.importorskip("openvino")
    plan = replace(ONCE, profile_operators=True)
    found = session.measure_file(local_device, tiny_model, plan, runtime="openvino").operators
    assert found is not None
    assert "FullyConnected" in [one.op for one in found.operators]


def test_a_runtime_without_a_profile_says_so(local_device: devices.Device, stranger: Any) -> None:
    path = Path(__file__).parent / "device_fixtures.py"
    plan = replace(ONCE, profile_operators=True)
    found = session.measure_file(local_device, path, plan, runtime=stranger("doubler", DOUBLER)).operators
    assert found is not None
    assert (found.operators, found.absent) == ([], "this runtime has no profile of its operators")


@pytest.mark.parametrize(
    "line",
    [
        b'{"event": "clock", "when": "before", "loops": []}',
        b'{"event": "clock", "when": "before", "loops": [{"core": 0, "iterations": 0, "ns": [1]}]}',
        b'{"event": "arrivals", "scheduled_ns": [0], "start_ns": [0, 1], "end_ns": [1]}',
        b'{"event": "arrivals", "scheduled_ns": [5], "start_ns": [4], "end_ns": [6]}',
        b'{"event": "arrivals", "scheduled_ns": [5, 4], "start_ns": [5, 5], "end_ns": [6, 6]}',
        b'{"event": "steady", "ended": "tired", "started_ns": 0, "ended_ns": 1, "major_faults": 0, "cpu_s": 0}',
        b'{"event": "memory_pass", "baseline": {"rss_bytes": -1}}',
        b'{"event": "memory_pass", "baseline": {"' + b"a" * 100 + b'": 1}}',
        b'{"event": "operators", "operators": [{"op": "' + b"a" * 300 + b'", "name": "b", "ns": [1]}]}',
        b'{"event": "operators", "operators": [' + b'{"op": "a", "name": "b", "ns": [1]},' * 1000
        + b'{"op": "a", "name": "b", "ns": [1]}]}',
    ],
)  # fmt: skip
def test_what_a_device_tells_of_its_phases_is_not_believed_unchecked(line: bytes) -> None:
    with pytest.raises(AgentFailed, match="not an event"):
        events.parse(line)


def test_a_device_cannot_tell_operators_without_end() -> None:
    line = b'{"event": "operators", "operators": [' + b'{"op": "a", "name": "b", "ns": [1]},' * 999
    event = events.parse(line + b'{"op": "a", "name": "b", "ns": [1]}]}')
    collector = stream.Collector()
    with pytest.raises(AgentFailed, match="operators"):
        for _ in range(21):
            collector.take(event)


def test_a_measurement_of_before_there_were_phases_is_still_read(
    local_device: devices.Device, tiny_artifact: Any, tmp_path: Path
) -> None:
    import json

    measured = session.measure(local_device, *tiny_artifact, replace(ONCE, memory_pass=False))
    measured.write(tmp_path / "new.json")
    values = json.loads((tmp_path / "new.json").read_text())
    for name in ("memory_pass", "operators"):
        del values[name]
    for name in ("first_load_s", "page_cache", "clock_before", "clock_after", "warmup_ended", "steady", "arrivals"):
        del values["repetitions"][0][name]
    (tmp_path / "old.json").write_text(json.dumps(values))
    old = records.Measurement.read(tmp_path / "old.json")
    assert old.repetitions[0].samples_ns == measured.repetitions[0].samples_ns
    assert old.repetitions[0].steady is None


def test_only_the_model_s_own_files_are_put_out_of_the_page_cache() -> None:
    from bench_remote.worker import _of_the_model

    golden = {"inputs": {"x": "golden/x.npy"}, "outputs": {"y": "golden/y.npy"}}
    files = dict.fromkeys(["m.xml", "m.bin", "golden/x.npy", "golden/y.npy", "inputs/0.npy", "inputs/audio.npy"], "")
    job = {"files": files, "golden": golden, "inputs": {"x": "inputs/0.npy"}, "audio": "inputs/audio.npy"}
    assert _of_the_model(job) == ["m.xml", "m.bin"]


def test_arrays_of_a_free_batch_are_repeated_to_the_one_that_is_asked() -> None:
    from bench_remote import tensors

    inputs = [{"name": "x", "dtype": "float32", "shape": ["batch", 2]}]
    x = numpy.array([[1, 2], [3, 4]], "float32")
    assert tensors.batched(inputs, {"x": x}, 3)["x"].tolist() == [[1, 2], [3, 4], [1, 2]]
    assert tensors.batched(inputs, {"x": x}, 1)["x"].tolist() == [[1, 2]]
