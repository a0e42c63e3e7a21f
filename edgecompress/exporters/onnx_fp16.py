"""Half precision where the weights are: products and convolutions in float16, everything between them in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from edgecompress.errors import ExportError
from edgecompress.exporters.onnx_edit import Edit
from edgecompress.exporters.onnx_file import finish
from edgecompress.exporters.onnx_weights import Weighted, weighted

GREATEST = float(np.finfo(np.float16).max)


def write_fp16(
    full: Path, file: Path, metadata: Mapping[str, str], feeds: object = None, float_nodes: Sequence[str] = ()
) -> onnx.ModelProto:
    """Store weights as float16 and compute what they multiply in it, check, and return what was written.

    Inputs, outputs, norms, softmaxes, masks, sums and log-mel frames stay float32: there float16 overflows or loses what
    is small. The file is half as large. It is no faster in ONNX Runtime on a CPU, which has no such products and casts
    (HuBERT base: 0.98 to 1.0 of fp32's time; with everything in float16 it is 1.07, since Gelu is no longer fused).

    Raises:
        ExportError: there are no weights, one is greater than float16 can hold, or a name in ``float_nodes`` is no node's.
    """
    edit = Edit(onnx.load(str(full)))
    found = weighted(edit, float_nodes, grouped=True)
    if not found:
        raise ExportError("onnx fp16: no product has weights", hint="use fp32: fp16 would be the same file")
    for one in found:
        _halve(edit, one)
    return finish(edit.finish(), file, metadata)


def _halve(edit: Edit, one: Weighted) -> None:
    node = one.node
    for place, name in enumerate(list(node.input)):
        array = edit.constant(name)
        if array is None:
            edit.set_input(node, place, edit.add("Cast", [name], to=TensorProto.FLOAT16))
            continue
        if np.abs(array).max(initial=0) > GREATEST:
            raise ExportError(
                f"onnx fp16: a weight of {one.name} is greater than {GREATEST:g}",
                hint="leave it in float_nodes, or use fp32",
            )
        edit.set_input(node, place, edit.add_constant(array.astype(np.float16), f"{name}.half"))
    output, half = node.output[0], edit.fresh(node.output[0])
    edit.rename_output(node, half)
    edit.add("Cast", [half], to=TensorProto.FLOAT, outputs=[output])
