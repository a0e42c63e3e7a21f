"""Fixtures for devices: a real sshd on loopback, a private home, a tiny model, and strangers' runtimes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from edgecompress import devices, plugins, records, session
from edgecompress.session import link
from tests import sshd

QUICK = session.Plan(repetitions=2, warmup_s=0.05, min_samples=5, min_seconds=0.05, max_seconds=1, timeout_s=60)
ONCE = session.Plan(repetitions=1, warmup_s=0.0, min_samples=3, min_seconds=0.0, max_seconds=1, timeout_s=60)


@pytest.fixture(scope="session")
def loopback() -> Iterator[sshd.Sshd]:
    """A running sshd with a user and keys of its own."""
    running = sshd.start()
    yield running
    running.stop()


@pytest.fixture
def device_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration folder and a user's home with nothing in them: no devices, keys, known hosts or ssh-agent."""
    (tmp_path / "user/.ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("EDGECOMPRESS_HOME", str(tmp_path / "edgecompress"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr(link, "LEASE_FOLDERS", ())  # tests side by side do not wait for each other
    return tmp_path / "edgecompress"


@pytest.fixture
def ssh_device(loopback: sshd.Sshd, device_home: Path) -> Iterator[Callable[..., devices.Device]]:
    """Adds and opens the loopback device, with an empty cache of its own unless one is given."""
    opened = []

    def add(name: str = "loopback", **more: Any) -> devices.Device:
        more = {"cache": str(loopback.home / f"cache-{secrets.token_hex(4)}"), **more}
        values = loopback.values(**more)
        _, fingerprint = devices.fetch_host_key(values)
        devices.add_device(name, values, fingerprint=fingerprint, replace=True)
        opened.append(devices.open_device(name))
        return opened[-1]

    yield add
    for device in opened:
        device.close()


@pytest.fixture
def local_device(device_home: Path) -> devices.Device:
    """This machine, with a cache of its own."""
    return devices.open_device("local")


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """``y = x @ w`` with x (batch, time, 16) and y (batch, time, 4), as ONNX."""
    return write_model(tmp_path / "tiny.onnx")


@pytest.fixture
def tiny_artifact(tmp_path: Path) -> tuple[records.Artifact, Path]:
    """The tiny model as an artifact of two seconds at ten frames a second, with its golden input and output."""
    return write_artifact(tmp_path / "artifact")


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], str]]:
    """Installs a runtime as anybody could, by an entry point, from the body of its function; returns its name."""
    place = tmp_path / "installed"

    def install(name: str, body: str) -> str:
        info = place / f"{name}-1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[edgecompress.runtimes]\n{name} = runtime_{name}:{name}\n")
        lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
        text = f'import os, signal, sys, time\n\n\ndef {name}(path, options):\n    """For a test."""\n{lines}\n'
        (place / f"runtime_{name}.py").write_text(text)
        monkeypatch.syspath_prepend(str(place))
        plugins._entry_points.cache_clear()
        return name

    yield install
    plugins._entry_points.cache_clear()


# A runtime's body that works: doubles its input.
DOUBLER = """
about = {"version": "1", "import_s": 0.0, "options": {}}
about["outputs"] = [{"name": "y", "dtype": "float32", "shape": [3]}]
about["inputs"] = [{"name": "x", "dtype": "float32", "shape": [3]}]
return (lambda feeds: {"y": feeds["x"] * 2}), about
"""
# One that loads and then never answers.
SLEEPER = DOUBLER.replace("lambda feeds: {", "lambda feeds: time.sleep(600) or {")


def write_model(path: Path, features: int = 16, outputs: int = 4, extra_bytes: int = 0) -> Path:
    """Write the tiny model; ``extra_bytes`` makes its file larger."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy.random.default_rng(0).standard_normal((features, outputs)).astype("float32")
    float32 = TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", float32, ["batch", "time", features])],
        [helper.make_tensor_value_info("y", float32, ["batch", "time", outputs])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    model.doc_string = "x" * extra_bytes
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def write_artifact(folder: Path, error: float = 0.0) -> tuple[records.Artifact, Path]:
    """Write the tiny artifact; its golden output is wrong by ``error``."""
    import onnx
    from onnx import numpy_helper

    model = write_model(folder / "model.onnx")
    weights = numpy_helper.to_array(onnx.load(str(model)).graph.initializer[0])
    x = numpy.random.default_rng(1).standard_normal((1, 20, 16)).astype("float32")
    (folder / "golden").mkdir()
    numpy.save(folder / "golden/x.npy", x)
    numpy.save(folder / "golden/y.npy", x @ weights + numpy.float32(error))
    names = ["model.onnx", "golden/x.npy", "golden/y.npy"]
    files = {
        name: records.FileRecord(sha256=records.file_sha256(folder / name), bytes=(folder / name).stat().st_size)
        for name in names
    }
    tolerance = records.Tolerance(relative=1e-4, cosine=0.9999)
    artifact = records.Artifact(
        name="tiny-onnx-fp32", recipe="tiny", family="none", format="onnx", precision="fp32", runtime="onnxruntime",
        model_file="model.onnx",
        files=files,
        inputs=[records.Tensor(name="x", dtype="float32", shape=["batch", "time", 16])],
        outputs=[records.Tensor(name="y", dtype="float32", shape=["batch", "time", 4])],
        golden=records.Golden(inputs={"x": "golden/x.npy"}, outputs={"y": "golden/y.npy"}, tolerance=tolerance),
        parity=records.Parity(runtime="onnxruntime", tolerance=tolerance, cases=[]),
        audio=records.AudioShape(input="x", unit="mel_frames", per_second=10.0, golden_seconds=2.0, max_seconds=30.0),
        cost=records.Cost(
            parameters=records.Parameters(total=64, nonzero=64), bytes=256,
            macs=records.Macs(total=1280, per_second=640.0, parts={}), seconds=2.0,
        ),
        source=records.Source(name="tiny", sha256="0" * 64), tool="test",
    )  # fmt: skip
    return artifact, folder


def gone(pids: list[int], within_s: float = 10.0) -> bool:
    """Whether none of these processes runs any more, waiting for it if need be (a zombie has ended)."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not any(_runs(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
