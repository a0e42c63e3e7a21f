"""int8 with activations quantised at run time: matrix products, and convolutions over time as matrix products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from edgecompress.errors import ExportError
from edgecompress.exporters.onnx_edit import Edit, attributes
from edgecompress.exporters.onnx_file import finish
from edgecompress.exporters.onnx_layout import SWAP, sink_transposes, windows
from edgecompress.exporters.onnx_weights import Weighted, in_integers, weighted

MOST = 64  # weights keep to 7 bits, see write_int8


def write_int8(
    full: Path, file: Path, metadata: Mapping[str, str], feeds: object = None, float_nodes: Sequence[str] = ()
) -> onnx.ModelProto:
    """Quantise the matrix products and plain convolutions of an fp32 file, check, and return what was written.

    Weights are int8 with a scale for each output column, inputs uint8 with a scale for each tensor, found at run time;
    no calibration, ``feeds`` are not looked at. Convolutions of one group become matrix products over windows of bytes:
    ONNX Runtime's own dynamic int8 ones double the time (HuBERT base 397 ms against 202), with these 5 s of
    audio take 0.43 of fp32's time, where products alone in integers take 0.69 (one thread, VNNI; Whisper base 0.43, 0.48).
    The first convolution, of one channel, and the position convolution, of many groups, stay float.

    Weights keep to 7 bits: x86 processors without VNNI add pairs of products in 16 bits, which 8 bits overflow, and
    the same file would say something else on such a board. With a scale for each column that costs little: 1 - cosine
    2.6e-3 instead of 2.2e-3 (whisper-tiny.en on speech), and one scale for each matrix would cost more (7.8e-3).

    Raises:
        ExportError: there was nothing to quantise, or a name in ``float_nodes`` is no node's.
    """
    edit = Edit(onnx.load(str(full)))
    found = weighted(edit, float_nodes)
    if not found:
        raise ExportError("onnx int8: no matrix product was quantised", hint="use fp32: int8 would be the same file")
    inputs: dict[str, tuple[str, str, str]] = {}
    for one in found:
        quantise_at_run_time(edit, one, inputs)
    sink_transposes(edit)
    return finish(edit.finish(), file, metadata)


def quantise_at_run_time(edit: Edit, one: Weighted, inputs: dict[str, tuple[str, str, str]]) -> None:
    """Replace a node by an integer product; ``inputs`` remembers what has been made bytes already."""
    node, name = one.node, one.name
    integers, scales = in_integers(one.matrix, MOST)
    given, scale, zero = _in_bytes(edit, node.input[0], inputs)
    if one.convolution:
        given = conv_rows(edit, one, given, zero)
    zeros = edit.add_constant(np.zeros(scales.size, np.int8), f"{name}.zero")
    product = edit.add("MatMulInteger", [given, edit.add_constant(integers, f"{name}.weight"), zero, zeros], name=name)
    both = edit.add("Mul", [scale, edit.add_constant(scales, f"{name}.scale")], name=f"{name}.scales")
    said = edit.add("Mul", [edit.add("Cast", [product], to=TensorProto.FLOAT), both], name=f"{name}.float")
    if one.bias is not None:
        said = edit.add("Add", [said, edit.add_constant(one.bias, f"{name}.bias")], name=f"{name}.add")
    if one.convolution:
        said = edit.add("Transpose", [said], perm=SWAP)
    add_bias_again(edit, node.output[0])
    edit.replace(node.output[0], said)
    edit.remove(node)


def _in_bytes(edit: Edit, name: str, inputs: dict[str, tuple[str, str, str]]) -> tuple[str, str, str]:
    if name not in inputs:
        first = edit.add("DynamicQuantizeLinear", [name], outputs=3)
        made = edit.maker[first]
        inputs[name] = (made.output[0], made.output[1], made.output[2])
    return inputs[name]


def conv_rows(edit: Edit, one: Weighted, given: str, zero: str) -> str:
    """The rows that a convolution's matrix multiplies, from its input (batch, channels, time) in any number type.

    ``zero`` is what stands for zero there: padding is filled with it.
    """
    settings = attributes(one.node)
    width, stride = settings["kernel_shape"][0], settings.get("strides", [1])[0]
    rows = edit.add("Transpose", [given], perm=SWAP)
    before, after = settings.get("pads", [0, 0])
    if before or after:
        pads = edit.add_constant(np.array([0, before, 0, 0, after, 0], np.int64))
        rows = edit.add("Pad", [rows, pads, zero])
    return windows(edit, rows, width, stride, one.matrix.shape[0] // width, one.name)


def add_bias_again(edit: Edit, name: str) -> None:
    """Let a bias be added by Add again: behind an integer product ONNX Runtime takes it into the product."""
    for node in edit.readers(name):
        if node.op_type == "Sum" and edit.split_constant(node) is not None:
            output = node.output[0]
            edit.remove(node)
            edit.add("Add", list(node.input), name=node.name, outputs=[output])
