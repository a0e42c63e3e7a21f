"""OpenVINO for its CPU plug-in: ``model.xml`` and ``model.bin``, computed in float32 or integers, never in bfloat16.

The model is made in ``openvino_graph``. What a file is computed in is not in the file: the plug-in uses bfloat16 where
the processor has it (4e-2 off), so whoever opens one has to pin ``INFERENCE_PRECISION_HINT``; it is in the record.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.errors import ExportError
from edgecompress.exporters.order import Order, Written

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.exporters.parity import Runner

MODEL_FILE = "model.xml"
COMPUTED_IN = "f32"


class OpenVinoExporter:
    """OpenVINO: fp32, fp16 weights, int8 with dynamic or calibrated activations, int8 or int4 weights alone.

    int8-static-naive is what ``nncf.quantize`` makes by its own defaults, to compare with.
    """

    format = "openvino"
    runtime = "openvino"
    precisions = ("fp32", "fp16", "int8", "int8-static", "int8-weights", "int4-weights", "int8-static-naive")
    always_padded = False

    def write(self, order: Order) -> Written:
        """See :class:`edgecompress.exporters.Exporter`; the files are ``model.xml`` and ``model.bin``.

        Raises:
            ExportError: more than one fixed length, an older runtime, or nothing was quantised.
        """
        openvino = runtime()
        from edgecompress.exporters import openvino_graph as graph

        lengths = order.lengths()
        if len(lengths) > 1:
            raise ExportError(
                f"openvino: a file has one fixed length or none, asked are {len(lengths)}",
                hint="give one length, or none: a file of free length takes them all",
            )
        if order.options.for_runtime is not None:
            raise ExportError("openvino: files are written for the installed OpenVINO", hint="leave for_runtime out")
        file = order.folder / MODEL_FILE
        if order.full is not None:
            made = openvino.Core().read_model(str(order.full))
        else:
            made = graph.converted(order.model, order.form, order.folder, lengths[0] if lengths else None)
        feeds = order.calibration() if "-static" in order.precision else []
        made = graph.at_precision(made, order.precision, order.form, feeds, order.options.float_nodes)
        return graph.write(made, order.precision, order.form, file, order.metadata)

    def open(self, file: Path) -> Runner:
        """The model compiled for the CPU in float32, with as many threads as torch has."""
        import torch

        return Compiled(file, torch.get_num_threads())

    def quantizable(self, file: Path) -> list[str]:
        """See :class:`edgecompress.exporters.Exporter`: matrix products and convolutions, by their names in the file."""
        from edgecompress.exporters.openvino_graph import products

        return [node.get_friendly_name() for node in products(runtime().Core().read_model(str(file)))]


class Compiled:
    """A file that can be run: inputs by name to outputs by name. ``conditions`` say how it really runs."""

    def __init__(self, file: Path, threads: int) -> None:
        core = runtime().Core()
        wanted = {
            "INFERENCE_PRECISION_HINT": COMPUTED_IN,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": "1",
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = core.compile_model(str(file), "CPU", wanted)
        self.conditions = {
            "inference_precision": compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
            "dynamic_quantization_group_size": int(compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")),
        }
        self._request = compiled.create_infer_request()
        self._names = [output.get_any_name() for output in compiled.outputs]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One inference; the answers are the caller's own."""
        said = self._request.infer(dict(inputs))
        return {name: said[name] for name in self._names}


def runtime() -> Any:
    """The package ``openvino``, without its telemetry: importing it, converting and quantising would call home.

    It does without where the telemetry package is not installed, so here there is none.

    Raises:
        ExportError: it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as cause:
        raise ExportError(f"openvino is not here: {cause}", hint='pip install "edgecompress[openvino]"') from cause
    return openvino
