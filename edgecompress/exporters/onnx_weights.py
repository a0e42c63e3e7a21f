"""Which nodes of a graph hold weights worth quantising, what they are called, and their weights in integers."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto

from edgecompress.errors import ExportError
from edgecompress.exporters.onnx_edit import Edit, attributes
from edgecompress.exporters.onnx_names import readable

NARROW = 16  # products with fewer inputs or outputs take longer to quantise than to compute (WavLM's gates have 8)
KEPT = "log_mel"  # the front end that makes log-mel frames: a spectrum in 8 bits would be another one


@dataclass(frozen=True)
class Weighted:
    """A node with weights: ``matrix`` (inputs, outputs) multiplies rows of inputs; for a convolution (width, inputs)."""

    node: NodeProto
    matrix: np.ndarray
    bias: np.ndarray | None = None

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def convolution(self) -> bool:
        return bool(self.node.op_type == "Conv")

    @property
    def outputs_first(self) -> bool:
        """Whether the first axis of the weights, as they lie in the file, is that of the outputs."""
        return self.convolution or bool(self.node.op_type == "Gemm" and attributes(self.node).get("transB", 0))

    @property
    def grouped(self) -> bool:
        """Whether it is a convolution of more than one group."""
        return self.convolution and bool(attributes(self.node).get("group", 1) != 1)


def weighted(edit: Edit, float_nodes: Sequence[str] = (), grouped: bool = False) -> list[Weighted]:
    """The nodes that can be quantised, without those that are to stay float, in the order of the file.

    ``grouped``: convolutions of many groups too; their weights can be stored in integers, but not used as such.

    Raises:
        ExportError: no node is called so; the nearest name is the hint.
    """
    found = {}
    for node in edit.of_type("MatMul", "Gemm", "Conv"):
        node.name = readable(node.name)
        one = _weights_of(edit, node)
        if one is not None and min(one.matrix.shape) >= NARROW and not node.name.startswith(KEPT):
            found[node.name] = one
    for name in float_nodes:
        if name not in found:
            near = difflib.get_close_matches(name, found, 1, 0)
            raise ExportError(
                f"onnx: no node {name!r} could stay float", hint=f"did you mean {near[0]!r}?" if near else ""
            )
    return [one for name, one in found.items() if name not in float_nodes and (grouped or not one.grouped)]


def quantizable(file: Path) -> list[str]:
    """The names of the nodes that quantised precisions change, and ``float_nodes`` may hold, in the order of the file.

    They are the modules' paths: ``encoder.layers.3.feed_forward.output_dense``. ``file`` is the fp32 one.
    """
    return [one.name for one in weighted(Edit(onnx.load(str(file))), grouped=True)]


def _weights_of(edit: Edit, node: NodeProto) -> Weighted | None:
    array = edit.constant(node.input[1])
    settings = attributes(node)
    if array is None or array.dtype != np.float32:
        return None
    bias = edit.constant(node.input[2]) if len(node.input) > 2 else None
    if node.op_type == "MatMul":
        return Weighted(node, array) if array.ndim == 2 else None
    if node.op_type == "Gemm":
        plain = settings.get("alpha", 1.0) == settings.get("beta", 1.0) == 1.0 and not settings.get("transA", 0)
        return Weighted(node, array.T if settings.get("transB", 0) else array, bias) if plain else None
    plain = set(settings.get("dilations", [1])) == {1}
    plain = plain and settings.get("auto_pad", b"NOTSET") == b"NOTSET" and array.shape[1] >= NARROW
    if not plain or array.ndim != 3:
        return None
    return Weighted(node, array.transpose(2, 1, 0).reshape(-1, array.shape[0]), bias)


def in_integers(matrix: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 within ±``most`` and a scale for each column: ``integers * scales`` is the matrix, rounded.

    The greatest weight of a column gives its scale. Smaller scales that cut it off, by least squares, gained nothing
    (1 - cosine 3.4e-3 with and without, whisper-tiny.en on speech, 7 bits) and took longer than all the rest.
    """
    scales = (np.maximum(np.abs(matrix).max(axis=0), np.float32(1e-12)) / most).astype(np.float32)
    return np.rint(matrix / scales).astype(np.int8), scales
