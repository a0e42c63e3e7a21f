"""ONNX for ONNX Runtime: one file, batch and time free, fp32 or int8. The graph itself is made in ``onnx_graph``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.exporters import Written

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.exporters.parity import Runner
    from edgecompress.model import Model
    from edgecompress.model.forms import Form

MODEL_FILE = "model.onnx"


class OnnxExporter:
    """ONNX for ONNX Runtime: fp32, or int8 with dynamically quantised matrix products (convolutions stay fp32)."""

    format = "onnx"
    runtime = "onnxruntime"
    precisions = ("fp32", "int8")

    def write(
        self, model: Model, precision: str, folder: Path, metadata: Mapping[str, str], full: Path | None, form: Form
    ) -> Written:
        """See :class:`edgecompress.exporters.Exporter`; the file is ``model.onnx``."""
        from edgecompress.exporters.onnx_graph import described, write_fp32, write_int8

        file = folder / MODEL_FILE
        if precision == "fp32":
            return described(write_fp32(model, file, metadata, form))
        if full is not None:
            return described(write_int8(full, file, metadata))
        made = folder / "fp32.onnx"
        write_fp32(model, made, metadata, form)
        written = described(write_int8(made, file, metadata))
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
