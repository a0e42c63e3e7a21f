"""The function that runs OpenVINO on a device: files of ours and of others, what it says of itself, and its options."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench_remote.openvino import openvino as load

ov = pytest.importorskip("openvino")
OPTIONS = {"threads": 1}


def strangers(folder: Path) -> Path:
    """A model without names or layout, as others write them: (free, 4) times a matrix, and a sum."""
    opset = ov.opset13
    given = opset.parameter([-1, 4], np.float32)
    product = opset.matmul(given, opset.constant(np.eye(4, 3, dtype=np.float32)), False, False)
    ov.save_model(ov.Model([product, opset.add(given, given)], [given], "theirs"), str(folder / "theirs.xml"))
    return folder / "theirs.xml"


def test_without_a_path_it_only_says_its_version() -> None:
    run, about = load("", {})
    assert run is None
    assert about["version"] == ov.get_version()
    assert about["import_s"] >= 0


def test_ports_that_nobody_named_have_names_to_feed_them_by(tmp_path: Path) -> None:
    run, about = load(str(strangers(tmp_path)), OPTIONS)
    (taken,), (first, second) = about["inputs"], about["outputs"]
    assert (taken["dtype"], taken["shape"], first["shape"], second["shape"]) == (
        "float32", [None, 4], [None, 3], [None, 4],
    )  # fmt: skip
    assert taken["name"]
    assert first["name"] != second["name"]
    for rows in (2, 5, 1):
        given = np.arange(4 * rows, dtype=np.float32).reshape(rows, 4)
        said = run({taken["name"]: given})
        np.testing.assert_allclose(said[first["name"]], given[:, :3])
        np.testing.assert_allclose(said[second["name"]], 2 * given)


def test_free_dimensions_have_the_names_of_the_layout(tmp_path: Path) -> None:
    model = ov.Core().read_model(str(strangers(tmp_path)))
    model.get_parameters()[0].set_layout(ov.Layout("[batch,?]"))
    ov.save_model(model, str(tmp_path / "named.xml"))
    _, about = load(str(tmp_path / "named.xml"), OPTIONS)
    assert about["inputs"][0]["shape"] == ["batch", 4]


def test_it_reads_onnx_too(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    floats, made = onnx.TensorProto.FLOAT, onnx.helper
    graph = made.make_graph(
        [made.make_node("Relu", ["x"], ["y"])], "g",
        [made.make_tensor_value_info("x", floats, ["n", 2])], [made.make_tensor_value_info("y", floats, ["n", 2])],
    )  # fmt: skip
    model = made.make_model(graph, opset_imports=[made.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "m.onnx"))
    run, about = load(str(tmp_path / "m.onnx"), OPTIONS)
    assert [each["name"] for each in (*about["inputs"], *about["outputs"])] == ["x", "y"]
    np.testing.assert_array_equal(run({"x": np.array([[-1.0, 2.0]], np.float32)})["y"], [[0.0, 2.0]])


def test_options_are_told_as_they_were_really_set(tmp_path: Path) -> None:
    _, about = load(str(strangers(tmp_path)), {"threads": 1, "cpu_pinning": False})
    told = about["options"]
    assert (told["inference_num_threads"], told["num_streams"], told["inference_precision_hint"]) == (1, 1, "f32")
    assert told["enable_cpu_pinning"] is False
    assert "scheduling_core_type" in told
    if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        _, about = load(str(strangers(tmp_path)), {"threads": 1, "inference_precision": "bf16"})
        assert about["options"]["inference_precision_hint"] == "bf16"


def test_it_keeps_to_the_cores_that_the_job_was_given(tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core only")
    code = f"""
import os
os.sched_setaffinity(0, [{cores[-1]}])
import numpy
from bench_remote.openvino import openvino
run, about = openvino({str(strangers(tmp_path))!r}, {{"threads": 1}})
run({{about["inputs"][0]["name"]: numpy.zeros((1, 4), "float32")}})
for task in os.listdir("/proc/self/task"):
    allowed = os.sched_getaffinity(int(task))
    assert allowed <= {{{cores[-1]}}}, (task, allowed)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_importing_it_starts_no_telemetry() -> None:
    code = """
import sys
from bench_remote.openvino import openvino
openvino("", {})
assert sys.modules["openvino_telemetry"] is None
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
