"""What an ONNX file costs, counted from its graph: parameters, and multiply-accumulates at given sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import onnx

from edgecompress.records import Macs, Parameters

# Operators of ONNX's own, and ONNX Runtime's, that do a product and are counted below; no other is one, or is known to be.
CONVOLUTIONS = ("Conv", "ConvInteger", "QLinearConv")
PRODUCTS = ("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul")
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
HARMLESS_DOMAINS = ("", "ai.onnx")
UNCOUNTED = ("Einsum", "Loop", "Scan", "If", "Attention", "STFT", "DFT", "DeformConv")
NUMBERS = (
    onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.INT8, onnx.TensorProto.UINT8,
)  # fmt: skip


def parameters(proto: onnx.ModelProto) -> Parameters:
    """Numbers stored in initializers, floats and bytes: wider integers are shapes and axes."""
    total = nonzero = 0
    for each in proto.graph.initializer:
        if each.data_type in NUMBERS:
            values = onnx.numpy_helper.to_array(each)
            total += values.size
            nonzero += int(np.count_nonzero(np.asarray(values, np.float32)))
    return Parameters(total=total, nonzero=nonzero)


def fix_inputs(proto: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give inputs these sizes in the place of free ones."""
    for value in proto.graph.input:
        if value.name in shapes:
            for dim, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
                dim.dim_value = int(size)


def macs(proto: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], seconds: float | None) -> Macs | None:
    """Multiply-accumulates of one pass over inputs of these shapes, by operator; None where one cannot be counted."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    fix_inputs(fixed, shapes)
    try:
        inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    except Exception:  # shape inference is a help, not a duty
        return None
    known = {each.name: list(each.dims) for each in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        sizes = [int(dim.dim_value) for dim in value.type.tensor_type.shape.dim]
        if all(sizes):
            known[value.name] = sizes
    parts: Counter[str] = Counter()
    for node in inferred.node:
        if node.op_type in UNCOUNTED or node.domain not in HARMLESS_DOMAINS:
            return None
        if node.op_type in (*CONVOLUTIONS, "ConvTranspose", *PRODUCTS, *GATES):
            try:
                parts[node.op_type] += _of(node, known)
            except KeyError:  # a shape that depends on what is fed
                return None
    total = sum(parts.values())
    return Macs(total=total, per_second=total / seconds if seconds else None, parts=dict(sorted(parts.items())))


def _of(node: onnx.NodeProto, known: Mapping[str, list[int]]) -> int:
    if node.op_type in GATES:
        steps, batch, _ = known[node.input[0]]
        directions, rows, width = known[node.input[1]]
        return steps * batch * directions * rows * (width + known[node.input[2]][-1])
    if node.op_type in CONVOLUTIONS:
        weight = known[node.input[3 if node.op_type == "QLinearConv" else 1]]
        return prod(known[node.output[0]]) * prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return prod(known[node.input[0]]) * prod(known[node.input[1]][1:])
    first = known[node.input[0]]
    turned = any(each.name == "transA" and each.i for each in node.attribute)
    return prod(known[node.output[0]]) * (first[-2] if turned else first[-1])
