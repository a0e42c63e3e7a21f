"""The agent itself, as a device runs it: one process tree, one job, and every way in which it may end."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from bench_remote import PROTOCOL, tensors
from edgecompress import runtimes
from edgecompress.session import agent
from tests.device_fixtures import DOUBLER, SLEEPER, gone

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def started(tmp_path: Path) -> Any:
    """Starts the agent's zip as a device would; what is left of it is killed in the end."""
    running: list[subprocess.Popen[bytes]] = []

    def start(runtime: str, **more: Any) -> subprocess.Popen[bytes]:
        found = runtimes.find(runtime)
        package = agent.build([found])
        assert isinstance(package.source, bytes)
        (tmp_path / "agent").write_bytes(package.source)
        (tmp_path / "cache/objects").mkdir(parents=True, exist_ok=True)
        (tmp_path / "cache/objects" / package.sha256).write_bytes(package.source)
        job = {
            "protocol": PROTOCOL, "action": "measure", "cache": str(tmp_path / "cache"), "site": "", "deadline_s": 60,
            "runtime": {"name": runtime, "module": found.module, "function": found.function},
            "files": {"model": package.sha256}, "model": "model", "golden": None, "inputs": None, "lengths": {},
            "dims": {}, "threads": 1, "affinity": [], "repetitions": 1, "warmup_s": 0.0, "min_samples": 3,
            "min_seconds": 0.0, "max_seconds": 1.0, "busy_wait_s": 0.0,
        } | more  # fmt: skip
        pipe = subprocess.PIPE
        child = subprocess.Popen([sys.executable, str(tmp_path / "agent")], stdin=pipe, stdout=pipe, stderr=pipe)
        running.append(child)
        assert child.stdin
        child.stdin.write(json.dumps(job).encode() + b"\n")
        child.stdin.flush()
        return child

    yield start
    for child in running:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream:
                stream.close()


def events_of(child: subprocess.Popen[bytes], until: str = "") -> list[dict[str, Any]]:
    """Events up to ``until``, or all of them."""
    found: list[dict[str, Any]] = []
    assert child.stdout
    for line in child.stdout:
        if line.strip():
            found.append(json.loads(line))
            if found[-1]["event"] == until:
                break
    return found


def workers(child: subprocess.Popen[bytes]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()]


def test_a_job_tells_its_events_in_order(started: Any, stranger: Callable[[str, str], str]) -> None:
    told = events_of(started(stranger("doubler", DOUBLER)))
    expected = ["hello", "facts", "clock", "loaded", "warmup", "samples", "steady", "clock", "memory", "facts", "done"]
    assert [event["event"] for event in told if event["event"] != "telemetry"] == expected  # only with a core to spare
    assert len(told[5]["ns"]) == 3
    assert told[4]["input"] == {"source": "random", "shapes": {"x": [3]}}


def test_a_lost_connection_ends_the_agent_and_its_silent_runtime(started: Any, stranger: Any) -> None:
    child = started(stranger("sleeper", SLEEPER))
    events_of(child, until="loaded")
    tree = [child.pid, *workers(child)]
    assert len(tree) >= 2  # the sampler, where a core is to spare
    child.stdin.close()
    assert gone(tree)


def test_a_supervisor_killed_outright_takes_its_worker_along(started: Any, stranger: Any) -> None:
    child = started(stranger("sleeper", SLEEPER))
    events_of(child, until="loaded")
    left = workers(child)
    child.kill()
    assert left
    assert gone(left)


def test_the_agent_ends_itself_at_its_deadline_with_a_word(started: Any, stranger: Any) -> None:
    child = started(stranger("sleeper", SLEEPER), deadline_s=1.5)
    events_of(child, until="loaded")
    tree = [child.pid, *workers(child)]
    last = events_of(child)[-1]
    assert (last["event"], last["kind"]) == ("failed", "deadline")
    assert gone(tree)


def test_a_runtime_that_dies_by_a_signal_at_import_is_a_result(started: Any, stranger: Any) -> None:
    child = started(stranger("crasher", "os.kill(os.getpid(), signal.SIGSEGV)"))
    last = events_of(child)[-1]
    assert (last["event"], last["kind"], last["signal"]) == ("failed", "signal", "SIGSEGV")


def test_what_a_runtime_prints_does_not_disturb_the_events(started: Any, stranger: Any) -> None:
    noisy = 'print("hello from C")\nos.write(1, b"{\\"event\\": \\"done\\"}\\n")\n' + DOUBLER.strip()
    told = events_of(started(stranger("noisy", noisy)))
    assert [event["event"] for event in told].count("done") == 1
    assert "samples" in [event["event"] for event in told]


def test_peak_memory_is_that_of_the_runtime_s_own_process(started: Any, stranger: Any) -> None:
    hungry = "ballast = bytearray(300 << 20)\nfor i in range(0, len(ballast), 4096): ballast[i] = 1\ndel ballast\n"
    small = events_of(started(stranger("doubler", DOUBLER)))
    large = events_of(started(stranger("hungry", hungry + DOUBLER.strip())))
    peak = {
        name: next(event["peak_rss_bytes"] for event in told if event["event"] == "memory")
        for name, told in (("small", small), ("large", large))
    }
    assert peak["large"] - peak["small"] > 250 << 20
    assert peak["small"] < 200 << 20


def test_another_protocol_is_refused(started: Any) -> None:
    told = events_of(started("onnxruntime", protocol=PROTOCOL + 1))
    assert [(event["event"], event["need"]) for event in told] == [("refused", "protocol")]


def test_files_outside_the_job_s_folder_are_refused(started: Any, stranger: Any) -> None:
    name = stranger("doubler", DOUBLER)
    for hostile in ("/etc/passwd", "../../escape"):
        told = events_of(started(name, files={hostile: "0" * 64}))
        assert (told[-1]["event"], told[-1]["need"]) == ("refused", "job")


def test_the_zip_depends_on_its_contents_alone() -> None:
    package = agent.build()
    assert isinstance(package.source, bytes)
    members = zipfile.ZipFile(io.BytesIO(package.source)).infolist()
    assert {member.date_time for member in members} == {agent.EPOCH}
    assert [member.filename for member in members] == sorted(member.filename for member in members)
    assert agent.build([runtimes.find("onnxruntime")]).sha256 == package.sha256


def test_the_agent_is_python_3_8_and_imports_only_the_standard_library_at_its_top() -> None:
    for path in (ROOT / "bench_remote").glob("*.py"):
        tree = ast.parse(path.read_text(), feature_version=(3, 8))
        names = {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module}
        names |= {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
        tops = {name.split(".")[0] for name in names}
        assert tops <= set(sys.stdlib_module_names) | {"bench_remote"}, path


@pytest.mark.parametrize(
    ("answer", "passes"),
    [([1.0, 2.0], True), ([1.0, 2.001], False), ([1.0, float("nan")], False), ([1.0], False), ([-1.0, -2.0], False)],
)
def test_the_golden_check_passes_only_what_is_near_in_shape_size_and_direction(
    answer: list[float], passes: bool
) -> None:
    result = tensors.compare(numpy.array(answer), numpy.array([1.0, 2.0]), 1e-4, 0.9999)
    assert result["passed"] is passes
    json.dumps(result, allow_nan=False)


def test_inputs_are_tiled_and_cropped_along_their_axis() -> None:
    x = numpy.arange(6).reshape(1, 3, 2)
    longer = tensors.fit({"x": x}, {"x": [[1, 7]]}, {})["x"]
    shorter = tensors.fit({"x": x, "lengths": numpy.array([3])}, {"x": [[1, 2]]}, {"lengths": 2})
    assert longer.shape == (1, 7, 2)
    assert (longer[0, 3:6] == x[0]).all()
    assert (shorter["x"] == x[:, :2]).all()
    assert shorter["lengths"].tolist() == [2]  # how much is audio goes along with it


def test_inputs_from_shapes_take_named_sizes_and_the_same_numbers_each_time() -> None:
    described: list[dict[str, Any]] = [
        {"name": "x", "dtype": "float32", "shape": ["batch", "time", 4]},
        {"name": "n", "dtype": "int64", "shape": [None]},
    ]
    first, again = tensors.make(described, {"time": 9}), tensors.make(described, {"time": 9})
    assert first["x"].shape == (1, 9, 4)
    assert (first["x"] == again["x"]).all()
    assert first["n"].tolist() == [0]
