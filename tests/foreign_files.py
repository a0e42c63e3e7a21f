"""Small ONNX files such as other people make: a voice detector, a net from samples to classes, and single operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STRIDE = 320
WIDTH = 32  # as many inputs as a matrix product needs for OpenVINO to do it in integers


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(shape[-1]))


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Mapping[str, Sequence[Any]],
    tensors: Mapping[str, np.ndarray] | None = None,
    opset: int = 17,
    dtype: int = TensorProto.FLOAT,
) -> Path:
    """Write a graph of these nodes; all inputs and outputs are of one type."""
    graph = helper.make_graph(
        list(nodes),
        path.stem,
        [helper.make_tensor_value_info(name, dtype, list(shape)) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, list(shape)) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (tensors or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9, producer_name="somebody"), str(path))
    return path


def voice_detector(path: Path, kind: str = "GRU") -> Path:
    """(batch, samples) -> the probability of speech (batch, 1): a convolution, a recurrent net in both directions."""
    gates = {"GRU": 3, "LSTM": 4, "RNN": 1}[kind]
    make = helper.make_node
    more = {"linear_before_reset": 1} if kind == "GRU" else {}
    nodes = [
        make("Unsqueeze", ["audio", "one"], ["channel"]),
        make("Conv", ["channel", "filters", "bias"], ["bands"], strides=[STRIDE], kernel_shape=[400]),
        make("Relu", ["bands"], ["positive"]),
        make("Transpose", ["positive"], ["steps"], perm=[2, 0, 1]),
        make(
            kind,
            ["steps", "w", "r", "b"],
            ["heard"],
            hidden_size=WIDTH,
            direction="bidirectional",
            name="memory",
            **more,
        ),
        make("ReduceMean", ["heard"], ["mean"], axes=[0, 1], keepdims=0),
        make("Gemm", ["mean", "head", "offset"], ["score"]),
        make("Sigmoid", ["score"], ["speech"]),
    ]
    tensors = {
        "one": np.array([1], np.int64),
        "filters": weights(16, 1, 400),
        "bias": weights(16),
        "w": weights(2, gates * WIDTH, 16, seed=1),
        "r": weights(2, gates * WIDTH, WIDTH, seed=2),
        "b": weights(2, 2 * gates * WIDTH, seed=3),
        "head": weights(WIDTH, 1, seed=4),
        "offset": np.zeros(1, np.float32),
    }
    return save(path, nodes, {"audio": ["batch", "samples"]}, {"speech": ["batch", 1]}, tensors)


def classifier(path: Path, length: int | str = "n") -> Path:
    """(1, n) samples -> 12 classes: a convolution, an average, a matrix."""
    make = helper.make_node
    nodes = [
        make("Unsqueeze", ["audio", "one"], ["channel"]),
        make("Conv", ["channel", "filters"], ["bands"], strides=[160], kernel_shape=[400], auto_pad="SAME_UPPER"),
        make("Relu", ["bands"], ["positive"]),
        make("ReduceMean", ["positive"], ["mean"], axes=[2], keepdims=0),
        make("MatMul", ["mean", "head"], ["classes"]),
    ]
    tensors = {"one": np.array([1], np.int64), "filters": weights(64, 1, 400), "head": weights(64, 12, seed=1)}
    return save(path, nodes, {"audio": [1, length]}, {"classes": [1, 12]}, tensors)
