"""ONNX for ONNX Runtime: one file, batch and time free, at six precisions, and as a library's defaults have it. Graphs are made in ``onnx_graph``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.errors import ExportError
from edgecompress.exporters.order import Order, Written

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from edgecompress.exporters.parity import Runner

MODEL_FILE = "model.onnx"


class OnnxExporter:
    """ONNX for ONNX Runtime. ``int8`` and ``int8-static`` are the fast ones, the others make files small.

    What of a file is quantised, and how, stands with the functions that write it: ``onnx_int8``, ``onnx_static``,
    ``onnx_weight_only``, ``onnx_fp16``.
    """

    format = "onnx"
    runtime = "onnxruntime"
    precisions = ("fp32", "fp16", "int8", "int8-static", "int8-weights", "int4-weights", "int8-naive")
    always_padded = False

    def write(self, order: Order) -> Written:
        """See :class:`edgecompress.exporters.Exporter`; the file is ``model.onnx``."""
        if order.options.seconds:
            raise ExportError("onnx: lengths stay free in this format", hint="leave seconds out")
        from edgecompress.exporters.onnx_graph import described, write_fp32

        file = order.folder / MODEL_FILE
        if order.precision == "fp32":
            return described(write_fp32(order.model, order.form, file, order.metadata))
        feeds = order.calibration() if order.precision == "int8-static" else []
        write, floats = _writers()[order.precision], order.options.float_nodes
        if order.full is not None:
            return described(write(order.full, file, order.metadata, feeds, floats))
        with tempfile.TemporaryDirectory(dir=order.folder) as scratch:  # weights above 2 GB lie beside the graph
            full = Path(scratch) / "fp32.onnx"
            write_fp32(order.model, order.form, full, order.metadata)
            return described(write(full, file, order.metadata, feeds, floats))

    def quantizable(self, file: Path) -> list[str]:
        """See :class:`edgecompress.exporters.Exporter`; names are the modules' paths."""
        from edgecompress.exporters.onnx_weights import quantizable

        return quantizable(file)

    def open(self, file: Path) -> Runner:
        """A session on the CPU with as many threads as torch has."""
        import onnxruntime
        import torch

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]

        def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return dict(zip(names, session.run(names, dict(inputs)), strict=True))

        return run


def _writers() -> dict[str, Callable[..., onnx.ModelProto]]:
    """Functions from an fp32 file to one at each other precision: (full, file, metadata, feeds, float_nodes)."""
    from edgecompress.exporters.onnx_fp16 import write_fp16
    from edgecompress.exporters.onnx_int8 import write_int8
    from edgecompress.exporters.onnx_naive import write_int8_naive
    from edgecompress.exporters.onnx_static import write_int8_static
    from edgecompress.exporters.onnx_weight_only import write_int4_weights, write_int8_weights

    return {
        "fp16": write_fp16,
        "int8": write_int8,
        "int8-static": write_int8_static,
        "int8-weights": write_int8_weights,
        "int4-weights": write_int4_weights,
        "int8-naive": write_int8_naive,
    }
