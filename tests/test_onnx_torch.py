"""ONNX operators in torch say what ONNX Runtime says, and what has no counterpart is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from edgecompress.errors import ExportError
from edgecompress.exporters.onnx_torch import OnnxModule, read, unknown_operators
from edgecompress.exporters.parity import distances
from tests.foreign_files import save, voice_detector, weights

make = helper.make_node
ints = np.array
W = weights(6, 4, 3)
# One node each: its operator, shapes of inputs, constants after them, attributes.
NODES: list[tuple[str, list[tuple[int, ...]], list[Any], dict[str, Any]]] = [
    ("Add", [(2, 3), (3,)], [], {}),
    ("Div", [(2, 3), (2, 1)], [], {}),
    ("Min", [(2, 3), (3,), (1, 3)], [], {}),
    ("Mean", [(2, 3), (2, 3), (2, 3)], [], {}),
    ("Pow", [(2, 3)], [np.float32(2)], {}),
    ("Mod", [(2, 3)], [np.float32(0.7)], {"fmod": 1}),
    ("Clip", [(2, 3)], [np.float32(-0.5), np.float32(0.5)], {}),
    ("LeakyRelu", [(2, 3)], [], {"alpha": 0.2}),
    ("Elu", [(2, 3)], [], {}),
    ("Celu", [(2, 3)], [], {"alpha": 0.5}),
    ("Selu", [(2, 3)], [], {}),
    ("HardSigmoid", [(2, 3)], [], {}),
    ("HardSwish", [(2, 3)], [], {}),
    ("ThresholdedRelu", [(2, 3)], [], {"alpha": 0.1}),
    ("PRelu", [(2, 3)], [np.array([0.1, 0.2, 0.3], np.float32)], {}),
    ("Softplus", [(2, 3)], [], {}),
    ("Erf", [(2, 3)], [], {}),
    ("Reshape", [(2, 3, 4)], [ints([0, -1])], {}),
    ("Flatten", [(2, 3, 4)], [], {"axis": 2}),
    ("Squeeze", [(2, 1, 4)], [ints([1])], {}),
    ("Squeeze", [(2, 1, 4, 1)], [], {}),
    ("Unsqueeze", [(2, 4)], [ints([0, -1])], {}),
    ("Transpose", [(2, 3, 4)], [], {}),
    ("Expand", [(2, 1)], [ints([3, 1, 4])], {}),
    ("Tile", [(2, 3)], [ints([2, 1])], {}),
    ("Concat", [(2, 3), (2, 1)], [], {"axis": -1}),
    ("Slice", [(4, 9)], [ints([1, -2]), ints([3, -8]), ints([0, 1]), ints([1, -2])], {}),
    ("Slice", [(4, 9)], [ints([5]), ints([2**31])], {}),
    ("Gather", [(4, 5)], [ints([[1, -1], [0, 2]])], {"axis": 1}),
    ("Gather", [(4, 5)], [ints(-2)], {"axis": 0}),
    ("GatherElements", [(2, 3)], [ints([[0, -1], [1, 2]])], {"axis": 1}),
    ("Pad", [(2, 5)], [ints([0, 1, 1, 2]), np.float32(3)], {}),
    ("Pad", [(2, 5)], [ints([0, 1, 0, 2])], {"mode": "reflect"}),
    ("Pad", [(2, 5)], [ints([1, 0, 0, 2])], {"mode": "edge"}),
    ("Trilu", [(4, 4)], [ints(1)], {"upper": 0}),
    ("ReduceMean", [(2, 3, 4)], [], {"axes": [1, -1], "keepdims": 0}),
    ("ReduceSum", [(2, 3, 4)], [ints([1])], {}),
    ("ReduceMax", [(2, 3)], [], {}),
    ("ReduceL2", [(2, 3)], [], {"axes": [1]}),
    ("ReduceLogSumExp", [(2, 3)], [], {"axes": [1]}),
    ("Softmax", [(2, 3, 4)], [], {"axis": 1}),
    ("LogSoftmax", [(2, 3)], [], {}),
    ("CumSum", [(2, 5)], [ints(1)], {}),
    ("Einsum", [(2, 3), (3, 4)], [], {"equation": "ij,jk->ik"}),
    ("MatMul", [(2, 3, 4)], [weights(4, 5)], {}),
    ("Gemm", [(3, 2)], [weights(4, 3), weights(4)], {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Conv", [(1, 4, 20)], [W, weights(6)], {"strides": [2], "pads": [1, 2]}),
    ("Conv", [(1, 8, 9, 9)], [weights(8, 1, 3, 3)], {"group": 8, "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ("Conv", [(1, 4, 20)], [W], {"dilations": [3], "pads": [2, 2]}),
    ("ConvTranspose", [(1, 6, 5)], [W], {"strides": [2], "pads": [1, 1], "output_padding": [1]}),
    ("MaxPool", [(1, 4, 20)], [], {"kernel_shape": [3], "strides": [2], "pads": [0, 2]}),
    ("AveragePool", [(1, 4, 9)], [], {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}),
    ("AveragePool", [(1, 4, 9)], [], {"kernel_shape": [3], "pads": [1, 1], "count_include_pad": 1}),
    ("GlobalAveragePool", [(1, 4, 5, 6)], [], {}),
    ("GlobalMaxPool", [(1, 4, 5)], [], {}),
    ("BatchNormalization", [(1, 3, 5)], [weights(3), weights(3), weights(3), np.ones(3, np.float32)], {}),
    ("InstanceNormalization", [(1, 3, 5)], [weights(3), weights(3)], {"epsilon": 1e-3}),
    ("LayerNormalization", [(2, 3, 5)], [weights(3, 5), weights(3, 5)], {"axis": 1}),
    ("LpNormalization", [(2, 3)], [], {"axis": 1}),
    ("LSTM", [(4, 2, 3)], [weights(1, 20, 3), weights(1, 20, 5), weights(1, 40)], {"hidden_size": 5}),
    ("LSTM", [(4, 2, 3)], [weights(1, 20, 3), weights(1, 20, 5)], {"hidden_size": 5, "direction": "reverse"}),
    ("GRU", [(4, 2, 3)], [weights(1, 15, 3), weights(1, 15, 5), weights(1, 30)], {"hidden_size": 5}),
    ("RNN", [(4, 2, 3)], [weights(2, 5, 3), weights(2, 5, 5)], {"hidden_size": 5, "direction": "bidirectional"}),
]  # fmt: skip


def feeds_of(proto: onnx.ModelProto, sizes: int = 3) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {
        each.name: random.standard_normal([dim.dim_value or sizes for dim in each.type.tensor_type.shape.dim]).astype(
            "f"
        )
        for each in proto.graph.input
    }


def said(file: Path, feeds: dict[str, np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What torch and ONNX Runtime answer."""
    module = OnnxModule(read(file), feeds)
    with torch.no_grad():
        ours = [each.numpy() for each in module(*(torch.from_numpy(feeds[name]) for name in module.input_names))]
    return ours, onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, feeds)


@pytest.mark.parametrize(
    ("operator", "shapes", "constants", "attributes"), NODES, ids=[f"{i}-{each[0]}" for i, each in enumerate(NODES)]
)
def test_an_operator_says_in_torch_what_it_says_in_onnxruntime(
    operator: str, shapes: list[tuple[int, ...]], constants: list[Any], attributes: dict[str, Any], tmp_path: Path
) -> None:
    inputs = {f"x{i}": shape for i, shape in enumerate(shapes)}
    tensors = {f"c{i}": np.asarray(value) for i, value in enumerate(constants)}
    node = make(operator, [*inputs, *tensors], ["y"], **attributes)
    file = save(tmp_path / "one.onnx", [node], inputs, {"y": []}, tensors)
    proto = onnx.load(str(file))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(proto, str(file))
    ours, theirs = said(file, feeds_of(proto))
    assert ours[0].shape == theirs[0].shape
    assert distances(ours[0], theirs[0])["relative"] < 1e-5


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_a_voice_detector_says_the_same_in_both_directions(kind: str, tmp_path: Path) -> None:
    file = voice_detector(tmp_path / "vad.onnx", kind)
    feeds = {"audio": np.random.default_rng(0).standard_normal((2, 2000)).astype(np.float32)}
    ours, theirs = said(file, feeds)
    assert distances(ours[0], theirs[0])["relative"] < 1e-5


def test_quantised_values_are_the_steps_that_onnxruntime_takes(tmp_path: Path) -> None:
    scales, zeros = np.array([0.1, 0.2, 0.3], np.float32), np.array([3, 0, -4], np.int8)
    nodes = [
        make("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1),
        make("DequantizeLinear", ["q", "s", "z"], ["y"], axis=1),
    ]
    file = save(tmp_path / "qdq.onnx", nodes, {"x": [2, 3]}, {"y": [2, 3]}, {"s": scales, "z": zeros})
    ours, theirs = said(file, feeds_of(onnx.load(str(file))))
    assert np.array_equal(ours[0], theirs[0])


def test_shapes_that_the_graph_computes_are_computed_once(tmp_path: Path) -> None:
    nodes = [
        make("Shape", ["x"], ["shape"]),
        make("Gather", ["shape", "last"], ["width"], axis=0),
        make("Concat", ["rest", "width"], ["wanted"], axis=0),
        make("Reshape", ["x", "wanted"], ["y"]),
    ]
    tensors = {"last": ints([1]), "rest": ints([-1, 1])}
    file = save(tmp_path / "shapes.onnx", nodes, {"x": ["a", "b"]}, {"y": ["c", 1, "b"]}, tensors)
    feeds = {"x": np.ones((2, 5), np.float32)}
    ours, theirs = said(file, feeds)
    assert ours[0].shape == theirs[0].shape == (2, 1, 5)
    assert [step.call.op for step in OnnxModule(read(file), feeds).steps] == ["Reshape"]


def branching(path: Path, fed: bool) -> Path:
    """If, by a constant or by what is fed: twice the input, or half of it."""

    def branch(name: str, factor: float) -> onnx.GraphProto:
        held = helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])
        nodes = [make("Constant", [], [f"{name}_f"], value=held), make("Mul", ["x", f"{name}_f"], [name])]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3])])

    asks = (
        [make("ReduceMax", ["x"], ["most"], keepdims=0), make("Greater", ["most", "zero"], ["chosen"])] if fed else []
    )
    choice = make("If", ["chosen"], ["y"], then_branch=branch("a", 2.0), else_branch=branch("b", 0.5), name="choice")
    tensors = {"zero": np.float32(0)} if fed else {"chosen": np.array(False)}
    return save(path, [*asks, choice], {"x": [3]}, {"y": [3]}, {k: np.asarray(v) for k, v in tensors.items()})


def test_the_branch_that_a_constant_chooses_is_taken(tmp_path: Path) -> None:
    file = branching(tmp_path / "if.onnx", fed=False)
    ours, theirs = said(file, {"x": np.ones(3, np.float32)})
    assert ours[0].tolist() == theirs[0].tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("make_file", "named"),
    [
        (lambda path: branching(path, fed=True), "If (choice)"),
        (lambda path: save(path, [make("Hardmax", ["x"], ["y"])], {"x": [1, 3]}, {"y": [1, 3]}), "Hardmax"),
        (lambda path: save(path, [make("BiasGelu", ["x", "b"], ["y"], domain="com.microsoft")], {"x": [1, 3]},
                           {"y": [1, 3]}, {"b": weights(3)}), "com.microsoft:BiasGelu"),
        (lambda path: voice_detector(path), "GRU (memory): 150 steps"),
    ],
)  # fmt: skip
def test_what_is_in_the_way_is_named(make_file: Any, named: str, tmp_path: Path) -> None:
    file = make_file(tmp_path / "odd.onnx")
    shapes = {"audio": (1, 400 + 149 * 320)}
    proto = onnx.load(str(file))
    feeds = {
        each.name: np.ones(shapes.get(each.name, [d.dim_value for d in each.type.tensor_type.shape.dim]), "f")
        for each in proto.graph.input
    }
    with pytest.raises(ExportError) as told:
        OnnxModule(proto, feeds)
    assert named in told.value.message


def test_unknown_operators_are_found_in_branches_too(tmp_path: Path) -> None:
    proto = onnx.load(str(branching(tmp_path / "if.onnx", fed=False)))
    branch = next(each.g for each in proto.graph.node[0].attribute if each.name == "then_branch")
    branch.node[1].op_type = "Hardmax"
    assert unknown_operators(proto) == ["Hardmax"]


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x09\x12"])
def test_what_is_no_onnx_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(ExportError, match=r"x\.onnx is no whole ONNX file"):
        read(tmp_path / "x.onnx")


def test_a_file_that_was_cut_off_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = voice_detector(tmp_path / "vad.onnx").read_bytes()
    for length in range(40, len(whole) - 1, len(whole) // 17):
        (tmp_path / "cut.onnx").write_bytes(whole[:length])
        with pytest.raises(ExportError):
            read(tmp_path / "cut.onnx")


def test_weights_in_a_file_that_is_not_there_are_missed(tmp_path: Path) -> None:
    proto = onnx.load(str(voice_detector(tmp_path / "vad.onnx")))
    onnx.save(proto, str(tmp_path / "out.onnx"), save_as_external_data=True, location="weights.bin", size_threshold=100)
    assert read(tmp_path / "out.onnx").graph.initializer[1].raw_data
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ExportError, match="is no whole ONNX file"):
        read(tmp_path / "out.onnx")
