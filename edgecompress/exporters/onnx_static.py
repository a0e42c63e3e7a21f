"""int8 with the ranges of activations fixed beforehand, from calibration inputs: QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgecompress.errors import ExportError
from edgecompress.exporters.onnx_edit import Edit
from edgecompress.exporters.onnx_file import finish
from edgecompress.exporters.onnx_int8 import MOST, conv_rows, quantise_at_run_time
from edgecompress.exporters.onnx_layout import SWAP, sink_transposes
from edgecompress.exporters.onnx_weights import Weighted, in_integers, weighted

NORMS = ("LayerNormalization", "InstanceNormalization")

Range = tuple[float, float]
Feeds = Sequence[Mapping[str, np.ndarray]]


def write_int8_static(
    full: Path, file: Path, metadata: Mapping[str, str], feeds: Feeds, float_nodes: Sequence[str] = ()
) -> onnx.ModelProto:
    """Quantise what ``write_int8`` does, with one range for each activation, taken from what ``feeds`` cause.

    The file has pairs of QuantizeLinear and DequantizeLinear around float products, which other runtimes read too;
    ONNX Runtime computes them in integers. Convolutions are products over windows of bytes here as well: as quantised
    convolutions their outputs would have to be rounded to bytes once more. What no norm stands before, and is louder
    when the input is (Whisper's convolutions), takes its range at run time, as in ``write_int8``.

    Raises:
        ExportError: there was nothing to quantise, nothing to calibrate with, or a name in ``float_nodes`` is no node's.
    """
    edit = Edit(onnx.load(str(full)))
    found = weighted(edit, float_nodes)
    if not found:
        raise ExportError("onnx int8-static: no product was quantised", hint="use fp32: it would be the same file")
    held = held_by_norms(edit)
    inputs = {one.name: one.node.input[0] for one in found}
    fixed = {name: tensor for name, tensor in inputs.items() if tensor in held}
    ranges = activation_ranges(full, list(fixed.values()), feeds, file.parent)
    stored: dict[str, tuple[str, str, str]] = {}
    at_run_time: dict[str, tuple[str, str, str]] = {}
    for one in found:
        if one.name in fixed:
            _quantise(edit, one, ranges[fixed[one.name]], stored)
        else:
            quantise_at_run_time(edit, one, at_run_time)
    sink_transposes(edit)
    return finish(edit.finish(), file, metadata)


def _quantise(edit: Edit, one: Weighted, span: Range, inputs: dict[str, tuple[str, str, str]]) -> None:
    node, name = one.node, one.name
    if node.input[0] not in inputs:
        lowest, highest = min(span[0], 0.0), max(span[1], 0.0)  # zero, which padding is filled with, has its own byte
        step = np.float32(max(highest - lowest, 1e-8) / 255)
        scale = edit.add_constant(step)
        zero = edit.add_constant(np.uint8(np.clip(np.rint(-lowest / step), 0, 255)))
        inputs[node.input[0]] = edit.add("QuantizeLinear", [node.input[0], scale, zero]), scale, zero
    given, scale, zero = inputs[node.input[0]]
    if one.convolution:
        given = conv_rows(edit, one, given, zero)
    rows = edit.add("DequantizeLinear", [given, scale, zero], name=f"{name}.input")
    weights = in_floats(edit, one, MOST)
    said = edit.add("MatMul", [rows, weights], name=name)
    if one.bias is not None:
        said = edit.add("Add", [said, edit.add_constant(one.bias, f"{name}.bias")], name=f"{name}.add")
    if one.convolution:
        said = edit.add("Transpose", [said], perm=SWAP)
    edit.replace(node.output[0], said)
    edit.remove(node)


def in_floats(edit: Edit, one: Weighted, most: int) -> str:
    """A matrix that is stored as int8 with a scale for each column, as floats again."""
    integers, scales = in_integers(one.matrix, most)
    zeros = edit.add_constant(np.zeros(scales.size, np.int8), f"{one.name}.zero")
    stored = [edit.add_constant(integers, f"{one.name}.weight"), edit.add_constant(scales, f"{one.name}.scale"), zeros]
    return edit.add("DequantizeLinear", stored, name=f"{one.name}.weights", axis=1)


def held_by_norms(edit: Edit) -> set[str]:
    """The tensors that every way from the graph's inputs reaches through a norm: how loud an input is, they do not tell."""
    held = {""}
    for node in edit.nodes.values():  # in the order of the file, in which whoever makes a tensor comes first
        if node.op_type in (*NORMS, "Shape") or all(
            name in held or edit.constant(name) is not None for name in node.input
        ):
            held.update(node.output)
    return held


def activation_ranges(full: Path, names: Sequence[str], feeds: Feeds, folder: Path) -> dict[str, Range]:
    """The least and the greatest value of tensors of a file: of each input's extremes, the mean over all inputs.

    ``folder`` is for scratch. The mean cuts off what one loud clip alone does (whisper-tiny.en on speech: 1 - cosine
    3.1e-3, with the extremes of all 3.3e-3).

    Raises:
        ExportError: no feeds, or some value is not finite.
    """
    import onnxruntime

    if not feeds:
        raise ExportError("onnx int8-static: nothing to calibrate with", hint="give recordings of speech")
    wanted = sorted(set(names))
    if not wanted:
        return {}
    model = onnx.load(str(full))
    del model.graph.output[:]
    for name in wanted:
        for kind in ("ReduceMin", "ReduceMax"):
            output = f"{kind} of {name}"
            model.graph.node.append(helper.make_node(kind, [name], [output], keepdims=0))
            model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        probe = Path(scratch) / "probe.onnx"
        finish(model, probe, {})
        session = onnxruntime.InferenceSession(str(probe), settings, providers=["CPUExecutionProvider"])
        seen = np.array([session.run(None, dict(each)) for each in feeds], np.float64).reshape(-1, len(wanted), 2)
    if not np.isfinite(seen).all():
        raise ExportError("onnx int8-static: an activation is not finite", hint="is the calibration audio whole?")
    return {name: (float(low), float(high)) for name, (low, high) in zip(wanted, seen.mean(axis=0), strict=True)}
