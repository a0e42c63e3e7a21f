"""ONNX for ONNX Runtime: one file, batch and time free, fp32 or int8. The graph itself is made in ``onnx_graph``."""

from __future__ import annotations

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
        from edgecompress.exporters.onnx_graph import described, write_fp32, write_int8

        if order.options.seconds:
            raise ExportError("onnx: lengths stay free in this format", hint="leave seconds out")
        file = order.folder / MODEL_FILE
        if order.precision == "fp32":
            return described(write_fp32(order.model, order.form, file, order.metadata))
        if order.full is not None:
            return described(write_int8(order.full, file, order.metadata))
        made = order.folder / "fp32.onnx"
        write_fp32(order.model, order.form, made, order.metadata)
        written = described(write_int8(made, file, order.metadata))
        made.unlink()
        return written

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
