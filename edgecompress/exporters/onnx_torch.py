"""An ONNX file as a torch module at fixed sizes: the way from a file made elsewhere to formats that begin with torch.

What does not depend on the values fed (weights, shapes, the choice of a branch) is computed once, when the module is
made; what is left is a list of calls. The operators are those of ``onnx_torch_ops``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from edgecompress.errors import ExportError
from edgecompress.exporters import onnx_torch_layers  # noqa: F401 - enters its operators
from edgecompress.exporters.converting import first_line
from edgecompress.exporters.onnx_torch_ops import OPERATORS, Call

LARGEST_KNOWN = 4096  # axes, shapes, pads: what an operator wants to know in advance is small
AS_CONSTANTS = ("Constant", "ConstantOfShape", "Shape", "Size", "Range")


@dataclass(frozen=True)
class _Step:
    """One call that is left: where its inputs are found (an earlier result, a buffer, or nothing) and what it makes."""

    call: Call
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass
class _Made:
    """What the first pass finds: values by name, which of them never change, and the calls that are left."""

    values: dict[str, Any] = field(default_factory=dict)
    fixed: set[str] = field(default_factory=set)
    steps: list[_Step] = field(default_factory=list)


class OnnxModule(nn.Module):
    """A graph as a module in eval mode: one tensor for each input, in order; answers a tuple, one for each output.

    Args:
        proto: the model, its weights in it.
        example: one array for each input, of the sizes that the module is for.

    Raises:
        ExportError: an operator, or a use of one, that is not known; it is named.
    """

    def __init__(self, proto: onnx.ModelProto, example: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        _refuse_unknown(proto)
        weights = {each.name for each in proto.graph.initializer}
        self.input_names = [each.name for each in proto.graph.input if each.name not in weights]
        self.output_names = [each.name for each in proto.graph.output]
        made = _Made()
        for name in self.input_names:
            made.values[name] = torch.from_numpy(np.ascontiguousarray(example[name]))
        with torch.no_grad():
            _walk(proto.graph, opset_of(proto), made)
        self.steps = made.steps
        # modules of their own, so that what is made of a node has its name
        self.nodes = nn.ModuleDict({_place(i, step.call): _Node(step.call) for i, step in enumerate(made.steps)})
        used = {name for step in made.steps for name in step.inputs} | set(self.output_names)
        self.places: dict[str, str] = {}
        for number, name in enumerate(sorted(used & made.fixed)):
            self.places[name] = f"fixed_{number}"
            self.register_buffer(f"fixed_{number}", made.values[name])
        self.eval()

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values: dict[str, Any] = dict(zip(self.input_names, inputs, strict=True))
        for name, place in self.places.items():
            values[name] = getattr(self, place)
        for step, node in zip(self.steps, self.nodes.values(), strict=True):
            said = node(*(values[name] if name else None for name in step.inputs))
            values.update(zip(step.outputs, _listed(said), strict=False))
        return tuple(values[name] for name in self.output_names)


class _Node(nn.Module):
    """One call as a module."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def forward(self, *inputs: torch.Tensor | None) -> Any:
        return OPERATORS[self.call.op](self.call, *inputs)


def _place(number: int, call: Call) -> str:
    """``7_encoder_layers_0_MatMul``: a node's name as a module may have it, and its number, since names may be the same."""
    return f"{number}_{re.sub('[^A-Za-z0-9]+', '_', call.name).strip('_')}"


def opset_of(proto: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a model uses."""
    return next((each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")), 1)


def unknown_operators(proto: onnx.ModelProto) -> list[str]:
    """Operators of a model that have no counterpart here, sorted; those of other domains as ``domain:name``."""
    found = set()
    for node in _nodes(proto.graph):
        own = node.domain in ("", "ai.onnx")
        if not own or node.op_type not in {*OPERATORS, "Constant", "If"}:
            found.add(node.op_type if own else f"{node.domain}:{node.op_type}")
    return sorted(found)


def read(file: Path) -> onnx.ModelProto:
    """A model with its weights in it. What it does is not checked: ONNX Runtime takes more than ONNX's checker.

    Raises:
        ExportError: not an ONNX file, cut off, or its weights are not there.
    """
    if not file.is_file():
        raise ExportError(f"{file}: no such file", hint="give an .onnx file")
    try:
        proto = onnx.load(str(file))
    except Exception as cause:  # protobuf's, onnx's and the system's kinds; a file from anywhere
        first = first_line(cause, 200)
        raise ExportError(f"{file} is no whole ONNX file: {first}", hint="export or copy it again") from cause
    if not proto.graph.node or not proto.opset_import:
        raise ExportError(f"{file} is no whole ONNX file: there is no graph in it", hint="export or copy it again")
    return proto


def _refuse_unknown(proto: onnx.ModelProto) -> None:
    unknown = unknown_operators(proto)
    if unknown:
        raise ExportError(
            f"no way to torch, and so to TFLite, for the operator{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}",
            hint="export to OpenVINO, or leave the file ONNX",
        )


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """All nodes, those of branches and loops too."""
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += _nodes(attribute.g)
    return found


def _walk(graph: onnx.GraphProto, opset: int, made: _Made) -> None:
    """Run a graph once, and sort its values into those that stay and those that depend on what is fed."""
    for each in graph.initializer:
        made.values[each.name] = _tensor(onnx.numpy_helper.to_array(each))
        made.fixed.add(each.name)
    for number, node in enumerate(graph.node):
        if node.op_type == "If":
            _branch(node, opset, made)
        else:
            _call(node, number, opset, made)


def _call(node: onnx.NodeProto, number: int, opset: int, made: _Made) -> None:
    names = tuple(node.input)
    known = tuple(_known(made, name) for name in names)
    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    call = Call(node.op_type, node.name or f"{node.op_type}_{number}", opset, attributes, known, len(node.output))
    stays = node.op_type in AS_CONSTANTS or all(not name or name in made.fixed for name in names)
    try:
        if node.op_type == "Constant":
            said: Any = _constant(attributes)
        else:
            said = OPERATORS[node.op_type](call, *(made.values[name] if name else None for name in names))
    except ExportError:
        raise
    except Exception as cause:
        first = first_line(cause, 200)
        raise ExportError(
            f"{call.op} ({call.name}) cannot be done in torch: {first}", hint="do other sizes fit? see --dim"
        ) from cause
    made.values.update(zip(node.output, _listed(said), strict=False))
    if stays:
        made.fixed.update(node.output)
    else:
        made.steps.append(_Step(call, names, tuple(node.output)))


def _branch(node: onnx.NodeProto, opset: int, made: _Made) -> None:
    """The branch that is taken, where that does not depend on what is fed (a sampling rate given as a constant)."""
    chosen = _known(made, node.input[0])
    if chosen is None:
        raise ExportError(f"If ({node.name}) asks what was fed", hint="TFLite files cannot choose: leave the file ONNX")
    wanted = "then_branch" if bool(chosen.ravel()[0]) else "else_branch"
    graph = next(each.g for each in node.attribute if each.name == wanted)
    _walk(graph, opset, made)
    for inner, outer in zip(graph.output, node.output, strict=True):
        made.values[outer] = made.values[inner.name]
        if inner.name in made.fixed:
            made.fixed.add(outer)
        else:
            made.steps.append(_Step(Call("Identity", outer, opset, {}, (), 1), (inner.name,), (outer,)))


def _known(made: _Made, name: str) -> np.ndarray | None:
    value = made.values.get(name)
    if not name or name not in made.fixed or not isinstance(value, torch.Tensor) or value.numel() > LARGEST_KNOWN:
        return None
    return np.asarray(value.numpy())


def _constant(attributes: Mapping[str, Any]) -> torch.Tensor:
    (kind, value), *_ = attributes.items()
    if kind == "value":
        return _tensor(onnx.numpy_helper.to_array(value))
    dtype = np.float32 if kind.startswith("value_float") else np.int64
    return _tensor(np.asarray(value, dtype))


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))  # a copy: onnx gives views of the file that may not be written


def _listed(said: Any) -> Sequence[Any]:
    return said if isinstance(said, tuple | list) else (said,)
