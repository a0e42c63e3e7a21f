"""The ONNX graph of a model: traced, quantised, described."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch

from edgecompress.exporters.onnx import MODEL_FILE
from edgecompress.exporters.onnx_file import finish
from edgecompress.exporters.onnx_names import WITH_WEIGHTS
from edgecompress.exporters.onnx_tidy import tidy
from edgecompress.exporters.order import Written
from edgecompress.exporters.tracing import trace_inputs
from edgecompress.quiet import quiet
from edgecompress.records import Tensor

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.model.forms import Form

OPSET = 17  # LayerNormalization is one node from here on; ONNX Runtime 1.13 and later read it
IR_VERSION = 8
QUANTIZED = ("MatMulInteger", "MatMulNBits", "ConvInteger")


def write_fp32(model: Model, form: Form, file: Path, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Trace the model into ``file``, mend the graph, check it, and return what was written.

    By torch's TorchScript-based exporter, deprecated as it is: a tiny model takes it 0.3 s and the other one 8 to 16,
    HuBERT base 1.6-1.9 s against 9-13, and the graphs are as fast in ONNX Runtime (353 ms against 351-380 for 5 s of
    audio). The other writes IR version 10, which ONNX Runtime before 1.18 refuses; this one 8. What is mended saves
    2.5 (HuBERT base, 5 s of audio) to 4 % (Whisper base, WavLM base) of the time in ONNX Runtime 1.31.
    """
    return finish(tidy(traced(model, form, file.parent)), file, metadata)


def traced(model: Model, form: Form, folder: Path) -> onnx.ModelProto:
    """The model's graph as torch writes it, in operators that every reader of ONNX knows; ``folder`` is for scratch."""
    module, inputs = form.module(model), trace_inputs(model, form)
    axes = {
        port.name: {axis: size for axis, size in enumerate(port.shape) if isinstance(size, str)}
        for port in (*form.inputs, *form.outputs)
    }
    with quiet(), tempfile.TemporaryDirectory(dir=folder) as scratch:  # weights of more than 2 GB become files there
        file = Path(scratch) / "traced.onnx"
        torch.onnx.export(
            module,
            inputs,
            str(file),
            dynamo=False,
            opset_version=OPSET,
            input_names=[port.name for port in form.inputs],
            output_names=[port.name for port in form.outputs],
            dynamic_axes=axes,
        )
        graph = onnx.load(str(file))
    for value, port in zip(graph.graph.output, form.outputs, strict=True):
        _set_shape(value, port.shape)
    graph.ir_version = IR_VERSION
    return graph


def quantized_nodes(graph: onnx.ModelProto) -> int:
    """How many products and convolutions of a graph are done in integers, or have weights stored as integers."""
    unpacked = {node.output[0] for node in graph.graph.node if node.op_type == "DequantizeLinear"}
    return sum(
        node.op_type in QUANTIZED
        or (node.op_type in WITH_WEIGHTS and len(node.input) > 1 and node.input[1] in unpacked)
        for node in graph.graph.node
    )


def _set_shape(value: onnx.ValueInfoProto, shape: Sequence[int | str]) -> None:
    dimensions = value.type.tensor_type.shape
    del dimensions.dim[:]
    for size in shape:
        new = dimensions.dim.add()
        if isinstance(size, str):
            new.dim_param = size
        else:
            new.dim_value = size


def described(graph: onnx.ModelProto) -> Written:
    return Written(
        model_file=MODEL_FILE,
        inputs=[_tensor(value) for value in graph.graph.input],
        outputs=[_tensor(value) for value in graph.graph.output],
        quantized_nodes=quantized_nodes(graph) or None,
        lineage={
            "opset": next(each.version for each in graph.opset_import if not each.domain),
            "ir_version": graph.ir_version,
            "nodes": len(graph.graph.node),
        },
    )


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    shape: list[int | str] = [size.dim_param or int(size.dim_value) for size in kind.shape.dim]
    return Tensor(name=value.name, dtype=str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), shape=shape)
