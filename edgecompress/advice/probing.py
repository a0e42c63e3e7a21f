"""The probe: the matrix products of a Transformer layer and one convolution, each in fp32 and lower precisions.

Made here with onnx, measured on the device by ONNX Runtime, interleaved over rounds so that a clock that changes or another
job on the machine falls on all of them. Weights and inputs are random: time does not depend on them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from edgecompress import session, stats
from edgecompress.advice import PRODUCTS, Measured
from edgecompress.devices import Device
from edgecompress.errors import AgentDied, AgentFailed
from edgecompress.quiet import quiet
from edgecompress.records import Measurement
from edgecompress.report import caveats

if TYPE_CHECKING:
    import onnx

RUNTIME = "onnxruntime"
FRAMES = 250  # five seconds of HuBERT's frames
WIDTHS = (768, 768, 3072, 768)  # an attention projection and both feed-forward products of a base-size layer
CHANNELS, KERNEL, POSITIONS = 512, 3, 500  # a convolution of HuBERT's front end
CONVOLUTION = "convolution"
PLAN = session.Plan(
    repetitions=2, warmup_s=0.1, min_samples=3, min_seconds=0.3, max_seconds=3.0, timeout_s=120.0, memory_pass=False
)
ROUNDS = 2
OPSET, IR_VERSION = 17, 9
# Of the report's caveats those that bear on a ratio of two files of one session.
TELLING = (
    "busy", "other-load", "throttled", "under-voltage", "power-limit", "clock-drop", "cores-changed", "clock-step",
    "page-faults", "swap", "virtual",
)  # fmt: skip

Say = Callable[[str], None]


def probe(
    device: Device, plan: session.Plan = PLAN, rounds: int = ROUNDS, progress: Say | None = None
) -> tuple[list[Measured], list[str]]:
    """Measure the probe's files on a device, in turn, ``rounds`` times over.

    Returns:
        What was measured, and notes: on the device's state, and on each file that its runtime could not run.

    Raises:
        ModuleNotFoundError: onnx is not installed here.
        DeviceError: the device, or the way to it, failed; RuntimeMissing where it has no ONNX Runtime.
    """
    samples: dict[str, list[list[float]]] = {}
    failed: dict[str, str] = {}
    seen: dict[str, str] = {}
    voided: dict[str, int] = {}
    version = ""
    with tempfile.TemporaryDirectory(prefix="edgecompress-probe-") as folder:
        files = write(Path(folder))
        for turn in range(rounds):
            for name, file in files.items():
                if name in failed:
                    continue
                if progress:
                    progress(f"probing {device.name}: {name}, round {turn + 1} of {rounds}")
                try:
                    found = session.measure_file(device, file, plan, runtime=RUNTIME)
                except (AgentFailed, AgentDied) as why:
                    failed[name] = why.message
                    continue
                version = found.runtime_version
                seen |= _caveats(found)
                if any(one.invalid for one in caveats.of_measurement(found)):
                    voided[name] = voided.get(name, 0) + 1
                    continue
                samples.setdefault(name, []).extend([[ns / 1e6 for ns in one.samples_ns] for one in found.repetitions])
    runtime = f"{RUNTIME} {version}, {plan.threads} thread{'s' if plan.threads > 1 else ''}"
    notes = [f"{caveats.TITLES[code]}: {text}" for code, text in seen.items()]
    if {"busy", "other-load"} & set(seen):
        # A convolution of 3.8 ms beside one of 1.2: 3.3 by processor time, 14 by the clock among seven jobs on two cores.
        notes.append(
            "short runs fit between others' turns and long ones do not: ratios come out too high on a busy device"
        )
    notes += [f"{name}: {count} of {rounds} rounds do not count" for name, count in voided.items()]
    notes += [f"{name} could not be measured: {why}" for name, why in failed.items()]
    return list(_compared({name: one for name, one in samples.items() if name not in failed}, runtime)), notes


def _caveats(found: Measurement) -> dict[str, str]:
    return {one.code: one.text for one in caveats.of_measurement(found) if one.code in TELLING}


def _compared(samples: dict[str, list[list[float]]], runtime: str) -> Iterator[Measured]:
    """Each lower precision against fp32 of the same part; names are ``<part>, <precision>``, samples milliseconds."""
    for name, one in samples.items():
        part, _, precision = name.partition(", ")
        reference = samples.get(f"{part}, fp32")
        if precision == "fp32" or reference is None:
            continue
        speedup = stats.ratio(reference, one)
        middles = [stats.median(side).value for side in (reference, one)]
        yield Measured(precision, part, speedup, middles[0], middles[1], len(one), runtime)


def write(folder: Path) -> dict[str, Path]:
    """Write the probe's files into ``folder``: ``{"matrix products, fp32": path, ...}``, 48 MB in all.

    Raises:
        ModuleNotFoundError: onnx is not installed here.
    """
    full = {PRODUCTS: folder / "products-fp32.onnx", CONVOLUTION: folder / "convolution-fp32.onnx"}
    _save(_products(numpy.float32), full[PRODUCTS])
    _save(_convolution(), full[CONVOLUTION])
    half, dynamic = folder / "products-fp16.onnx", folder / "products-int8.onnx"
    _save(_products(numpy.float16), half)
    static = {part: folder / f"{file.stem.removesuffix('-fp32')}-int8-static.onnx" for part, file in full.items()}
    with quiet():
        from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static

        # As the ONNX exporter does it: weights of 7 bits, which no processor's 16-bit sums overflow.
        common: dict[str, Any] = {"weight_type": QuantType.QInt8, "per_channel": True, "reduce_range": True}
        quantize_dynamic(str(full[PRODUCTS]), str(dynamic), op_types_to_quantize=["MatMul"], **common)
        for part, file in full.items():
            quantize_static(str(file), str(static[part]), _Feeds(file), **common)
    files = {f"{PRODUCTS}, fp32": full[PRODUCTS], f"{PRODUCTS}, int8": dynamic}
    files |= {f"{PRODUCTS}, int8-static": static[PRODUCTS], f"{PRODUCTS}, fp16": half}
    return files | {f"{CONVOLUTION}, fp32": full[CONVOLUTION], f"{CONVOLUTION}, int8-static": static[CONVOLUTION]}


class _Feeds:
    """One random input, as onnxruntime's calibration wants it."""

    def __init__(self, file: Path) -> None:
        import onnx

        value = onnx.load(str(file)).graph.input[0]
        shape = [one.dim_value for one in value.type.tensor_type.shape.dim]
        self._left = [{value.name: numpy.random.default_rng(1).standard_normal(shape).astype("float32")}]

    def get_next(self) -> dict[str, Any] | None:
        return self._left.pop() if self._left else None


def _products(dtype: type) -> onnx.ModelProto:
    """A chain of products with a rectifier before the last, all in ``dtype``."""
    from onnx import helper, numpy_helper

    nodes, weights, last = [], [], "x"
    random = numpy.random.default_rng(0)
    for number, (rows, columns) in enumerate(pairwise(WIDTHS), start=1):
        matrix = random.standard_normal((rows, columns)) / rows**0.5
        weights.append(numpy_helper.from_array(matrix.astype(dtype), f"w{number}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{number}"], [f"h{number}"], f"product{number}"))
        last = f"h{number}"
    nodes.insert(-1, helper.make_node("Relu", [nodes[-1].input[0]], ["r"], "rectifier"))
    nodes[-1].input[0] = "r"
    return _model(nodes, weights, dtype, [1, FRAMES, WIDTHS[0]], last, [1, FRAMES, WIDTHS[-1]])


def _convolution() -> onnx.ModelProto:
    from onnx import helper, numpy_helper

    kernel = numpy.random.default_rng(0).standard_normal((CHANNELS, CHANNELS, KERNEL)) / (CHANNELS * KERNEL) ** 0.5
    node = helper.make_node("Conv", ["x", "w"], ["y"], "convolution", strides=[2])
    length = (POSITIONS - KERNEL) // 2 + 1
    weights = [numpy_helper.from_array(kernel.astype(numpy.float32), "w")]
    return _model([node], weights, numpy.float32, [1, CHANNELS, POSITIONS], "y", [1, CHANNELS, length])


def _model(
    nodes: list[Any], weights: list[Any], dtype: type, given: list[int], output: str, made: list[int]
) -> onnx.ModelProto:
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(numpy.dtype(dtype))
    inputs = [helper.make_tensor_value_info("x", kind, given)]
    graph = helper.make_graph(nodes, "probe", inputs, [helper.make_tensor_value_info(output, kind, made)], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _save(model: onnx.ModelProto, file: Path) -> None:
    import onnx

    onnx.checker.check_model(model)
    onnx.save(model, str(file))
