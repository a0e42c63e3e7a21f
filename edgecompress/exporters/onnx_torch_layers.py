"""ONNX operators that are layers, in torch: convolutions, pooling, norms, recurrent nets, quantised values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from edgecompress.exporters.onnx_torch_ops import MOST_STEPS, Call, Tensor, operator


@operator("Gemm")
def _gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.transpose(0, 1) if call.get("transA", 0) else a
    b = b.transpose(0, 1) if call.get("transB", 0) else b
    said = torch.matmul(a, b)
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    said = said if alpha == 1 else said * alpha
    return said if c is None else said + (c if beta == 1 else c * beta)


# --- convolution and pooling -----------------------------------------------------------------------------------------
@operator("Conv")
def _conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    window = list(weight.shape[2:])
    strides, dilations = _numbers(call, "strides", window), _numbers(call, "dilations", window)
    x, pads = _padded(call, x, window, strides, dilations, 0.0)
    run = (functional.conv1d, functional.conv2d, functional.conv3d)[len(window) - 1]
    return run(x, weight, bias, strides, pads, dilations, call.get("group", 1))


@operator("ConvTranspose")
def _conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    window = list(weight.shape[2:])
    if call.get("auto_pad", "NOTSET") != "NOTSET" or call.get("output_shape"):
        raise call.refuse("auto_pad or output_shape")
    strides, dilations = _numbers(call, "strides", window), _numbers(call, "dilations", window)
    begin, end = _halves(call, window)
    if begin != end:
        raise call.refuse("pads that differ at begin and end")
    extra = list(call.get("output_padding") or [0] * len(window))
    run = (functional.conv_transpose1d, functional.conv_transpose2d)[len(window) - 1]
    return run(x, weight, bias, strides, begin, extra, call.get("group", 1), dilations)


@operator("MaxPool", "AveragePool")
def _pool(call: Call, x: Tensor) -> Tensor:
    window = list(call.get("kernel_shape"))
    strides, dilations = _numbers(call, "strides", window), _numbers(call, "dilations", window)
    if call.outputs > 1 or any(each != 1 for each in dilations) or call.get("ceil_mode", 0):
        raise call.refuse("indices, dilations or ceil_mode")
    if call.op == "MaxPool":
        x, pads = _padded(call, x, window, strides, dilations, -torch.inf)
        return (functional.max_pool1d, functional.max_pool2d)[len(window) - 1](x, window, strides, pads)
    averaged = (functional.avg_pool1d, functional.avg_pool2d)[len(window) - 1]
    even, pads = _padded(call, x, window, strides, dilations, 0.0)
    said = averaged(even, window, strides, pads)
    if call.get("count_include_pad", 0) or (even is x and not any(pads)):
        return said
    ones, pads = _padded(call, torch.ones_like(x), window, strides, dilations, 0.0)
    return said / averaged(ones, window, strides, pads)


@operator("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(call: Call, x: Tensor) -> Tensor:
    axes = list(range(2, x.ndim))
    return torch.mean(x, axes, True) if call.op == "GlobalAveragePool" else torch.amax(x, axes, True)


def _numbers(call: Call, name: str, window: Sequence[int]) -> list[int]:
    return [int(value) for value in call.get(name) or [1] * len(window)]


def _halves(call: Call, window: Sequence[int]) -> tuple[list[int], list[int]]:
    pads = [int(value) for value in call.get("pads") or [0] * 2 * len(window)]
    return pads[: len(window)], pads[len(window) :]


def _padded(
    call: Call, x: Tensor, window: Sequence[int], strides: Sequence[int], dilations: Sequence[int], value: float
) -> tuple[Tensor, list[int]]:
    """The input and the even pads that are left to the operator; uneven ones are put on before it."""
    automatic = call.get("auto_pad", "NOTSET")
    begin, end = _halves(call, window)
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        for axis, size in enumerate(window):
            length = x.shape[axis + 2]
            reach = dilations[axis] * (size - 1) + 1
            wanted = max(0, (-(-length // strides[axis]) - 1) * strides[axis] + reach - length)
            less, more = wanted // 2, wanted - wanted // 2
            begin[axis], end[axis] = (less, more) if automatic == "SAME_UPPER" else (more, less)
    even = value == 0.0 or all(2 * pad <= size for pad, size in zip(begin, window, strict=True))
    if begin == end and even:
        return x, begin
    around = [pad for axis in reversed(range(len(window))) for pad in (begin[axis], end[axis])]
    return functional.pad(x, around, value=value), [0] * len(window)


# --- norms -----------------------------------------------------------------------------------------------------------
@operator("BatchNormalization")
def _batch_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    if call.get("training_mode", 0):
        raise call.refuse("training mode")
    return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, call.get("epsilon", 1e-5))


@operator("InstanceNormalization")
def _instance_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return functional.instance_norm(x, weight=scale, bias=bias, eps=call.get("epsilon", 1e-5))


@operator("LayerNormalization")
def _layer_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    if call.outputs > 1:
        raise call.refuse("more outputs than one")
    shape = list(x.shape[call.get("axis", -1) % x.ndim :])
    offset = None if bias is None else bias.expand(shape)
    return functional.layer_norm(x, shape, scale.expand(shape), offset, call.get("epsilon", 1e-5))


@operator("LpNormalization")
def _lp_norm(call: Call, x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, ord=call.get("p", 2), dim=call.get("axis", -1), keepdim=True)
    return x / norm


# --- recurrent nets: one step after the other, since a file of fixed shapes holds each ----------------------------------
@operator("LSTM")
def _lstm(
    call: Call, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
    hidden: Tensor | None = None, cell: Tensor | None = None, peephole: Tensor | None = None,
) -> Any:  # fmt: skip
    _plain_recurrence(call, x, lengths, ["sigmoid", "tanh", "tanh"])
    if peephole is not None:
        raise call.refuse("peepholes")

    def step(number: int, given: Tensor, state: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
        into, out, forget, new = torch.chunk(_plus(given, state[0], r[number]), 4, dim=-1)
        learned = torch.sigmoid(into) * torch.tanh(new)
        held = learned if state[1] is None else torch.sigmoid(forget) * state[1] + learned
        return torch.sigmoid(out) * torch.tanh(held), held

    return _over_time(call, x, w, r, b, (hidden, cell), step)


@operator("GRU")
def _gru(
    call: Call, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
    hidden: Tensor | None = None,
) -> Any:  # fmt: skip
    _plain_recurrence(call, x, lengths, ["sigmoid", "tanh"])
    size, late = int(r.shape[-1]), bool(call.get("linear_before_reset", 0))
    of_state = None if b is None else b[:, 3 * size :]

    def step(number: int, given: Tensor, state: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
        (held,), (gates, last) = state, torch.split(r[number], [2 * size, size])
        update, reset = torch.chunk(torch.sigmoid(_plus(given[..., : 2 * size], held, gates)), 2, dim=-1)
        recalled = torch.zeros(size) if of_state is None else of_state[number, 2 * size :]
        if late:
            recalled = reset * _plus(recalled, held, last)
        elif held is not None:
            recalled = _plus(recalled, reset * held, last)
        new = (1 - update) * torch.tanh(given[..., 2 * size :] + recalled)
        return (new if held is None else new + update * held,)

    # the candidate's recurrent bias is inside the reset gate's reach: it is added in the step
    inner = None if b is None else torch.cat([b[:, : 5 * size], torch.zeros_like(b[:, 5 * size :])], dim=1)
    return _over_time(call, x, w, r, inner, (hidden,), step)


@operator("RNN")
def _rnn(
    call: Call, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
    hidden: Tensor | None = None,
) -> Any:  # fmt: skip
    _plain_recurrence(call, x, lengths, ["tanh"])

    def step(number: int, given: Tensor, state: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
        return (torch.tanh(_plus(given, state[0], r[number])),)

    return _over_time(call, x, w, r, b, (hidden,), step)


def _plain_recurrence(call: Call, x: Tensor, lengths: Tensor | None, usual: list[str]) -> None:
    named = [each.decode().lower() for each in call.get("activations") or []]
    both = 2 if call.get("direction", "forward") == "bidirectional" else 1
    if named not in ([], usual * both) or call.get("layout", 0) or call.get("clip") or call.get("input_forget", 0):
        raise call.refuse("unusual activations, layout, clip or input_forget")
    if lengths is not None and any(length != x.shape[0] for length in call.ints(4)):
        raise call.refuse("sequences of unlike lengths")
    if x.shape[0] > MOST_STEPS:
        raise call.refuse(f"{x.shape[0]} steps, each of which is a part of the file: {MOST_STEPS} at most")


def _plus(given: Tensor, state: Tensor | None, weight: Tensor) -> Tensor:
    """What a state adds through a matrix. Nothing at the first step, whose state is zero: a product of constants would
    be left in the file, and cannot be calibrated.
    """
    return given if state is None else given + torch.matmul(state, weight.transpose(0, 1))


def _over_time(
    call: Call, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, states: tuple[Tensor | None, ...], step: Any
) -> Any:
    """All outputs (time, directions, batch, width) and the last states (directions, batch, width)."""
    direction = call.get("direction", "forward")
    outputs, last = [], []
    for number in range(int(w.shape[0])):
        given = torch.matmul(x, w[number].transpose(0, 1))
        if b is not None:
            half = b.shape[1] // 2
            given = given + (b[number, :half] + b[number, half:])
        state = tuple(
            None if each is None or _zero(call, 5 + place) else each[number] for place, each in enumerate(states)
        )
        backwards = direction == "reverse" or number == 1
        made = []
        for time in reversed(range(int(x.shape[0]))) if backwards else range(int(x.shape[0])):
            state = step(number, given[time], state)
            made.append(state[0])
        outputs.append(torch.stack(made[::-1] if backwards else made))
        last.append(state)
    return torch.stack(outputs, dim=1), *(torch.stack(each) for each in zip(*last, strict=True))


def _zero(call: Call, place: int) -> bool:
    known = call.known[place] if call.has(place) else None
    return known is not None and not known.any()


# --- quantised values, computed in float -----------------------------------------------------------------------------
@operator("DequantizeLinear")
def _dequantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    scale = _along(call, x, scale)
    return (x.to(torch.float32) - (0.0 if zero is None else _along(call, x, zero).to(torch.float32))) * scale


@operator("QuantizeLinear")
def _quantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    kind = torch.uint8 if zero is None else zero.dtype
    limits = torch.iinfo(kind)
    shift = 0.0 if zero is None else _along(call, x, zero).to(torch.float32)
    return torch.clamp(torch.round(x / _along(call, x, scale)) + shift, limits.min, limits.max).to(kind)


def _along(call: Call, x: Tensor, values: Tensor) -> Tensor:
    """One value for all, or one for each place along the axis."""
    if values.numel() == 1:
        return values.reshape(())
    shape = [1] * x.ndim
    shape[call.get("axis", 1)] = int(np.prod(values.shape))
    return values.reshape(shape)
