"""ONNX for ONNX Runtime: one file, batch and time free, fp32 or int8. The graph itself is made in ``onnx_graph``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.errors import ExportError
from edgecompress.exporters.order import Order, Written

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.exporters.parity import Runner

MODEL_FILE = "model.onnx"


class OnnxExporter:
    """ONNX for ONNX Runtime: fp32, or int8 with dynamically quantised matrix products (convolutions stay fp32)."""

    format = "onnx"
    runtime = "onnxruntime"
    precisions = ("fp32", "int8")
    always_padded = False

    def write(self, order: Order) -> Written:
        """See :class:`edgecompress.exporters.Exporter`; the file is ``model.onnx``."""
        if order.options.seconds:
            raise ExportError("onnx: lengths stay free in this format", hint="leave seconds out")
        from edgecompress.exporters.onnx_graph import described, write_fp32
        from edgecompress.exporters.onnx_int8 import write_int8

        file = order.folder / MODEL_FILE
        if order.precision == "fp32":
            return described(write_fp32(order.model, order.form, file, order.metadata))
        floats = order.options.float_nodes
        if order.full is not None:
            return described(write_int8(order.full, file, order.metadata, (), floats))
        with tempfile.TemporaryDirectory(dir=order.folder) as scratch:  # weights above 2 GB lie beside the graph
            full = Path(scratch) / "fp32.onnx"
            write_fp32(order.model, order.form, full, order.metadata)
            return described(write_int8(full, file, order.metadata, (), floats))

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
