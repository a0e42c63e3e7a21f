"""TFLite for LiteRT: one file for some fixed lengths, fp32 or quantised. Made in ``tflite_graph``, read in ``tflite_file``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress.errors import ExportError
from edgecompress.exporters.order import Order, Written
from edgecompress.records import Tensor

if TYPE_CHECKING:
    from edgecompress.exporters.parity import Runner
    from edgecompress.model.forms import Form, Port

MODEL_FILE = "model.tflite"
USUAL_SECONDS = 5.0
OLD, NEW = "tflite-runtime", "ai-edge-litert"
INTEGER = ("int8", "int8-static", "int8-weights", "int8-naive")


class TfliteExporter:
    """TFLite for LiteRT, at fixed lengths (5 s unless asked; Whisper: its context), to which shorter input is padded.

    int8: matrix products and convolutions have int8 weights, and inputs quantised at run time. int8-static: the matrix
    products' inputs are quantised by calibration instead. Norms, softmax and GELU stay in float. int8-weights and fp16:
    only weights are smaller, and are computed with in float. int8-naive is the default recipe of ai-edge-quantizer for
    int8 with dynamic ranges, to compare with. A form without lengths takes its fixed lengths only.
    """

    format = "tflite"
    runtime = "tflite"
    precisions = ("fp32", "fp16", "int8", "int8-static", "int8-weights", "int8-naive")
    always_padded = True

    def write(self, order: Order) -> Written:
        """See :class:`edgecompress.exporters.Exporter`; the file is ``model.tflite``."""
        from edgecompress.exporters import tflite_file, tflite_graph

        old = _for_old(order.options.for_runtime)
        buckets = {_name(order.form, length): length for length in order.lengths() or [_usual_length(order)]}
        calibration = _calibration(order, buckets) if order.precision == "int8-static" else None
        file = order.folder / MODEL_FILE
        if order.precision == "fp32":
            _write_fp32(order, buckets, file)
        else:
            full, made = order.full, order.folder / "fp32.tflite"
            if full is None:
                _write_fp32(order, buckets, made)
                tflite_file.finish(made, {})  # the quantiser goes by its names
            try:
                tflite_graph.quantize(
                    full or made, file, order.precision, order.options.float_nodes, calibration, row_scales=not old
                )
            finally:
                made.unlink(missing_ok=True)
        tables = tflite_file.finish(file, order.metadata)
        needed = tflite_file.operators(tables)
        missing = tflite_file.beyond_2_14(needed)
        if old and missing:
            listed = ", ".join(f"{kind} version {number}" for kind, number in missing.items())
            raise ExportError(
                f"{OLD} 2.14 does not have {listed}", hint=f"use {NEW} on the device, or another precision"
            )
        inputs, outputs = tflite_file.signatures(tables)[list(buckets)[-1]]
        padded = _takes_lengths(order.form)
        return Written(
            model_file=MODEL_FILE,
            inputs=[_tensor(port, inputs[port.name], order.form, padded) for port in order.form.inputs],
            outputs=[_tensor(port, outputs[port.name], order.form, padded) for port in order.form.outputs],
            quantized_nodes=tflite_file.small_weights(tables) if order.precision in INTEGER else None,
            lengths=tuple(buckets.values()),
            lineage={
                "signatures": list(buckets),
                "operators": needed,
                "runtimes": tflite_file.runtimes(needed),
                "converters": {name: version(name) for name in ("litert-torch", "ai-edge-quantizer", NEW)},
            },
        )

    def open(self, file: Path) -> Runner:
        """The function that a device runs, with as many threads as torch has."""
        import torch

        from bench_remote.tflite import tflite

        run, about = tflite(str(file), {"threads": torch.get_num_threads()})

        def opened(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return dict(run(inputs))

        return _with(opened, {**about["options"], "version": about["version"]})

    def quantizable(self, file: Path) -> list[str]:
        """See :class:`edgecompress.exporters.Exporter`."""
        from edgecompress.exporters.tflite_graph import quantizable

        return quantizable(file)


def _with(run: Runner, conditions: dict[str, Any]) -> Runner:
    run.conditions = conditions  # type: ignore[attr-defined]
    return run


def _for_old(runtime: str | None) -> bool:
    if runtime in (None, NEW):
        return False
    if str(runtime).split(" ")[0] == OLD:
        return True
    raise ExportError(f"tflite: no runtime is called {runtime!r}", hint=f"choose {NEW} or {OLD}")


def _takes_lengths(form: Form) -> bool:
    return any(port.name == "lengths" for port in form.inputs)


def _name(form: Form, length: int) -> str:
    """Of a signature: the device tells a bucket by the number at its end. Images have no time to pad, and no number."""
    return f"{form.unit}_{length}" if form.time_axis else form.unit


def _usual_length(order: Order) -> int:
    per_second, most = order.form.per_second, order.model.max_seconds
    if per_second is None:
        return order.form.trace_length(order.model)
    return round((USUAL_SECONDS if most is None else most) * per_second)


def _write_fp32(order: Order, buckets: Mapping[str, int], file: Path) -> None:
    from edgecompress.exporters import tflite_graph

    form, model = order.form, order.model
    for length in buckets.values() if form.time_axis else ():
        shape = form.example(model, 1, length)[0].shape
        found = next((axis for axis, size in enumerate(shape) if axis and size == length), None)
        if found != form.time_axis:
            raise ExportError(
                f"tflite: {length} {form.unit.replace('_', ' ')} are as many as another dimension of {tuple(shape)}",
                hint="choose a length that is longer or shorter by one",
            )
    module = form.module(model)
    traced = {name: (module, form.example(model, 1, length)) for name, length in buckets.items()}
    names = [port.name for port in form.inputs], [port.name for port in form.outputs]
    tflite_graph.convert(traced, *names, file)


def _calibration(order: Order, buckets: Mapping[str, int]) -> dict[str, list[dict[str, np.ndarray]]]:
    """The calibration's inputs at each length, tiled or cut; 64-bit integers as the file takes them."""
    form, given = order.form, order.calibration()
    return {name: [_as_long(form, feeds, length) for feeds in given] for name, length in buckets.items()}


def _as_long(form: Form, feeds: Mapping[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    fed = form.resized(feeds, length)
    return {name: array.astype(np.int32) if array.dtype == np.int64 else array for name, array in fed.items()}


def _tensor(port: Port, tensor: Any, form: Form, padded: bool) -> Tensor:
    """As the file has it; what its runner pads or cuts has a name."""
    from edgecompress.exporters.tflite_file import type_name

    shape: Sequence[int] = [int(size) for size in tensor.shape]
    named = [size if padded and isinstance(size, str) and place else None for place, size in enumerate(port.shape)]
    return Tensor(
        name=port.name,
        dtype=type_name(tensor).lower(),
        shape=[name or size for name, size in zip(named, shape, strict=True)],
    )
