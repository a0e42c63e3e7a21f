"""How a plain ONNX file is written in each format: what a converter makes of it, and quantisation after that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgecompress.errors import ExportError
from edgecompress.exporters.order import Written
from edgecompress.model.forms import Interface, Port
from edgecompress.quiet import quiet
from edgecompress.records import Tensor

if TYPE_CHECKING:
    import onnx

    from edgecompress.exporters.opened import Opened

LARGEST_BYTES = 2**31 - 1
INTEGER_PRODUCTS = ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")
SMALL = 64  # numbers; what is smaller is no weight


@dataclass(frozen=True)
class FileForm(Interface):
    """The inputs and outputs of a file that somebody made."""

    @staticmethod
    def of(opened: Opened) -> FileForm:
        """As a runtime tells of them; a dimension without a name is called by its input and place."""
        return FileForm("file", _ports(opened.inputs), _ports(opened.outputs), "values")

    @property
    def time_axis(self) -> int:
        """The last axis that may vary, else the last."""
        shape = self.inputs[0].shape
        return max((axis for axis, size in enumerate(shape) if isinstance(size, str)), default=len(shape) - 1)


@dataclass(frozen=True)
class FileOrder:
    """One file to write: the given one (and as read, its weights in it), precision, folder, the golden input, inputs to
    calibrate with, and what goes into the file's metadata.
    """

    file: Path
    proto: onnx.ModelProto
    form: FileForm
    precision: str
    folder: Path
    example: Mapping[str, np.ndarray]
    calibration: Sequence[Mapping[str, np.ndarray]]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Writer:
    """A format's function, the precisions it has for plain files, and whether the file's sizes are fixed."""

    write: Callable[[FileOrder], Written]
    precisions: tuple[str, ...]
    fixed: bool = False


def write_onnx(order: FileOrder) -> Written:
    """The same graph in one file: as it is, with weights in float16, or with its matrix products in integers.

    float16 weights are cast to float32 when the file is opened: what computes in float16 (ONNX Runtime's converter) dies
    of a segmentation fault at a GRU, and is slower on a CPU.
    """
    import onnx

    file, proto = order.folder / "model.onnx", order.proto
    if proto.ByteSize() > LARGEST_BYTES:
        raise ExportError(
            f"onnx: {proto.ByteSize() / 1e9:.1f} GB do not fit one file", hint="2 GB is the format's limit"
        )
    if order.precision == "fp16":
        proto = _half(_copy(proto))
    elif order.precision == "int8":
        proto = _in_integers(_copy(proto), file)
    proto = _copy(proto)
    kept = {each.key: each.value for each in order.proto.metadata_props}
    onnx.helper.set_model_props(proto, {**kept, **order.metadata})
    onnx.save(proto, str(file))
    return _described(order, file, _integer_products(proto) if order.precision == "int8" else None)


def write_openvino(order: FileOrder) -> Written:
    """By OpenVINO's own reader of ONNX."""
    from edgecompress.exporters.openvino import runtime

    openvino = runtime()
    from edgecompress.exporters import openvino_graph as graph

    try:
        made = openvino.convert_model(str(order.file))
    except Exception as cause:
        raise ExportError(
            f"OpenVINO cannot read {order.file.name}: {_said_of_operators(str(cause))}", hint="leave the file ONNX"
        ) from cause
    for parameter, port in zip(made.get_parameters(), order.form.inputs, strict=True):
        words = [str(size) if isinstance(size, str) and size.isidentifier() else "?" for size in port.shape]
        try:
            parameter.set_layout(openvino.Layout(f"[{','.join(words)}]"))
        except RuntimeError:  # b and n are one word to it (batch), and so are some others: then dimensions go unnamed
            continue
    feeds = list(order.calibration) if order.precision == "int8-static" else []
    made = graph.at_precision(made, order.precision, order.form, feeds)
    return graph.write(made, order.precision, order.form, order.folder / "model.xml", order.metadata)


def write_tflite(order: FileOrder) -> Written:
    """By way of torch, at the sizes of the golden input."""
    from edgecompress.exporters import tflite_file, tflite_graph
    from edgecompress.exporters.onnx_torch import OnnxModule

    module = OnnxModule(order.proto, order.example)
    tensors = tuple(torch.from_numpy(np.ascontiguousarray(order.example[name])) for name in module.input_names)
    file, full = order.folder / "model.tflite", order.folder / "fp32.tflite"
    tflite_graph.convert({SIGNATURE: (module, tensors)}, module.input_names, module.output_names, full)
    tflite_file.finish(full, {})
    if order.precision == "fp32":
        full.replace(file)
    else:
        static = order.precision == "int8-static"
        ranges = {SIGNATURE: [_sized(order, each) for each in order.calibration]} if static else None
        try:
            tflite_graph.quantize(full, file, order.precision, (), ranges)
        except RuntimeError as cause:
            if "QSV" not in str(cause):
                raise
            raise ExportError(
                f"tflite int8-static of {order.file.name}: the quantiser has no range for a product of inputs or constants",
                hint="use int8, which takes ranges at run time",
            ) from cause
        full.unlink()
    tables = tflite_file.finish(file, order.metadata)
    small = tflite_file.small_weights(tables) if order.precision.startswith("int8") else None
    return _described(order, file, small, {"operators": tflite_file.operators(tables)})


SIGNATURE = "serving_default"
WRITERS = {
    "onnx": Writer(write_onnx, ("fp32", "fp16", "int8")),
    "openvino": Writer(write_openvino, ("fp32", "fp16", "int8", "int8-static", "int8-weights", "int4-weights")),
    "tflite": Writer(write_tflite, ("fp32", "fp16", "int8", "int8-static", "int8-weights"), fixed=True),
}


def _ports(described: Sequence[Mapping[str, Any]]) -> tuple[Port, ...]:
    found = []
    for each in described:
        shape = tuple(
            size if isinstance(size, int) and size > 0 else str(size or f"{each['name']}.{axis}")
            for axis, size in enumerate(each["shape"])
        )
        found.append(Port(str(each["name"]), shape, str(each["dtype"])))
    return tuple(found)


def _described(
    order: FileOrder, file: Path, quantized: int | None = None, lineage: Mapping[str, Any] | None = None
) -> Written:
    """What a file's own runtime tells of it."""
    from edgecompress.exporters.opened import opened

    found = FileForm.of(opened(file))
    return Written(
        model_file=file.name,
        inputs=[Tensor(name=port.name, dtype=port.dtype, shape=list(port.shape)) for port in found.inputs],
        outputs=[Tensor(name=port.name, dtype=port.dtype, shape=list(port.shape)) for port in found.outputs],
        quantized_nodes=quantized or None,
        lineage=dict(lineage or {}),
    )


def _sized(order: FileOrder, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs tiled or cut to the sizes of the golden one, integers as the file takes them."""
    found = {}
    for name, array in feeds.items():
        for axis, size in enumerate(order.example[name].shape):
            array = np.take(array, np.arange(size) % array.shape[axis], axis=axis)
        found[name] = array.astype(np.int32) if array.dtype == np.int64 else np.ascontiguousarray(array)
    return found


def _in_integers(proto: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    """Matrix products with int8 weights of 7 bits, a scale for each column, inputs quantised at run time.

    Raises:
        ExportError: there are none.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    readers = Counter(name for node in proto.graph.node for name in node.input)
    for number, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    # it turns a Gemm's matrix over in place, which whoever else reads it would not expect
    shared = [node.name for node in proto.graph.node if node.op_type == "Gemm" and readers[node.input[1]] > 1]
    with quiet():
        quantize_dynamic(
            proto,
            str(file),
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=shared,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,  # 8 bits overflow on x86 processors without VNNI
        )
    made = onnx.load(str(file))
    if not _integer_products(made):
        raise ExportError("onnx int8: no matrix product was quantised", hint="use fp32: int8 would be the same file")
    return made


def _integer_products(proto: onnx.ModelProto) -> int:
    return sum(node.op_type in INTEGER_PRODUCTS for node in proto.graph.node)


def _half(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Weights in float16, each behind a cast to float32; those that float16 cannot hold stay.

    Raises:
        ExportError: there are none.
    """
    import onnx

    casts = []
    for each in proto.graph.initializer:
        if each.data_type != onnx.TensorProto.FLOAT:
            continue
        values = onnx.numpy_helper.to_array(each)
        if values.size < SMALL or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        name = each.name
        each.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [each.name], [name], f"{name}.whole", to=onnx.TensorProto.FLOAT))
    if not casts:
        raise ExportError("onnx fp16: there are no float32 weights", hint="use fp32: fp16 would be the same file")
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def _said_of_operators(text: str) -> str:
    """The line that names the operators in the way, where there is one: the first lines name OpenVINO's sources."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "not support" in line.lower() or "operations" in line.lower()), lines[-1])[
        :300
    ]
