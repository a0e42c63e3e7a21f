"""The ONNX graph of a model: traced, quantised, described."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch

from edgecompress.errors import ExportError
from edgecompress.exporters.onnx import MODEL_FILE
from edgecompress.exporters.order import Written
from edgecompress.exporters.tracing import trace_inputs
from edgecompress.records import Tensor

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.model.forms import Form

OPSET = 17  # LayerNormalization is one node from here on; ONNX Runtime 1.13 and later read it
IR_VERSION = 8
LARGEST_BYTES = 2**31 - 1  # protobuf's limit for one file
QUANTIZED = ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm")


def write_fp32(model: Model, form: Form, file: Path, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Trace the model into ``file``, check it, and return what was written.

    By torch's TorchScript-based exporter, deprecated as it is: a tiny model takes it 0.3 s and the other one 8 to 16,
    HuBERT base 1.6-1.9 s against 9-13, and the graphs are as fast in ONNX Runtime (353 ms against 351-380 for 5 s of
    audio). The other writes IR version 10, which ONNX Runtime before 1.18 refuses; this one 8.

    Raises:
        ExportError: the file would be larger than ONNX can hold in one file.
    """
    module, inputs = form.module(model), trace_inputs(model, form)
    size = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    if size > LARGEST_BYTES:
        raise ExportError(
            f"onnx: {size / 1e9:.1f} GB of weights do not fit one file", hint="2 GB is the format's limit"
        )
    axes = {
        port.name: {axis: size for axis, size in enumerate(port.shape) if isinstance(size, str)}
        for port in (*form.inputs, *form.outputs)
    }
    with _quiet():
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
    return _finish(graph, file, metadata)


def write_int8(full: Path, file: Path, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Quantise the matrix products of an fp32 file, check, and return what was written.

    Weights are int8 with a scale for each output column, inputs uint8 with a scale for each tensor, found at run time.
    Convolutions are left alone: ONNX Runtime's dynamic int8 ones double the time (397 ms against 202).
    Weights keep to 7 bits: x86 processors without VNNI add pairs of products in 16 bits, which 8 bits overflow, and
    the same file would say something else on such a board. With a scale for each column that costs little: 1 - cosine
    2.6e-3 instead of 2.2e-3 (whisper-tiny.en on speech), and one scale for each matrix would cost more (7.8e-3).

    Raises:
        ExportError: there was nothing to quantise.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    full_graph = onnx.load(str(full))
    unshare_matrices(full_graph)
    with _quiet():
        quantize_dynamic(
            full_graph,
            str(file),
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
    graph = onnx.load(str(file))
    if not quantized_nodes(graph):
        raise ExportError("onnx int8: no matrix product was quantised", hint="use fp32: int8 would be the same file")
    return _finish(graph, file, metadata)


def unshare_matrices(graph: onnx.ModelProto) -> None:
    """Give each Gemm a matrix of its own where another node reads it too.

    ONNX Runtime's quantiser turns a Gemm's matrix over in place, and a Whisper's words, which are looked up and
    multiplied with, would then be looked up along the wrong axis.
    """
    matrices = {tensor.name: tensor for tensor in graph.graph.initializer}
    readers = Counter(name for node in graph.graph.node for name in node.input)
    for node in graph.graph.node:
        if node.op_type == "Gemm" and readers[node.input[1]] > 1 and node.input[1] in matrices:
            own = onnx.TensorProto()
            own.CopyFrom(matrices[node.input[1]])
            own.name = f"{node.name}.{own.name}"
            graph.graph.initializer.append(own)
            node.input[1] = own.name


def quantized_nodes(graph: onnx.ModelProto) -> int:
    """How many matrix products of a graph are done in integers."""
    return sum(node.op_type in QUANTIZED for node in graph.graph.node)


def _finish(graph: onnx.ModelProto, file: Path, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Put the metadata in, in the place of any that is there, write, and check."""
    graph.producer_name = "edgecompress"
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, dict(metadata))
    onnx.save(graph, str(file))
    onnx.checker.check_model(str(file), full_check=True)
    return graph


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


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracer's and the quantiser's advice: it is about shapes that parity checks."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
