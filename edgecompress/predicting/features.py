"""What of an artifact time may hang on: multiply-accumulates by kind, bytes moved, and operators to start.

Multiply-accumulates are those of the artifact's record, scaled to the length that is asked for: products and convolutions
go with it, the two products of attention with its square. Bytes and operators are counted in the file itself, at the
shapes that would be fed: weights are its stored constants, activations every tensor that an operator writes, once and at
its own width. Reshapes and the like move nothing and count neither. What a runtime fuses or keeps in cache is not known,
so activations are an upper estimate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

import numpy

from edgecompress import plain
from edgecompress.errors import RecipeError, RecordError
from edgecompress.records import Artifact
from edgecompress.session import feeds

# Parts of a cost (``cost.macs``, or operators of a file made elsewhere) by kind; all others are matrix products.
CONVOLUTIONS = ("front_end", "position_conv", "Conv", "ConvInteger", "QLinearConv", "ConvTranspose")
ATTENTION = ("attention_scores",)
# Operators, as ONNX, OpenVINO and TFLite spell them, that only say how bytes already there are to be read, or hold them.
VIEWS = frozenset({
    "Constant", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Shape", "ShapeOf", "Parameter", "Result",
    "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "SHAPE",
})  # fmt: skip
Shapes = Mapping[str, list[int]]


@dataclass(frozen=True)
class Features:
    """Counts of one inference, batch 1."""

    macs_gemm: float
    macs_conv: float
    macs_attention: float
    bytes_weights: float
    bytes_activations: float
    operators: float

    @property
    def macs(self) -> float:
        """All multiply-accumulates."""
        return self.macs_gemm + self.macs_conv + self.macs_attention

    def as_dict(self) -> dict[str, float]:
        """The counts by name, in the order of ``NAMES``."""
        return {name: float(value) for name, value in asdict(self).items()}


NAMES = tuple(one.name for one in fields(Features))


@dataclass(frozen=True)
class Graph:
    """What a file's graph tells at given input shapes."""

    operators: int
    bytes_weights: int
    bytes_activations: int


def of_artifact(artifact: Artifact, folder: Path, seconds: float | None = None) -> Features:
    """Features of an artifact for ``seconds`` of audio, those of its golden input by default.

    Raises:
        RecipeError: its multiply-accumulates could not be counted, or it cannot be that long, or no reader for the format.
        RecordError: a file is missing.
        ModuleNotFoundError: the library that reads the format is not installed here.
    """
    file = folder / artifact.model_file
    if not file.is_file():
        raise RecordError(f"{file}: no such file, though the artifact names it", hint="export it again")
    gemm, conv, attention = macs_by_kind(artifact, seconds)
    graph = of_file(file, shapes_of(artifact, folder, seconds))
    return Features(gemm, conv, attention, graph.bytes_weights, graph.bytes_activations, graph.operators)


def macs_by_kind(artifact: Artifact, seconds: float | None = None) -> tuple[float, float, float]:
    """Multiply-accumulates of (matrix products, convolutions, attention's products).

    Raises:
        RecipeError: nobody could count them.
    """
    counted = artifact.cost.macs
    if counted is None:
        raise RecipeError(f"{artifact.name}: its multiply-accumulates are not known", hint="measure it instead: bench")
    known = artifact.cost.seconds
    longer = 1.0 if seconds is None or not known or counted.per_second is None else seconds / known
    found = [0.0, 0.0, 0.0]
    for name, count in counted.parts.items():
        kind = 1 if name in CONVOLUTIONS else 2 if name in ATTENTION else 0
        found[kind] += count * (longer**2 if kind == 2 else longer)
    return found[0], found[1], found[2]


def shapes_of(artifact: Artifact, folder: Path, seconds: float | None = None) -> dict[str, list[int]]:
    """Shapes that would be fed: those of the golden input, fitted to ``seconds``.

    Raises:
        RecipeError: the artifact cannot be that long.
        RecordError: a golden input is missing or is no array.
    """
    found = {}
    for name, file in artifact.golden.inputs.items():
        try:
            found[name] = list(numpy.load(folder / file, mmap_mode="r", allow_pickle=False).shape)
        except (OSError, ValueError) as cause:
            raise RecordError(f"{folder / file}: not readable as an array: {cause}", hint="export it again") from cause
    for name, axes in feeds.lengths(artifact, seconds)[0].items():
        for axis, length in axes if name in found else []:
            found[name][axis] = length
    return found


def of_file(file: Path, shapes: Shapes) -> Graph:
    """Operators and bytes of a model file, ``.onnx``, ``.xml`` or ``.tflite``, at these input shapes.

    Raises:
        RecipeError: another suffix, or a graph whose shapes cannot be known without running it.
    """
    readers = {"onnx": _onnx, "openvino": _openvino, "tflite": _tflite}
    return readers[plain.kind_of(file).format](file, shapes)


def _unknown(file: Path, names: Iterable[str]) -> RecipeError:
    listed = ", ".join(list(names)[:3])
    return RecipeError(f"{file}: shapes hang on what is fed ({listed})", hint="measure it instead: bench")


def _onnx(file: Path, shapes: Shapes) -> Graph:
    import onnx

    from edgecompress.exporters.onnx_cost import fix_inputs

    model = onnx.load(str(file))
    fix_inputs(model, shapes)
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception as cause:
        raise RecipeError(f"{file}: no shapes: {cause}", hint="measure it instead: bench") from cause
    written: dict[str, int] = {}
    for value in (*graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if all(dim.HasField("dim_value") for dim in kind.shape.dim) and kind.HasField("shape"):
            wide = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
            written[value.name] = wide * prod(int(dim.dim_value) for dim in kind.shape.dim)
    acting = [node for node in graph.node if node.op_type not in VIEWS]
    outputs = [name for node in acting for name in node.output if name]
    lost = [name for name in outputs if name not in written]
    if len(lost) > len(outputs) // 20:  # operators of a runtime's own (a fused quantised product) have no inference
        raise _unknown(file, lost)
    held = sum(len(one.raw_data) or _held(one) for one in graph.initializer)
    return Graph(len(acting), held, sum(written.get(name, 0) for name in outputs))


def _held(tensor: Any) -> int:
    import onnx

    return int(onnx.numpy_helper.to_array(tensor).nbytes)


def _openvino(file: Path, shapes: Shapes) -> Graph:
    import openvino

    model = openvino.Core().read_model(str(file))
    known = {port.get_any_name() for port in model.inputs}
    model.reshape({name: list(shape) for name, shape in shapes.items() if name in known})
    constants = {node.get_name() for node in model.get_ops() if node.get_type_name() == "Constant"}
    unpacked = constants | {  # a compressed weight is widened once, when the model is compiled
        node.get_name()
        for node in model.get_ops()
        if node.get_type_name() == "Convert" and node.input_value(0).get_node().get_name() in constants
    }
    acting = [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() not in VIEWS and node.get_name() not in unpacked
    ]
    ports = [port for node in acting for port in node.outputs()]
    if lost := [port.get_node().get_name() for port in ports if port.get_partial_shape().is_dynamic]:
        raise _unknown(file, lost)
    moved = sum(port.get_element_type().bitwidth * prod(port.get_shape()) // 8 for port in ports)
    weights = plain.weights_of(file)
    return Graph(len(acting), weights.stat().st_size if weights else 0, moved)


def _tflite(file: Path, shapes: Shapes) -> Graph:
    from ai_edge_litert import schema_py_generated as schema

    from edgecompress.exporters import tflite_file

    widths = {"FLOAT32": 4, "INT32": 4, "FLOAT16": 2, "INT8": 1, "UINT8": 1, "BOOL": 1, "INT64": 8, "INT16": 2}
    kinds = {value: name for name, value in vars(schema.TensorType).items() if not name.startswith("_")}
    model = tflite_file.read(file)
    found = [one for one in model.subgraphs if _takes(one, shapes)]
    if not found:
        raise _unknown(file, shapes)
    graph = found[0]
    held, moved, acting = set(), 0, 0
    for operator in graph.operators:
        held |= {graph.tensors[place].buffer for place in operator.inputs if place >= 0}
        if tflite_file.kind_of(model, operator) in VIEWS:
            continue
        acting += 1
        for place in operator.outputs:
            tensor = graph.tensors[place]
            size = prod(int(one) for one in tensor.shape) if tensor.shape is not None else 1
            moved += widths.get(kinds[tensor.type], 4) * size
    data = (model.buffers[place].data for place in held)
    return Graph(acting, sum(len(one) for one in data if one is not None), moved)


def _takes(graph: Any, shapes: Shapes) -> bool:
    """Whether a subgraph's inputs have these shapes (a file may hold one subgraph a length)."""
    there = sorted([int(one) for one in graph.tensors[place].shape] for place in graph.inputs)
    return there == sorted(list(shape) for shape in shapes.values())
