"""What a library's own defaults make of a graph, to compare with what is made here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from edgecompress.errors import ExportError
from edgecompress.exporters.onnx_file import finish
from edgecompress.quiet import quiet


def write_int8_naive(
    full: Path, file: Path, metadata: Mapping[str, str], feeds: object = None, float_nodes: Sequence[str] = ()
) -> onnx.ModelProto:
    """``quantize_dynamic`` of ONNX Runtime with nothing asked: every kind of operator it knows, one scale a matrix.

    Not to be used: its convolutions are slower than those in fp32 (HuBERT base, 5 s: 397 ms against 202). It is a
    precision so that a job's report can show it beside the others.

    Raises:
        ExportError: there was nothing to quantise, or parts were to stay in fp32, which these defaults know nothing of.
    """
    from onnxruntime.quantization import quantize_dynamic

    if float_nodes:
        raise ExportError("onnx int8-naive leaves no part in fp32", hint="use int8")
    with quiet():
        quantize_dynamic(str(full), str(file))
    graph = onnx.load(str(file))
    if not any(node.op_type in ("MatMulInteger", "ConvInteger", "DynamicQuantizeLSTM") for node in graph.graph.node):
        raise ExportError("onnx int8-naive: nothing was quantised", hint="use fp32: int8 would be the same file")
    return finish(graph, file, metadata)
