"""ONNX operators in torch, those of speech and audio networks: a function ``(call, *inputs)`` for each, found by name.

An input that is left out is None. What an operator must know in advance (axes, shapes, pads) it asks of its ``Call``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from edgecompress.errors import ExportError

Tensor = torch.Tensor

DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64,
}  # fmt: skip
MOST_STEPS = 128  # of a recurrent layer: each one is a part of the file (98 of a GRU took litert-torch 70 s)


@dataclass(frozen=True)
class Call:
    """One node: operator, name, version of the operator set, attributes, inputs that never change, number of outputs."""

    op: str
    name: str
    opset: int
    attributes: Mapping[str, Any]
    known: tuple[np.ndarray | None, ...]
    outputs: int

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute; text as ``str``."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def has(self, place: int) -> bool:
        """Whether an input is given."""
        return place < len(self.known)

    def ints(self, place: int) -> list[int]:
        """An input that has to be known in advance.

        Raises:
            ExportError: it depends on what is fed.
        """
        found = self.known[place] if self.has(place) else None
        if found is None:
            raise self.refuse(f"its input {place + 1} depends on what is fed")
        return [int(value) for value in found.ravel()]

    def axes(self, place: int) -> list[int] | None:
        """Axes, which were an attribute once and are an input now; None where they are not given."""
        if "axes" in self.attributes:
            return [int(axis) for axis in self.attributes["axes"]]
        return self.ints(place) if self.has(place) and self.known[place] is not None else None

    def refuse(self, why: str) -> ExportError:
        """The error that says that this node is in the way."""
        return ExportError(
            f"no way to torch, and so to TFLite, for {self.op} ({self.name}): {why}",
            hint="export to OpenVINO, or leave the file ONNX",
        )


Operator = Callable[..., Any]
OPERATORS: dict[str, Operator] = {}


def operator(*names: str) -> Callable[[Operator], Operator]:
    """Enter a function under the names of operators."""

    def enter(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return enter


# --- one by one ------------------------------------------------------------------------------------------------------
ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs, "Add": torch.add, "And": torch.logical_and, "Ceil": torch.ceil, "Cos": torch.cos,
    "Equal": torch.eq, "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "Greater": torch.gt,
    "GreaterOrEqual": torch.ge, "HardSwish": functional.hardswish, "Identity": lambda x: x, "IsNaN": torch.isnan,
    "Less": torch.lt, "LessOrEqual": torch.le, "Log": torch.log, "MatMul": torch.matmul, "Mish": functional.mish,
    "Mul": torch.mul, "Neg": torch.neg, "Not": torch.logical_not, "Or": torch.logical_or, "Pow": torch.pow,
    "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid,
    "Sign": torch.sign, "Sin": torch.sin, "Softplus": functional.softplus, "Softsign": functional.softsign,
    "Sqrt": torch.sqrt, "Sub": torch.sub, "Tanh": torch.tanh, "Where": torch.where,
}  # fmt: skip
for _name, _function in ELEMENTWISE.items():
    OPERATORS[_name] = lambda call, *inputs, _run=_function: _run(*inputs)


@operator("Div")
def _div(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@operator("Mod")
def _mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


@operator("Min", "Max", "Sum", "Mean")
def _fold(call: Call, first: Tensor, *rest: Tensor) -> Tensor:
    pair = {"Min": torch.minimum, "Max": torch.maximum}.get(call.op, torch.add)
    for each in rest:
        first = pair(first, each)
    return first / (1 + len(rest)) if call.op == "Mean" else first


@operator("Clip")
def _clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    def bound(place: int, name: str) -> float | None:
        known = call.known[place] if call.has(place) else None
        value = call.get(name) if known is None else known.ravel()[0]
        return None if value is None else float(value)

    if (low is not None and call.known[1] is None) or (high is not None and call.known[2] is None):
        raise call.refuse("its bounds depend on what is fed")
    lowest, highest = bound(1, "min"), bound(2, "max")
    return x if lowest is None and highest is None else torch.clamp(x, lowest, highest)


@operator("LeakyRelu", "Elu", "Celu", "Selu", "HardSigmoid", "ThresholdedRelu")
def _activation(call: Call, x: Tensor) -> Tensor:
    alpha = call.get("alpha")
    if call.op == "LeakyRelu":
        return functional.leaky_relu(x, 0.01 if alpha is None else alpha)
    if call.op == "Elu":
        return functional.elu(x, 1.0 if alpha is None else alpha)
    if call.op == "Celu":
        return functional.celu(x, 1.0 if alpha is None else alpha)
    if call.op == "Selu":
        return functional.selu(x)
    if call.op == "ThresholdedRelu":
        return torch.where(x > (1.0 if alpha is None else alpha), x, torch.zeros_like(x))
    return torch.clamp(x * (0.2 if alpha is None else alpha) + call.get("beta", 0.5), 0.0, 1.0)


@operator("PRelu")
def _prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x >= 0, x, x * slope)


@operator("Gelu")
def _gelu(call: Call, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=call.get("approximate", "none"))


@operator("Cast")
def _cast(call: Call, x: Tensor) -> Tensor:
    if call.get("to") not in DTYPES:
        raise call.refuse(f"type {call.get('to')}")
    return x.to(DTYPES[call.get("to")])


@operator("CastLike")
def _cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)


@operator("Dropout")
def _dropout(call: Call, x: Tensor, *_: Tensor) -> Any:
    return (x, torch.ones_like(x, dtype=torch.bool)) if call.outputs > 1 else x


# --- shapes ----------------------------------------------------------------------------------------------------------
@operator("Shape")
def _shape(call: Call, x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape)[call.get("start", 0) : call.get("end")], dtype=torch.int64)


@operator("Size")
def _size(call: Call, x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


@operator("ConstantOfShape")
def _constant_of_shape(call: Call, _: Tensor) -> Tensor:
    import onnx

    value = call.get("value")
    single = np.zeros(1, np.float32) if value is None else onnx.numpy_helper.to_array(value)
    return torch.from_numpy(np.full(call.ints(0), single.ravel()[0], single.dtype))


@operator("Range")
def _range(call: Call, *_: Tensor) -> Tensor:
    if any(each is None for each in call.known):
        raise call.refuse("its bounds depend on what is fed")
    start, stop, step = (each.ravel()[0] for each in call.known if each is not None)
    return torch.from_numpy(np.arange(start, stop, step, dtype=start.dtype))


@operator("Reshape")
def _reshape(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    sizes = call.ints(1)
    kept = not call.get("allowzero", 0)
    return x.reshape([x.shape[axis] if size == 0 and kept else size for axis, size in enumerate(sizes)])


@operator("Flatten")
def _flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.get("axis", 1) % (x.ndim + 1)
    return x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), -1)


@operator("Squeeze")
def _squeeze(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    axes = call.axes(1)
    axes = [axis for axis, size in enumerate(x.shape) if size == 1] if axes is None else axes
    gone = {axis % x.ndim for axis in axes}
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in gone])


@operator("Unsqueeze")
def _unsqueeze(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    axes = call.axes(1) or []
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose")
def _transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(call.get("perm") or list(reversed(range(x.ndim))))


@operator("Expand")
def _expand(call: Call, x: Tensor, _: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(tuple(call.ints(1)), tuple(x.shape)))


@operator("Tile")
def _tile(call: Call, x: Tensor, _: Tensor) -> Tensor:
    return x.repeat(call.ints(1))


@operator("Concat")
def _concat(call: Call, *parts: Tensor) -> Tensor:
    return torch.cat(parts, dim=call.get("axis"))


@operator("Split")
def _split(call: Call, x: Tensor, *_: Tensor) -> Any:
    axis = call.get("axis", 0)
    sizes = call.get("split") or (call.ints(1) if call.has(1) else None)
    if sizes is None:
        each = -(-x.shape[axis] // call.outputs)
        sizes = [min(each, x.shape[axis] - start) for start in range(0, x.shape[axis], each)]
    return tuple(torch.split(x, [int(size) for size in sizes], dim=axis))


@operator("Slice")
def _slice(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    starts, ends = (
        (list(call.get("starts")), list(call.get("ends"))) if call.opset < 10 else (call.ints(1), call.ints(2))
    )
    axes = call.get("axes") if call.opset < 10 else call.ints(3) if call.has(3) and call.known[3] is not None else None
    steps = call.ints(4) if call.has(4) and call.opset >= 10 else [1] * len(starts)
    for axis, start, end, step in zip(axes or range(len(starts)), starts, ends, steps, strict=False):
        chosen = range(x.shape[axis])[start:end:step]
        if step > 0:
            key = [slice(None)] * x.ndim
            key[axis % x.ndim] = slice(chosen.start, max(chosen.start, chosen.stop), step)
            x = x[tuple(key)]
        else:
            x = torch.index_select(x, axis, torch.tensor(list(chosen), dtype=torch.int64))
    return x


@operator("Gather")
def _gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.get("axis", 0) % x.ndim
    size = x.shape[axis]
    if call.known[1] is not None:
        indices = torch.from_numpy(np.asarray(call.known[1].astype(np.int64) % size))
    elif call.known[0] is None:
        indices = torch.where(indices < 0, indices + size, indices)
    said = torch.index_select(x, axis, indices.reshape(-1).to(torch.int64))
    return said.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


@operator("GatherElements")
def _gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.get("axis", 0)
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices).to(torch.int64))


@operator("Pad")
def _pad(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    pads = list(call.get("pads") or call.ints(1))
    axes = call.ints(3) if call.has(3) and call.known[3] is not None else list(range(x.ndim))
    around = {axis % x.ndim: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    mode = call.get("mode", "constant")
    value = call.known[2] if call.has(2) else None
    filling = float(call.get("value", 0.0)) if value is None else float(value.ravel()[0])
    if mode == "constant":
        return functional.pad(
            x, [each for axis in reversed(range(x.ndim)) for each in around.get(axis, (0, 0))], value=filling
        )
    for axis, (before, after) in around.items():
        where = np.pad(np.arange(x.shape[axis]), (before, after), mode={"edge": "edge", "wrap": "wrap"}.get(mode, mode))
        if before or after:
            x = torch.index_select(x, axis, torch.from_numpy(where))
    return x


@operator("Trilu")
def _trilu(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    diagonal = call.ints(1)[0] if call.has(1) else 0
    return torch.triu(x, diagonal) if call.get("upper", 1) else torch.tril(x, diagonal)


# --- over an axis ----------------------------------------------------------------------------------------------------
REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax, "ReduceMin": torch.amin,
    "ReduceL2": lambda x, axes, kept: torch.sqrt(torch.sum(x * x, axes, kept)),
    "ReduceL1": lambda x, axes, kept: torch.sum(torch.abs(x), axes, kept),
    "ReduceSumSquare": lambda x, axes, kept: torch.sum(x * x, axes, kept),
    "ReduceLogSumExp": lambda x, axes, kept: torch.logsumexp(x, axes, kept),
}  # fmt: skip


@operator(*REDUCTIONS)
def _reduce(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    axes = call.axes(1)
    if not axes and call.get("noop_with_empty_axes", 0):
        return x
    return REDUCTIONS[call.op](x, axes or list(range(x.ndim)), bool(call.get("keepdims", 1)))


@operator("ArgMax", "ArgMin")
def _arg(call: Call, x: Tensor) -> Tensor:
    find = torch.argmax if call.op == "ArgMax" else torch.argmin
    return find(x, dim=call.get("axis", 0), keepdim=bool(call.get("keepdims", 1)))


@operator("Softmax", "LogSoftmax")
def _softmax(call: Call, x: Tensor) -> Tensor:
    run = torch.softmax if call.op == "Softmax" else torch.log_softmax
    if call.opset >= 13:
        return run(x, call.get("axis", -1))
    axis = call.get("axis", 1) % x.ndim  # all axes from there on are one
    return run(x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), -1), -1).reshape(x.shape)


@operator("CumSum")
def _cumsum(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    if call.get("exclusive", 0) or call.get("reverse", 0):
        raise call.refuse("exclusive or reverse")
    return torch.cumsum(x, call.ints(1)[0])


@operator("Einsum")
def _einsum(call: Call, *inputs: Tensor) -> Tensor:
    return torch.einsum(call.get("equation"), *inputs)
