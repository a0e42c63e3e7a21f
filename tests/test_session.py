"""A session from the host's side: a real agent on this machine, and fakes for devices that lie or die."""

from __future__ import annotations

import fcntl
import math
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest

from bench_remote import PROTOCOL
from bench_remote.phases import MAX_SAMPLES
from edgecompress import devices, records, session
from edgecompress.devices.fake import FakeTransport, Silent, killed
from edgecompress.errors import (
    AgentDied,
    AgentFailed,
    Busy,
    DeviceTimeout,
    RecipeError,
    RecordError,
    Refused,
    RuntimeMissing,
)
from edgecompress.session import events, feeds, stream
from tests.device_fixtures import DOUBLER, ONCE, QUICK, write_artifact

HELLO = {"event": "hello", "protocol": PROTOCOL, "pid": 77, "pgid": 77, "python": "3.11.2", "identity": {}}


def fake(*replies: Any) -> devices.Device:
    return devices.Device("fake", devices.DeviceConfig(host="fake"), FakeTransport(replies=replies))


def test_an_artifact_is_checked_then_timed_in_fresh_processes(local_device: devices.Device, tiny_artifact: Any) -> None:
    artifact, folder = tiny_artifact
    heard: list[str] = []
    measurement = session.measure(local_device, artifact, folder, QUICK, heard.append)
    assert (measurement.device, measurement.transport, measurement.runtime) == ("local", "local", "onnxruntime")
    assert measurement.input == {"source": "golden", "shapes": {"x": [1, 20, 16]}}
    assert measurement.audio_seconds == 2.0
    assert len(measurement.repetitions) == 2
    for repetition in measurement.repetitions:
        assert len(repetition.samples_ns) >= QUICK.min_samples
        assert repetition.golden[0].passed
        assert repetition.peak_rss_bytes >= (repetition.rss_after_load_bytes or math.inf)
        assert "absent" in repetition.facts_before
        assert "absent" in repetition.facts_after
    assert "repetition 2: memory" in heard


def test_a_measurement_survives_its_file(local_device: devices.Device, tiny_artifact: Any, tmp_path: Path) -> None:
    measurement = session.measure(local_device, tiny_artifact[0], tiny_artifact[1], ONCE)
    measurement.write(tmp_path / "measurement.json")
    assert records.Measurement.read(tmp_path / "measurement.json") == measurement


def test_a_second_run_sends_nothing(local_device: devices.Device, tiny_artifact: Any) -> None:
    artifact, folder = tiny_artifact
    payload = sum(file.bytes for file in artifact.files.values())
    assert session.measure(local_device, artifact, folder, ONCE).bytes_sent > payload
    assert session.measure(local_device, artifact, folder, ONCE).bytes_sent == 0


def test_a_wrong_golden_output_is_a_failure_and_nothing_is_timed(local_device: devices.Device, tmp_path: Path) -> None:
    artifact, folder = write_artifact(tmp_path / "wrong", error=0.5)
    heard: list[str] = []
    with pytest.raises(AgentFailed, match=r"golden: output 'y' .* relative error"):
        session.measure(local_device, artifact, folder, ONCE, heard.append)
    assert not any("warmup" in word for word in heard)


def test_another_length_is_timed_after_the_golden_check(local_device: devices.Device, tiny_artifact: Any) -> None:
    from dataclasses import replace

    measurement = session.measure(local_device, tiny_artifact[0], tiny_artifact[1], replace(ONCE, seconds=5.0))
    assert measurement.input == {"source": "golden, fitted", "shapes": {"x": [1, 50, 16]}}
    assert measurement.audio_seconds == 5.0
    assert measurement.repetitions[0].golden[0].passed
    with pytest.raises(RecipeError, match="30 s of audio at most"):
        session.measure(local_device, tiny_artifact[0], tiny_artifact[1], replace(ONCE, seconds=31.0))


def test_a_file_of_fixed_lengths_takes_what_it_holds_and_is_told_how_much_of_it_is_audio(tiny_artifact: Any) -> None:
    audio = tiny_artifact[0].audio.model_copy(update={"lengths": [20, 50], "layout": ["batch", "frames", "16"]})
    x = tiny_artifact[0].inputs[0]
    lengths = records.Tensor(name="lengths", dtype="int32", shape=[1])
    padding = tiny_artifact[0].model_copy(
        update={"audio": audio, "inputs": [x.model_copy(update={"shape": [1, "frames", 16]}), lengths]}
    )
    fitted, seconds = feeds.lengths(padding, 3.1)
    assert (fitted, seconds, feeds.filled(padding, fitted)) == ({"x": [[1, 31]]}, 3.1, {"lengths": 31})
    with pytest.raises(RecipeError, match="takes 5 s of audio at most, asked are 6 s"):
        feeds.lengths(padding, 6.0)
    exact = tiny_artifact[0].model_copy(
        update={"audio": audio, "inputs": [x.model_copy(update={"shape": [1, 50, 16]})]}
    )
    assert feeds.lengths(exact, 2.0) == ({"x": [[1, 20]]}, 2.0)
    assert feeds.filled(exact, {"x": [[1, 20]]}) == {}
    with pytest.raises(RecipeError, match="takes audio of 2, 5 s only, asked are 3 s"):
        feeds.lengths(exact, 3.0)


def test_a_file_that_changed_since_export_is_refused(local_device: devices.Device, tiny_artifact: Any) -> None:
    artifact, folder = tiny_artifact
    numpy.save(folder / "golden/y.npy", numpy.zeros(3))
    with pytest.raises(RecordError, match="wrong hash"):
        session.measure(local_device, artifact, folder, ONCE)


def test_an_object_changed_on_the_device_is_refused_then_sent_anew(
    local_device: devices.Device, tmp_path: Path
) -> None:
    from tests.device_fixtures import write_model

    model = write_model(tmp_path / "big.onnx", extra_bytes=2 << 20)
    session.measure_file(local_device, model, ONCE)
    stored = Path(local_device.config.cache) / "objects" / records.file_sha256(model)
    stored.chmod(0o600)
    content = bytearray(stored.read_bytes())
    content[100] ^= 1
    stored.write_bytes(content)
    with pytest.raises(Refused, match=r"big\.onnx has changed on the device"):
        session.measure_file(local_device, model, ONCE)
    assert session.measure_file(local_device, model, ONCE).bytes_sent == model.stat().st_size


def test_a_plain_file_gets_inputs_of_the_asked_sizes(local_device: devices.Device, tiny_model: Path) -> None:
    measurement = session.measure_file(local_device, tiny_model, ONCE, {"time": 7, "batch": 2})
    assert measurement.input == {"source": "random", "shapes": {"x": [2, 7, 16]}}
    assert (measurement.artifact, measurement.recipe, measurement.audio_seconds) == ("tiny.onnx", "", None)


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_a_plain_file_takes_given_inputs(
    local_device: devices.Device, tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    x = numpy.ones((1, 3, 16), "float32")
    place = tmp_path / ("inputs" if kind == "folder" else "inputs.npz")
    if kind == "folder":
        place.mkdir()
        numpy.save(place / "x.npy", x)
    else:
        numpy.savez(place, x=x)
    measurement = session.measure_file(local_device, tiny_model, ONCE, place)
    assert measurement.input == {"source": "given", "shapes": {"x": [1, 3, 16]}}


def test_pickled_inputs_are_refused_before_anything_is_sent(
    local_device: devices.Device, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "inputs").mkdir()
    numpy.save(tmp_path / "inputs/x.npy", numpy.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(RecipeError, match=r"pickle|allow_pickle"):
        session.measure_file(local_device, tiny_model, ONCE, tmp_path / "inputs")
    assert not Path(local_device.config.cache).exists()


def write_bad_inputs(folder: Path, kind: str) -> Path:
    """A file that is no set of inputs."""
    place = folder / f"bad.{'npy' if kind == 'single' else 'npz'}"
    if kind == "single":
        numpy.save(place, numpy.ones(3))
    elif kind == "unnamed":
        place.write_bytes((write_bad_inputs(folder, "single")).read_bytes())
    else:
        numpy.savez_compressed(place, x=numpy.random.default_rng(0).random(1000))
        whole = place.read_bytes()
        cut = {"empty": b"", "truncated": whole[:500], "damaged": whole[:300] + b"\0" * 300 + whole[600:]}
        place.write_bytes(cut[kind])
    return place


@pytest.mark.parametrize("kind", ["single", "unnamed", "empty", "truncated", "damaged"])
def test_inputs_that_cannot_be_read_are_refused(
    local_device: devices.Device, tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    bad = write_bad_inputs(tmp_path, kind)
    with pytest.raises(RecipeError, match=bad.name) as refused:
        session.measure_file(local_device, tiny_model, ONCE, bad)
    assert ".npz" in refused.value.hint


def test_inputs_that_do_not_fit_the_model_are_named(
    local_device: devices.Device, tiny_model: Path, tmp_path: Path
) -> None:
    numpy.savez(tmp_path / "inputs.npz", x=numpy.ones((1, 3, 17), "float32"))
    with pytest.raises(Refused, match=r"input 'x' has shape \[1, 3, 17\]"):
        session.measure_file(local_device, tiny_model, ONCE, tmp_path / "inputs.npz")


def test_a_broken_model_fails_in_the_runtime_s_own_words(local_device: devices.Device, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model at all")
    with pytest.raises(AgentFailed, match=r"^[A-Z]\w+: .*broken\.onnx"):
        session.measure_file(local_device, tmp_path / "broken.onnx", ONCE)


def test_two_sessions_do_not_measure_at_once(local_device: devices.Device, tiny_model: Path) -> None:
    from dataclasses import replace

    lock = Path(local_device.config.cache) / "lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="another session"):
            session.measure_file(local_device, tiny_model, replace(ONCE, busy_wait_s=0.3))
    assert session.measure_file(local_device, tiny_model, ONCE).repetitions


def test_a_stranger_s_runtime_travels_with_the_agent(
    local_device: devices.Device, tiny_model: Path, stranger: Any
) -> None:
    measurement = session.measure_file(local_device, tiny_model, ONCE, runtime=stranger("doubler", DOUBLER))
    assert (measurement.runtime, measurement.runtime_version) == ("doubler", "1")
    probed = session.probe(local_device)
    assert probed.runtimes["doubler"] == "1"
    assert probed.runtimes["onnxruntime"]


def test_a_crashing_runtime_is_absent_in_a_probe_with_its_signal(local_device: devices.Device, stranger: Any) -> None:
    probed = session.probe(local_device) if stranger("crasher", "os.kill(os.getpid(), signal.SIGSEGV)") else None
    assert probed is not None
    assert probed.runtimes["crasher"] is None
    assert "SIGSEGV" in probed.absent["crasher"]


def test_a_missing_runtime_says_how_to_install_it(
    local_device: devices.Device, tiny_model: Path, stranger: Any
) -> None:
    with pytest.raises(RuntimeMissing, match="No module named 'tensorfloat'") as missing:
        session.measure_file(local_device, tiny_model, ONCE, runtime=stranger("floaty", "import tensorfloat"))
    assert "pip install floaty" in missing.value.hint


def test_a_device_that_dies_while_loading_is_reported_with_its_last_event(tiny_model: Path) -> None:
    device = fake(HELLO, killed(137))
    with pytest.raises(AgentDied, match="137 after 'hello'"):
        session.measure_file(device, tiny_model, ONCE)
    assert isinstance(device.transport, FakeTransport)
    assert device.transport.processes[-1].was_killed


def test_an_agent_that_says_nothing_more_is_ended(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setattr(stream, "GRACE_S", 0.0)
    device = fake(HELLO, Silent())
    with pytest.raises(DeviceTimeout, match="last event 'hello'"):
        session.measure_file(device, tiny_model, replace(ONCE, timeout_s=0.1))
    assert isinstance(device.transport, FakeTransport)
    assert device.transport.processes[-1].was_killed


def test_a_done_without_its_repetitions_is_not_believed(tiny_model: Path) -> None:
    with pytest.raises(AgentFailed, match="repetition 1 has no"):
        session.measure_file(fake(HELLO, {"event": "done"}), tiny_model, ONCE)


@pytest.mark.parametrize(
    "line",
    [
        b'{"event": "samples", "ns": [NaN]}',
        b'{"event": "samples", "ns": [-1]}',
        b'{"event": "samples", "ns": "many"}',
        b'{"event": "memory", "peak_rss_bytes": 1e300}',
        b'{"event": "facts", "when": "before", "facts": {"a": [' + b"0," * 70000 + b"0]}}",
        b'{"event": "facts", "when": "before", "facts": ' + b'{"a":' * 50 + b"1" + b"}" * 50 + b"}",
        b'{"event": "facts", "when": "before", "facts": ' + b"[" * 100000 + b"]" * 100000 + b"}",
        b'{"event": "eval", "code": "1"}',
        b"[]",
        b"\xff\xfe",
    ],
)
def test_a_hostile_event_ends_the_session_and_nothing_else(line: bytes, tiny_model: Path) -> None:
    with pytest.raises(AgentFailed, match="not an event"):
        session.measure_file(fake(HELLO, line + b"\n"), tiny_model, ONCE)


def test_an_event_that_is_nested_too_deep_is_refused_whatever_the_limit_of_recursion() -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)  # as litert-torch does when it is imported
    try:
        for deep in (b"[" * 100_000, b'{"a":' * 100_000, b'{"b": "]", "a": [' * 60_000):
            with pytest.raises(AgentFailed, match="not an event"):
                events.parse(b'{"event": "facts", "when": "before", "facts": ' + deep)
    finally:
        sys.setrecursionlimit(before)


def test_escape_sequences_from_a_device_never_reach_a_terminal() -> None:
    event = events.parse(b'{"event": "failed", "kind": "error", "message": "\\u001b[2Jgone"}')
    assert isinstance(event, events.Failed)
    assert event.message == " [2Jgone"


def test_a_plan_names_every_impossible_number() -> None:
    with pytest.raises(RecipeError, match="threads = 0, repetitions = 0"):
        session.Plan(threads=0, repetitions=0)


def test_a_plan_asks_for_no_more_samples_than_the_agent_takes() -> None:
    assert session.Plan(min_samples=MAX_SAMPLES).min_samples == MAX_SAMPLES
    with pytest.raises(RecipeError, match="min_samples"):
        session.Plan(min_samples=MAX_SAMPLES + 1)
