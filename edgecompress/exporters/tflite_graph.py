"""A torch module as a TFLite file, by litert-torch, and its quantisation, by ai-edge-quantizer."""

from __future__ import annotations

import gc
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from edgecompress import plugins
from edgecompress.disk import require_room
from edgecompress.errors import ExportError
from edgecompress.exporters import tflite_file
from edgecompress.quiet import quiet

Buckets = Mapping[str, tuple[nn.Module, tuple[torch.Tensor, ...]]]

# By kind of operator. DEPTHWISE_CONV_2D is the first convolution of a front end, 10 taps of one channel: nothing to win.
# Calibrated convolutions clip what is louder than the calibration was, before any norm (cosine .87 against .998 on noise
# ten times as loud), and are no faster: HuBERT base takes 293 ms so, 277 with theirs quantised at run time, where all at
# run time is 247 and fp32 892. Calibrated products of two activations (BATCH_MATMUL) take 506.
QUANTIZED_KINDS = ("FULLY_CONNECTED", "CONV_2D")
CASTED_KINDS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")
CALIBRATION_THREADS = 2
GRAPH_BYTES = 1 << 19  # HuBERT base: 0.14 MB of operators, names and shapes
FIRST_MATRIX = r"(?:^|[;/])feature_projection(?:$|[;/])"  # as the convolutions: MelHuBERT's reads the input itself
# Always float: what makes log-mel frames of samples (a power spectrum spans more than 8 bits: cosine .92 against .999 on
# 400 samples; in half precision 2.2e-2 of the greatest value on a quiet clip, against 6e-4), and what else the form
# itself computes around the network (a first convolution of 10 taps).
ALWAYS_FLOAT = (r"(?:^|;)module/log_mel(?:$|[;/])", r"^module(?:;(?:module|\d*))*$")


class SmallIntegers(TorchFunctionMode):
    """``arange`` counts in 32 bits where no type is asked for, as the file will.

    litert-torch would change such a node itself, and then trace the whole graph a fourth time for it.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.arange and all(isinstance(each, int) for each in args):
            kwargs["dtype"] = kwargs.get("dtype") or torch.int32
        return func(*args, **kwargs)


class Named(nn.Module):
    """A module whose inputs and outputs go by names: they become those of a signature."""

    def __init__(self, module: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.module, self.inputs, self.outputs = module, tuple(inputs), tuple(outputs)
        self.train(module.training)

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        with SmallIntegers():
            said = self.module(*(inputs[name] for name in self.inputs))
        return dict(zip(self.outputs, [said] if isinstance(said, torch.Tensor) else said, strict=True))


def convert(buckets: Buckets, input_names: Sequence[str], output_names: Sequence[str], file: Path) -> None:
    """Write one file with a signature for each of ``buckets``: a module in eval mode and tensors to trace it with.

    Modules that share weights share them in the file. 64-bit integers become 32-bit ones, inside and out.

    Lightweight conversion leaves big weights out of the compiler: HuBERT base takes 0.8 GB less at its peak (1.8 of 2.6)
    and no longer, and the graph is the same.

    Raises:
        ExportError: litert-torch cannot lower the module; its last words are in the message.
    """
    with _quiet() as heard, _uncollected():
        import litert_torch

        converter: Any = None
        made: Any = None
        for name, (module, tensors) in buckets.items():
            inputs = {
                each: tensor.to(torch.int32) if tensor.dtype == torch.int64 else tensor
                for each, tensor in zip(input_names, tensors, strict=True)
            }
            add = litert_torch.signature if converter is None else converter.signature
            converter = add(name, Named(module, input_names, output_names).eval(), sample_kwargs=inputs)
        try:
            made = converter.convert(lightweight_conversion=True)
            require_room(file, _bytes_of(buckets))  # the compiler ends the process, without a word, where there is none
            made.export(str(file))
        except OSError:
            raise
        except Exception as cause:
            said = [line for line in heard().splitlines() if "error" in line.lower()]
            first = (said or str(cause).strip().splitlines() or [type(cause).__name__])[0][:300]
            raise ExportError(
                f"litert-torch cannot convert this model: {first}", hint="export it to ONNX or OpenVINO"
            ) from cause
        finally:
            made = converter = None
    gc.collect()


def _bytes_of(buckets: Buckets) -> int:
    """About what the file will take: each weight once, in float32, and a graph for every bucket."""
    weights = {
        tensor.data_ptr(): 4 * tensor.numel()
        for module, _ in buckets.values()
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(weights.values()) + len(buckets) * GRAPH_BYTES


def quantize(
    full: Path,
    file: Path,
    precision: str,
    float_nodes: Sequence[str] = (),
    calibration: Mapping[str, Sequence[Mapping[str, np.ndarray]]] | None = None,
    row_scales: bool = True,
) -> None:
    """Write an fp32 file at another precision.

    ``float_nodes`` (names of :func:`quantizable`, or wholes that hold them: ``encoder/3``) stay in fp32. ``calibration`` has inputs for
    every signature, which ``int8-static`` needs. ``row_scales``: an int8 matrix has a scale for each row; without, one
    for all, which tflite-runtime 2.14 needs where the input is float.

    Raises:
        ExportError: a float node that is not there, or nothing was left to quantise.
    """
    if precision == "int8-naive" and float_nodes:
        raise ExportError("tflite int8-naive leaves no part in fp32", hint="use int8")
    refuse_unknown(full, float_nodes)
    with _quiet():
        from ai_edge_quantizer import qtyping, quantizer, recipe
        from ai_edge_quantizer.algorithm_manager import AlgorithmName

        work = quantizer.Quantizer(str(full))
        rows, whole = qtyping.QuantGranularity.CHANNELWISE, qtyping.QuantGranularity.TENSORWISE
        name = qtyping.TFLOperationName
        if precision == "fp16":
            half = qtyping.OpQuantizationConfig(
                weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
                compute_precision=qtyping.ComputePrecision.FLOAT,
                explicit_dequantize=True,
            )
            for kind in CASTED_KINDS:
                work.update_quantization_recipe(".*", name(kind), half, AlgorithmName.FLOAT_CASTING)
        elif precision == "int8":
            for kind in QUANTIZED_KINDS:
                fine = row_scales or kind != "FULLY_CONNECTED"
                work.add_dynamic_config(".*", name(kind), 8, rows if fine else whole)
        elif precision == "int8-naive":
            work.load_quantization_recipe(recipe.dynamic_wi8_afp32())
        elif precision == "int8-weights":
            for kind in QUANTIZED_KINDS:
                work.add_weight_only_config(".*", name(kind), 8)
        else:
            work.add_static_config(".*", name.FULLY_CONNECTED, 8, 8)
            work.add_dynamic_config(".*", name.CONV_2D, 8)
            work.add_dynamic_config(FIRST_MATRIX, name.FULLY_CONNECTED, 8, rows if row_scales else whole)
        kept = () if precision == "int8-naive" else ALWAYS_FLOAT
        for scope in (*kept, *map(_pattern, float_nodes)):
            work.update_quantization_recipe(scope, name.ALL_SUPPORTED, None, AlgorithmName.NO_QUANTIZE)
        ranges = work.calibrate(_iterable(calibration or {}), num_threads=CALIBRATION_THREADS) if calibration else None
        work.quantize(ranges, serialize_to_path=str(file), enable_progress_bar=False, enable_progress_report=False)
    if not tflite_file.small_weights(tflite_file.read(file)):
        raise ExportError(f"tflite {precision}: no weight was quantised", hint="use fp32: this would be the same file")


def _iterable(calibration: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> dict[str, Any]:
    return {signature: [dict(feeds) for feeds in given] for signature, given in calibration.items()}


def quantizable(full: Path) -> list[str]:
    """Names of the parts of an fp32 file that quantisation makes smaller, in order: the same for all its lengths."""
    weighted = [each for each in tflite_file.weighted(tflite_file.read(full)) if each.kind in QUANTIZED_KINDS]
    found = [each.name for each in weighted if not any(re.search(kept, each.name) for kept in ALWAYS_FLOAT)]
    return list(dict.fromkeys(tflite_file.scope_of(name) for name in found))


def refuse_unknown(full: Path, float_nodes: Sequence[str]) -> None:
    """Raise where a float node is no part of the file, nor a whole that has parts."""
    if not float_nodes:
        return
    known = quantizable(full)
    for each in float_nodes:
        if not any(re.search(_pattern(each), name) for name in known):
            raise ExportError(f"tflite: no part of the model is called {each!r}", hint=plugins.nearest(each, known))


def _pattern(scope: str) -> str:
    """``3/attention`` is found in ``encoder/3/attention/q_proj;1`` and not in ``encoder/13/attention``."""
    return rf"(?:^|[;/]){re.escape(scope)}(?:$|[;/])"


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the cyclic garbage collector, which walks hundreds of thousands of live graph nodes again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _quiet() -> Iterator[Any]:
    """Without progress, advice and the compiler's own lines; gives a function that says what it wrote until now.

    The compiler writes to the process's standard error directly, errors included: they are worth keeping.
    """
    shown = os.environ.get("LITERT_TORCH_SHOW_PROGRESS")
    os.environ["LITERT_TORCH_SHOW_PROGRESS"] = "n"
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)

        def heard() -> str:
            said.flush()
            return os.pread(said.fileno(), 1 << 20, 0).decode(errors="replace")

        try:
            with quiet(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                yield heard
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for number, copy in enumerate(kept, 1):
                os.dup2(copy, number)
                os.close(copy)
            if shown is None:
                del os.environ["LITERT_TORCH_SHOW_PROGRESS"]
            else:
                os.environ["LITERT_TORCH_SHOW_PROGRESS"] = shown
