"""Weights stored as integers, everything computed in float: small files, little lost, and no time won."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from edgecompress.errors import ExportError
from edgecompress.exporters.onnx_edit import MICROSOFT, Edit
from edgecompress.exporters.onnx_file import finish
from edgecompress.exporters.onnx_weights import Weighted, in_integers, weighted

BLOCK = 32  # 4-bit weights that share a scale
WHOLE = 127  # all 8 bits: nothing is added up in integers


def write_int8_weights(
    full: Path, file: Path, metadata: Mapping[str, str], feeds: object = None, float_nodes: Sequence[str] = ()
) -> onnx.ModelProto:
    """Store weights as int8 with a scale for each output, check, and return what was written.

    They are made floats again by DequantizeLinear, which every runtime reads, each time the graph runs: 5 s of audio take
    1.17 (HuBERT base) or 1.25 times (Whisper base) as long as in fp32 in ONNX Runtime 1.31. Its own MatMulNBits with 8
    bits takes 1.1 (computing in integers) to 1.36 times, and older ones cannot read that.

    Raises:
        ExportError: there are no weights, or a name in ``float_nodes`` is no node's.
    """
    edit = Edit(onnx.load(str(full)))
    for one in _found(edit, float_nodes, 8):
        _unpack_each_time(edit, one)
    return finish(edit.finish(), file, metadata)


def write_int4_weights(
    full: Path, file: Path, metadata: Mapping[str, str], feeds: object = None, float_nodes: Sequence[str] = ()
) -> onnx.ModelProto:
    """Store the weights of products in 4 bits, a scale for each 32 of them, and of convolutions in 8; check; return.

    By com.microsoft's MatMulNBits, for ONNX Runtime 1.16 and later, computing in float32: HuBERT and Whisper base
    take 1.01 to 1.04 times as long as in fp32. With integer products (its accuracy level 4) it would take 1.25 times.

    Raises:
        ExportError: there are no weights, or a name in ``float_nodes`` is no node's.
    """
    edit = Edit(onnx.load(str(full)))
    for one in _found(edit, float_nodes, 4):
        if one.convolution:
            _unpack_each_time(edit, one)
        else:
            _in_blocks(edit, one)
    return finish(edit.finish(), file, metadata)


def _found(edit: Edit, float_nodes: Sequence[str], bits: int) -> list[Weighted]:
    found = weighted(edit, float_nodes, grouped=True)
    if not found:
        raise ExportError(f"onnx int{bits}-weights: no weights to quantise", hint="use fp32: it would be the same file")
    return found


def _unpack_each_time(edit: Edit, one: Weighted) -> None:
    node, name = one.node, one.name
    array = edit.constant(node.input[1])
    if array is None:
        return
    axis = 0 if one.outputs_first else 1
    matrix = array.reshape(array.shape[0], -1).T if one.outputs_first else array
    integers, scales = in_integers(matrix, WHOLE)
    stored = np.ascontiguousarray(integers.T).reshape(array.shape) if one.outputs_first else integers
    parts = {"weight": stored, "scale": scales, "zero": np.zeros(scales.size, np.int8)}
    given = [edit.add_constant(part, f"{name}.{kind}") for kind, part in parts.items()]
    edit.set_input(node, 1, edit.add("DequantizeLinear", given, name=f"{name}.weights", axis=axis))


def _in_blocks(edit: Edit, one: Weighted) -> None:
    node, name = one.node, one.name
    inputs, outputs = one.matrix.shape
    packed, scales = in_nibbles(one.matrix)
    given = [node.input[0], edit.add_constant(packed, f"{name}.weight"), edit.add_constant(scales, f"{name}.scale")]
    said = edit.add("MatMulNBits", given, name=name, domain=MICROSOFT, K=inputs, N=outputs, bits=4, block_size=BLOCK)
    if one.bias is not None:
        said = edit.add("Add", [said, edit.add_constant(one.bias, f"{name}.bias")], name=f"{name}.add")
    edit.replace(node.output[0], said)
    edit.remove(node)


def in_nibbles(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, outputs) in 4 bits, as MatMulNBits takes it: (outputs, blocks, bytes) and (outputs * blocks) scales.

    8 stands for zero. The weight of a block that is farthest from zero becomes -8, the one value whose opposite there
    is not, by a scale of the sign that this takes.
    """
    inputs, outputs = matrix.shape
    blocks = -(-inputs // BLOCK)
    padded = np.zeros((outputs, blocks * BLOCK), np.float32)
    padded[:, :inputs] = matrix.T
    grouped = padded.reshape(outputs, blocks, BLOCK)
    farthest = np.take_along_axis(grouped, np.abs(grouped).argmax(axis=2)[..., None], axis=2)
    scales = np.where(farthest == 0, np.float32(1), farthest / np.float32(-8)).astype(np.float32)
    integers = (np.clip(np.rint(grouped / scales), -8, 7) + 8).astype(np.uint8)
    return integers[..., 0::2] | integers[..., 1::2] << 4, scales.reshape(-1)
