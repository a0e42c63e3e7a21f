"""ONNX at every precision: what is quantised and what is not, what stays float when told, and that pruned models go too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgecompress import audio
from edgecompress.errors import ExportError
from edgecompress.exporters import Options, export, onnx_file
from edgecompress.exporters.onnx import OnnxExporter
from edgecompress.exporters.onnx_edit import Edit
from edgecompress.exporters.onnx_int8 import write_int8
from edgecompress.exporters.onnx_names import readable
from edgecompress.exporters.onnx_static import write_int8_static
from edgecompress.exporters.onnx_weight_only import in_nibbles, write_int4_weights, write_int8_weights
from edgecompress.exporters.parity import distances
from edgecompress.model import Model
from edgecompress.records import Artifact
from tests.models import noise_clip, tiny

OTHERS = tuple(each for each in OnnxExporter.precisions if each != "fp32" and not each.endswith("-naive"))
CLIPS = [noise_clip(1.0, seed=seed) for seed in range(3)]
FLOAT_NODE = "encoder.layers.1.feed_forward.output_dense"


def dense(model: Model) -> None:
    pass


def uneven(model: Model) -> None:
    model.keep_heads(0, [1])
    model.keep_heads(1, [])
    model.keep_units(0, range(5, 60))
    model.factor(2, "up", 17)
    model.factor(2, "q_proj", 20)


MODELS: dict[str, Callable[[], Model]] = {
    "hubert": lambda: tiny("hubert", head="ForCTC"),
    "wavlm-layer": lambda: tiny("wavlm", front_end="layer", stable=True),
    "melhubert": lambda: tiny("melhubert"),
    "whisper": lambda: tiny("whisper"),
}


EDITED = [pytest.param((name, edit), id=f"{name}-{edit.__name__}") for name in MODELS for edit in (dense, uneven)]


@pytest.fixture(scope="module", params=EDITED)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of one model at each precision; exporting has checked parity at many lengths."""
    name, edit = request.param
    model, root = MODELS[name](), tmp_path_factory.mktemp(name)
    edit(model)
    export(model, "onnx", root / "fp32")
    for precision in OTHERS:
        export(model, "onnx", root / precision, precision=precision, reuse=root / "fp32", calibration_clips=CLIPS)
    return {precision: root / precision for precision in ("fp32", *OTHERS)}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An fp32 file of a tiny HuBERT."""
    folder = tmp_path_factory.mktemp("hubert") / "fp32"
    export(tiny("hubert"), "onnx", folder)
    return folder / "model.onnx"


def feeds(seconds: float = 1.0) -> list[dict[str, np.ndarray]]:
    return [{"input_values": noise_clip(seconds, seed=seed)[None]} for seed in range(3)]


def answer(file: Path, given: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, given)[0])


def kinds(file: Path) -> list[str]:
    return [node.op_type for node in onnx.load(str(file)).graph.node]


def test_every_precision_is_smaller_and_counts_what_it_quantised(written: dict[str, Path]) -> None:
    records = {precision: Artifact.read(folder / "artifact.json") for precision, folder in written.items()}
    sizes = {precision: record.files["model.onnx"].bytes for precision, record in records.items()}
    assert all(sizes[precision] < sizes["fp32"] for precision in OTHERS)
    assert sizes["int4-weights"] < sizes["int8-weights"] < sizes["fp16"]
    counted = {precision: record.quantized_nodes for precision, record in records.items()}
    assert (counted["fp32"], counted["fp16"]) == (None, None)
    assert counted["int8"] == counted["int8-static"]
    assert counted["int8-weights"] == counted["int4-weights"]
    names = OnnxExporter().quantizable(written["fp32"] / "model.onnx")
    assert counted["int8-weights"] == len(names)
    assert counted["int8"] == len([name for name in names if "pos_conv" not in name])


def test_weights_multiplied_in_integers_keep_to_seven_bits(written: dict[str, Path]) -> None:
    for precision in ("int8", "int8-static"):
        graph = onnx.load(str(written[precision] / "model.onnx")).graph
        stored = [numpy_helper.to_array(each) for each in graph.initializer if each.data_type == TensorProto.INT8]
        assert max(int(np.abs(each.astype(int)).max()) for each in stored) == 64


def test_half_precision_keeps_inputs_and_outputs_and_what_makes_log_mel_frames(written: dict[str, Path]) -> None:
    graph = onnx.load(str(written["fp16"] / "model.onnx")).graph
    assert {each.type.tensor_type.elem_type for each in (*graph.input, *graph.output)} == {TensorProto.FLOAT}
    of_products = {
        tensor.data_type
        for tensor in graph.initializer
        if len(tensor.dims) > 1 and min(tensor.dims[:2]) >= 16 and not tensor.name.startswith("log_mel")
        if any(tensor.name in node.input for node in graph.node if node.op_type in ("MatMul", "Gemm", "Conv"))
    }
    assert of_products == {TensorProto.FLOAT16}


def test_nothing_that_tracing_leaves_behind_is_in_the_file(full: Path) -> None:
    said = kinds(full)
    assert "Identity" not in said
    assert said.count("InstanceNormalization") == 1
    assert said.count("Shape") <= 2  # of the traced graph's 25; the runtime would compute them each time
    assert all(len(node.name) < 80 for node in onnx.load(str(full)).graph.node if node.op_type == "MatMul")


def test_only_the_first_and_the_position_convolution_stay_convolutions_in_int8(full: Path, tmp_path: Path) -> None:
    for write in (write_int8, write_int8_static):
        write(full, tmp_path / "model.onnx", {}, feeds())
        assert kinds(tmp_path / "model.onnx").count("Conv") == 2


def test_names_of_nodes_are_the_modules_paths(full: Path) -> None:
    names = OnnxExporter().quantizable(full)
    assert {FLOAT_NODE, "feature_extractor.conv_layers.3.conv", "encoder.layers.0.attention.q_proj"} <= set(names)
    assert len(set(names)) == len(names)
    assert not any("conv_layers.0" in name for name in names)
    assert readable("/encoder/network/layers.0/attention/MatMul_1") == "layers.0.attention.1"
    assert readable(FLOAT_NODE) == FLOAT_NODE


@pytest.mark.parametrize("precision", OTHERS)
def test_nodes_that_are_to_stay_float_do_and_bring_the_answer_nearer(
    full: Path, precision: str, tmp_path: Path
) -> None:
    names = OnnxExporter().quantizable(full)
    options = Options(float_nodes=(FLOAT_NODE,))
    model = tiny("hubert")
    few = {}
    for kind, chosen in (("all", Options()), ("one", options), ("most", Options(float_nodes=tuple(names[1:])))):
        folder = tmp_path / kind
        export(model, "onnx", folder, precision=precision, options=chosen, calibration_clips=CLIPS)
        few[kind] = folder / "model.onnx"
    given = feeds()[0]
    wanted = answer(full, given)
    apart = {kind: distances(answer(file, given), wanted)["max_abs"] for kind, file in few.items()}
    assert apart["most"] < apart["all"]
    left = {
        node.name: node.op_type
        for node in onnx.load(str(few["one"])).graph.node
        if node.name in names and node.op_type in ("MatMul", "Conv", "Gemm")
    }
    assert left[FLOAT_NODE] == "MatMul"
    float_weights = {
        each.name for each in onnx.load(str(few["one"])).graph.initializer if each.data_type == TensorProto.FLOAT
    }
    node = next(each for each in onnx.load(str(few["one"])).graph.node if each.name == FLOAT_NODE)
    assert node.input[1] in float_weights


def test_a_name_that_no_node_has_is_an_error_with_the_nearest(full: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no node 'encoder\.layers\.1\.feed_forward\.output'") as told:
        write_int8(full, tmp_path / "model.onnx", {}, None, ["encoder.layers.1.feed_forward.output"])
    assert told.value.hint == f"did you mean {FLOAT_NODE!r}?"


@pytest.mark.parametrize("write", [write_int8, write_int8_static, write_int8_weights, write_int4_weights])
def test_a_file_that_has_nothing_to_quantise_is_refused(
    full: Path, write: Callable[..., onnx.ModelProto], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="quantise"):
        write(full, tmp_path / "model.onnx", {}, feeds(), OnnxExporter().quantizable(full))
    assert list(tmp_path.iterdir()) == []


def test_static_quantisation_wants_something_finite_to_calibrate_with(full: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nothing to calibrate with"):
        write_int8_static(full, tmp_path / "model.onnx", {}, [])
    with pytest.raises(ExportError, match="not finite"):
        write_int8_static(full, tmp_path / "model.onnx", {}, [{"input_values": np.full((1, 4000), np.nan, np.float32)}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("width", "stride", "pads"), [(3, 2, 0), (2, 2, 0), (3, 1, 1), (3, 2, 1), (1, 1, 0), (10, 5, 3)]
)
def test_a_convolution_as_a_product_says_the_same_at_every_length(
    width: int, stride: int, pads: int, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    weight = generator.integers(-64, 65, (16, 16, width)).astype(np.float32)
    weight[:, 0, 0] = 64  # the scale of each output is then 1, and everything is exact
    bias = generator.standard_normal(16).astype(np.float32)
    shape = ["batch", 16, "time"]
    graph = helper.make_graph(
        [
            helper.make_node(
                "Conv", ["x", "w", "b"], ["y"], name="conv", strides=[stride], kernel_shape=[width], pads=[pads] * 2
            )
        ],
        "one convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16, "steps"])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    full = tmp_path / "full.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(full))
    write_int8(full, tmp_path / "int8.onnx", {})
    for length in range(max(width - 2 * pads, 1), width + 2 * stride + 5):
        given = {"x": generator.integers(-100, 156, (2, 16, length)).astype(np.float32)}
        given["x"][0, 0, 0], given["x"][0, 1, 0] = -100, 155  # 256 whole numbers, for which bytes are exact
        wanted = answer(full, given)
        said = answer(tmp_path / "int8.onnx", given)
        assert said.shape == wanted.shape
        np.testing.assert_allclose(said, wanted, rtol=1e-6, atol=1e-2)


def test_four_bits_hold_what_four_bits_can() -> None:
    matrix = np.random.default_rng(0).integers(-8, 8, (50, 3)).astype(np.float32)
    matrix[0], matrix[32] = -8, -8
    packed, scales = in_nibbles(matrix)
    assert (packed.shape, scales.shape) == ((3, 2, 16), (6,))
    unpacked = np.stack([packed & 15, packed >> 4], axis=-1).reshape(3, 2, 32).astype(np.float32) - 8
    again = (unpacked * scales.reshape(3, 2, 1)).reshape(3, 64)[:, :50].T
    np.testing.assert_array_equal(again, matrix)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8-static"])
def test_what_one_file_cannot_hold_lies_beside_it_and_is_found_there(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("hubert")
    export(model, "onnx", tmp_path / "one", precision=precision, calibration_clips=CLIPS)
    monkeypatch.setattr(onnx_file, "LARGEST_BYTES", 100_000)
    record = export(model, "onnx", tmp_path / "two", precision=precision, calibration_clips=CLIPS)
    assert {"model.onnx", "model.onnx.data"} <= set(record.files)
    assert record.files["model.onnx.data"].bytes > 3 * record.files["model.onnx"].bytes or precision != "fp32"
    given = feeds()[0]
    one, two = (answer(tmp_path / name / "model.onnx", given) for name in ("one", "two"))
    np.testing.assert_array_equal(one, two)


def test_an_edit_drops_what_no_output_needs_and_sorts_the_rest() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["x"], ["same"]),
            helper.make_node("Neg", ["same"], ["unused"]),
            helper.make_node("Abs", ["same"], ["y"]),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.ones(3, np.float32), "nobody's")],
    )
    edit = Edit(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    edit.replace("y", edit.add("Neg", [edit.add("Abs", ["x"])]))
    model = edit.finish()
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Abs", "Neg"]
    assert not model.graph.initializer


@pytest.mark.parametrize(("format", "naive"), [("openvino", "int8-static-naive"), ("tflite", "int8-naive")])
def test_other_libraries_defaults_are_there_to_compare_with(format: str, naive: str, tmp_path: Path) -> None:
    model = tiny("whisper")
    hears = {"calibration_clips": audio.synthetic(3, 2.0, seed=1).arrays}
    told = export(model, format, tmp_path / "naive", precision=naive, **hears)
    assert told.quantized_nodes
    with pytest.raises(ExportError, match=f"{naive} leaves no part in fp32"):
        export(model, format, tmp_path / "a", precision=naive, options=Options(float_nodes=("encoder/0",)), **hears)


def test_the_naive_precision_is_the_librarys_own_and_says_what_it_did(tmp_path: Path) -> None:
    model = tiny("whisper")
    told = export(model, "onnx", tmp_path / "naive", precision="int8-naive")
    kinds = {node.op_type for node in onnx.load(str(tmp_path / "naive" / "model.onnx")).graph.node}
    assert {"ConvInteger", "MatMulInteger"} <= kinds
    assert told.quantized_nodes > 18
    with pytest.raises(ExportError, match="int8-naive leaves no part in fp32"):
        export(model, "onnx", tmp_path / "a", precision="int8-naive", options=Options(float_nodes=("x",)))
