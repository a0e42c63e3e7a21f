"""The roof of this machine's cores: how many multiply-accumulates per second its best matrix products reach, in fp32 and int8.

    python benchmarks/roofline.py [--threads 1 2] [--seconds 0.2] [--json FILE]

A ladder of square products and of those of a Transformer layer (250 frames; widths 768 and 3072) is run by every library
that is installed: numpy, torch, ONNX Runtime and OpenVINO, the latter two in int8 as well (quantised inputs and weights as
a static int8 file has them). Each product is repeated for ``--seconds`` and its fastest run counts: a roof is what can be
reached, not what usually is. The peak of a precision is the best of all libraries and shapes, so a model's own
multiply-accumulates per second over it are the share of the core that its runtime uses:

    from roofline import peak
    share = model_gmacs_per_s / peak(threads=1)["fp32"]["gmacs_per_s"]

Thread counts hold for a whole process in some libraries, so each one is measured in a process of its own. On a busy machine
the roof comes out too low, and shares too high: ``load_1min`` is written beside it.

Exit status: 0. Takes about 15 s for each number of threads.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy

Shape = tuple[int, int, int]  # rows, inner, columns
Run = Callable[[], object]

SQUARES: tuple[Shape, ...] = tuple((side, side, side) for side in (256, 512, 1024, 2048))
LAYER: tuple[Shape, ...] = ((250, 768, 768), (250, 768, 3072), (250, 3072, 768))
SHAPES = SQUARES + LAYER
SECONDS = 0.2
LEAST_RUNS = 3
POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def peak(threads: int = 1, seconds: float = SECONDS, shapes: Sequence[Shape] = SHAPES) -> dict[str, Any]:
    """The roof of ``threads`` cores, measured in a process of its own.

    Returns:
        ``threads``, ``load_1min``, ``versions``, ``runs`` (every library, precision and shape with its GMAC/s), and for
        each precision that could be measured (``fp32``, ``int8``) its best run. ``absent`` names libraries that are not
        installed.

    Raises:
        ValueError: fewer than one thread.
        subprocess.CalledProcessError: the measuring process failed.
    """
    if threads < 1:
        raise ValueError(f"{threads} threads: at least one is needed")
    order = json.dumps({"threads": threads, "seconds": seconds, "shapes": [list(shape) for shape in shapes]})
    surroundings = os.environ | {name: str(threads) for name in POOLS}
    line = [sys.executable, str(Path(__file__).resolve()), "--order", order]
    told = subprocess.run(line, env=surroundings, check=True, stdout=subprocess.PIPE)
    return dict(json.loads(told.stdout))


def measured(threads: int, seconds: float, shapes: Sequence[Shape]) -> dict[str, Any]:
    """As ``peak``, in this process, whose thread pools must have been told already."""
    runs, versions, absent = [], {}, []
    for library, makers in LIBRARIES.items():
        try:
            versions[library] = str(importlib.import_module(library).__version__)
            for maker_name in makers:
                importlib.import_module(maker_name)
        except ModuleNotFoundError:
            absent.append(library)
            versions.pop(library, None)
            continue
        for shape in shapes:
            for precision, run in MAKERS[library](shape, threads):
                rate = shape[0] * shape[1] * shape[2] / fastest_s(run, seconds) / 1e9
                runs.append(
                    {"library": library, "precision": precision, "shape": list(shape), "gmacs_per_s": round(rate, 2)}
                )
    best = {
        precision: max((one for one in runs if one["precision"] == precision), key=lambda one: one["gmacs_per_s"])
        for precision in dict.fromkeys(one["precision"] for one in runs)
    }
    about = {"threads": threads, "load_1min": os.getloadavg()[0], "versions": versions, "absent": absent}
    return about | {"runs": runs} | best


def fastest_s(run: Run, seconds: float) -> float:
    """Seconds of the fastest of at least ``LEAST_RUNS`` runs over ``seconds``, after one that is not counted."""
    run()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < LEAST_RUNS or time.perf_counter() < until:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


# --- what runs a product ---------------------------------------------------------------------------------------------
def of_numpy(shape: Shape, threads: int) -> Iterator[tuple[str, Run]]:
    left, right = operands(shape)
    out = numpy.empty((shape[0], shape[2]), "float32")
    yield "fp32", lambda: numpy.matmul(left, right, out=out)


def of_torch(shape: Shape, threads: int) -> Iterator[tuple[str, Run]]:
    import torch

    torch.set_num_threads(threads)
    left, right = (torch.from_numpy(one) for one in operands(shape))
    out = torch.empty(shape[0], shape[2])
    yield "fp32", lambda: torch.mm(left, right, out=out)


def of_onnxruntime(shape: Shape, threads: int) -> Iterator[tuple[str, Run]]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    settings.log_severity_level = 3
    feeds = {"x": operands(shape)[0]}
    for precision in ("fp32", "int8"):
        session = onnxruntime.InferenceSession(
            product(shape, precision), sess_options=settings, providers=["CPUExecutionProvider"]
        )
        yield precision, lambda session=session: session.run(None, feeds)  # type: ignore[misc]


def of_openvino(shape: Shape, threads: int) -> Iterator[tuple[str, Run]]:
    import io

    import openvino

    core = openvino.Core()
    # Its default is bf16 where the processor has it, which is no fp32.
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    left = operands(shape)[0]
    for precision in ("fp32", "int8"):
        compiled = core.compile_model(core.read_model(io.BytesIO(product(shape, precision))), "CPU", settings)
        request = compiled.create_infer_request()
        request.set_input_tensor(openvino.Tensor(left, shared_memory=True))
        yield precision, request.infer


MAKERS: dict[str, Callable[[Shape, int], Iterator[tuple[str, Run]]]] = {
    "numpy": of_numpy,
    "torch": of_torch,
    "onnxruntime": of_onnxruntime,
    "openvino": of_openvino,
}
LIBRARIES = {"numpy": (), "torch": (), "onnxruntime": ("onnx",), "openvino": ("onnx",)}  # and what each needs besides


def operands(shape: Shape) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Random fp32 factors of a product."""
    rows, inner, columns = shape
    random = numpy.random.default_rng(0)
    left = random.standard_normal((rows, inner)).astype("float32")
    return left, random.standard_normal((inner, columns)).astype("float32")


def product(shape: Shape, precision: str) -> bytes:
    """``y = x @ w`` as an ONNX file; in int8 both factors and the answer are quantised, so that kernels stay in int8."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rows, inner, columns = shape
    weights = operands(shape)[1]
    scalars = {"x_scale": numpy.float32(4 / 127), "y_scale": numpy.float32(4 * inner**0.5 / 127), "zero": numpy.int8(0)}
    held = [numpy_helper.from_array(numpy.asarray(value), name) for name, value in scalars.items()]
    if precision == "fp32":
        held = [numpy_helper.from_array(weights, "w")]
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    else:
        # 7 bits, as exported files have them: 16-bit sums of pairs do not overflow on processors without VNNI.
        scale = numpy.float32(numpy.abs(weights).max() / 63)
        quantised = numpy.clip(numpy.rint(weights / scale), -64, 63).astype("int8")
        held += [numpy_helper.from_array(quantised, "w"), numpy_helper.from_array(numpy.asarray(scale), "w_scale")]
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "x_scale", "zero"], ["x_q"]),
            helper.make_node("DequantizeLinear", ["x_q", "x_scale", "zero"], ["x_d"]),
            helper.make_node("DequantizeLinear", ["w", "w_scale", "zero"], ["w_d"]),
            helper.make_node("MatMul", ["x_d", "w_d"], ["m"]),
            helper.make_node("QuantizeLinear", ["m", "y_scale", "zero"], ["m_q"]),
            helper.make_node("DequantizeLinear", ["m_q", "y_scale", "zero"], ["y"]),
        ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, inner])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, columns])
    graph = helper.make_graph(nodes, "product", [x], [y], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long each product is repeated")
    parser.add_argument("--json", type=Path, help="write the JSON here too")
    parser.add_argument("--order", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.order:
        order = json.loads(given.order)
        shapes = [tuple(shape) for shape in order["shapes"]]
        print(json.dumps(measured(order["threads"], order["seconds"], shapes)))  # type: ignore[arg-type]
        return 0
    text = json.dumps([peak(threads, given.seconds) for threads in given.threads], indent=1)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
