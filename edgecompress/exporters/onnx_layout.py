"""Convolutions over time as matrix products, and the transposes that this asks for where they cost least."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from edgecompress.exporters.onnx_edit import Edit, attributes

SWAP = [0, 2, 1]  # (batch, channels, time) <-> (batch, time, channels)
POINTWISE = ("Erf", "Gelu", "Relu", "Sigmoid", "Tanh", "Cast", "DynamicQuantizeLinear", "QuantizeLinear")
PAIRWISE = ("Add", "Sub", "Mul", "Div", "Sum")


def windows(edit: Edit, rows: str, width: int, stride: int, channels: int, name: str) -> str:
    """(batch, time, channels) -> (batch, steps, width * channels): what each step of a convolution sees, one row each.

    Any length: the steps are counted when the graph runs. Of bytes, this copy takes a quarter of the time.
    """
    if width == stride == 1:
        return rows
    time = edit.add("Gather", [edit.add("Shape", [rows]), edit.add_constant(np.int64(1))], axis=0)
    end = edit.add("Sub", [time, edit.add_constant(np.int64(width - 1))])
    starts = edit.add("Range", [edit.add_constant(np.int64(0)), end, edit.add_constant(np.int64(stride))])
    column = edit.add("Unsqueeze", [starts, edit.add_constant(np.array([1], np.int64))])
    places = edit.add("Add", [column, edit.add_constant(np.arange(width, dtype=np.int64)[None])])
    picked = edit.add("Gather", [rows, places], name=f"{name}.windows", axis=1)
    return edit.add("Reshape", [picked, edit.add_constant(np.array([0, 0, width * channels], np.int64))])


def sink_transposes(edit: Edit) -> None:
    """Move swaps of channels and time behind what works on each number alone, and let two in a row vanish."""
    waiting = [node for node in edit.of_type("Transpose") if swaps(node)]
    while waiting:
        node = waiting.pop(0)
        if id(node) not in edit.nodes:
            continue
        for reader in edit.readers(node.output[0]):
            if id(reader) not in edit.nodes:
                continue
            if swaps(reader):
                edit.replace(reader.output[0], node.input[0])
                edit.remove(reader)
            elif _movable(edit, reader):
                waiting.append(_behind(edit, reader))
        if not edit.readers(node.output[0]) and node.output[0] not in edit.outputs:
            edit.remove(node)


def swaps(node: NodeProto | None) -> bool:
    """Whether a node swaps the last two of three axes."""
    return node is not None and node.op_type == "Transpose" and attributes(node).get("perm") == SWAP


def _movable(edit: Edit, node: NodeProto) -> bool:
    if node.output[0] in edit.outputs:
        return False
    if node.op_type in POINTWISE:
        return True
    return node.op_type in PAIRWISE and all(
        swaps(edit.maker.get(name)) or edit.scalar(name) is not None for name in node.input
    )


def _behind(edit: Edit, node: NodeProto) -> NodeProto:
    """Let a node read what was before the swaps, and swap its result; the new swap."""
    readers = edit.readers(node.output[0])
    for place, name in enumerate(node.input):
        before = edit.maker.get(name)
        if before is not None and swaps(before):
            edit.set_input(node, place, before.input[0])
    swapped = edit.add("Transpose", [node.output[0]], perm=SWAP)
    for reader in readers:
        for place, name in enumerate(reader.input):
            if name == node.output[0]:
                edit.set_input(reader, place, swapped)
    return edit.maker[swapped]
