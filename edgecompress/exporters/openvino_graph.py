"""The OpenVINO model of a network: converted, laid out for the CPU, quantised, described."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress import plugins
from edgecompress.errors import ExportError
from edgecompress.exporters.openvino import COMPUTED_IN, runtime
from edgecompress.exporters.openvino_rewrites import masked_attention, two_dimensional
from edgecompress.exporters.order import Written
from edgecompress.quiet import quiet
from edgecompress.records import Tensor

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.model.forms import Form, Interface

PRODUCTS = ("MatMul", "Convolution", "GroupConvolution")
INTEGERS = ("i8", "u8", "i4", "u4")
NAIVE = "int8-static-naive"
ON_THE_WAY = (
    "Convert",
    "Subtract",
    "Multiply",
    "Reshape",
    "Transpose",
    "FakeQuantize",
)  # from stored weights to a product
# The CPU plug-in quantises the inputs of products whose weights are integers unless a file says 0, in groups of so many,
# where a product has as many. HuBERT base, 5 s, against fp32: 0.64 of the time with 128, 0.69 with 64, 0.76 with 32 (its
# default), 1.0 with 0; 1 - cosine 4.9e-4, 4.6e-4, 4.5e-4 and 3.8e-4.
GROUPS = (128, 64, 32)
INT4_GROUP = 64


def converted(model: Model, form: Form, folder: Path, length: int | None = None) -> Any:
    """The model as OpenVINO's, in fp32, by way of ONNX (made in ``folder`` and removed). ``length`` fixes the shape, batch 1.

    Converted from torch directly the same model takes the same time (HuBERT base, 5 s: 551 ms against 548), and so does
    ``scaled_dot_product_attention`` (550): the plug-in fuses attention, GELU and norms of all three alike. From ONNX
    inputs and outputs keep their names, and a dimension that was baked in shows in the graph.
    """
    from edgecompress.exporters.onnx_file import finish
    from edgecompress.exporters.onnx_graph import traced

    openvino = runtime()
    with _quiet(), tempfile.TemporaryDirectory(dir=folder) as scratch:
        file = Path(scratch) / "traced.onnx"
        finish(traced(model, form, folder), file, {}, check=False)
        made = openvino.convert_model(str(file))
    two_dimensional(made)
    masked_attention(made)
    if length is not None:
        sizes = {form.free["batch"]: 1, form.free["length"]: length}
        made.reshape({port.name: list(port.sized(**sizes)) for port in form.inputs})
    for parameter, port in zip(made.get_parameters(), form.inputs, strict=True):
        # a layout keeps the names of free dimensions, which OpenVINO's files have no other place for
        words = [str(size) if isinstance(size, str) else "?" for size in port.shape]
        parameter.set_layout(openvino.Layout(f"[{','.join(words)}]"))
    return made


def at_precision(
    made: Any,
    precision: str,
    form: Interface,
    feeds: Sequence[Mapping[str, np.ndarray]],
    float_nodes: Sequence[str] = (),
) -> Any:
    """The fp32 model at one of the exporter's precisions; ``feeds`` are needed for ``int8-static`` and its naive form alone.

    Raises:
        ExportError: nothing was quantised, ``float_nodes`` has an unknown name, or ``feeds`` do not fit the inputs.
    """
    if precision in ("fp32", "fp16"):
        return made
    runtime()
    import nncf

    if precision == NAIVE and float_nodes:
        raise ExportError(f"openvino {NAIVE} leaves no part in fp32", hint="use int8-static")
    known = {node.get_friendly_name() for node in products(made)}
    for name in float_nodes:
        if name not in known:
            raise ExportError(f"openvino: no node {name!r} to leave in fp32", hint=plugins.nearest(name, sorted(known)))
    left = sorted({*float_nodes, *_of_spectra(made)})
    ignored = nncf.IgnoredScope(names=left) if left else None
    with _quiet():
        fitting = [_fitting(made, form, each) for each in feeds]
        if precision == NAIVE:
            quantized = nncf.quantize(made, nncf.Dataset(fitting))
        elif precision == "int8-static":
            quantized = nncf.quantize(
                made,
                nncf.Dataset(fitting),
                subset_size=len(fitting),
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=ignored,
            )
        elif precision == "int4-weights":
            quantized = nncf.compress_weights(
                made,
                mode=nncf.CompressWeightsMode.INT4_SYM,
                group_size=INT4_GROUP,
                ratio=1.0,
                all_layers=True,
                ignored_scope=ignored,
                advanced_parameters=nncf.AdvancedCompressionParameters(
                    group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
                ),
            )
        else:
            quantized = nncf.compress_weights(made, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=ignored)
    wanted = ("i4", "u4") if precision == "int4-weights" else INTEGERS
    if not any(weights_of(node) in wanted for node in products(quantized)):
        raise ExportError(
            f"openvino {precision}: nothing was quantised",
            hint="use fp32, or int8-weights in the place of int4: products of less than 32 inputs have no 4 bits",
        )
    if precision == "int8" and not dynamic_group(quantized):
        raise ExportError(
            "openvino int8: no matrix product has 32 inputs, so none is done in integers", hint="use int8-weights"
        )
    return quantized


def _fitting(made: Any, form: Interface, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Feeds in the model's own shape: of another length than a fixed one they are repeated or cut.

    Raises:
        ExportError: another name, dtype or shape than the model takes.
    """
    first, axis = form.input_name, form.time_axis
    size: Any = made.input(first).get_partial_shape()[axis] if first in feeds else None
    fixed = size is not None and size.is_static and np.ndim(feeds[first]) > axis
    if fixed and feeds[first].shape[axis] not in (0, size.get_length()):
        feeds = form.resized(feeds, size.get_length())
    for port in form.inputs:
        if port.name not in feeds:
            raise ExportError(
                f"openvino: calibration has {sorted(feeds)}, the model takes {port.name}",
                hint="name the arrays as the inputs",
            )
        array, shape = np.asarray(feeds[port.name]), made.input(port.name).get_partial_shape()
        if array.dtype != np.dtype(port.dtype):
            raise ExportError(
                f"openvino: calibration input {port.name} is {array.dtype}, the model takes {port.dtype}",
                hint=f"convert it: .astype({port.dtype!r})",
            )
        if array.size == 0 or not shape.compatible(runtime().PartialShape(list(array.shape))):
            raise ExportError(
                f"openvino: calibration input {port.name} has shape {array.shape}, the model takes {shape}",
                hint="give inputs of batch 1, as the model takes them",
            )
    return {port.name: np.asarray(feeds[port.name]) for port in form.inputs}


def products(made: Any) -> list[Any]:
    """The matrix products and convolutions of a model: what can be quantised."""
    return [node for node in made.get_ordered_ops() if node.get_type_name() in PRODUCTS]


def _of_spectra(made: Any) -> set[str]:
    """Names of products on the way to a logarithm: log-mel frames made inside, which 8 bits ruin (MelHuBERT, cosine .90)."""
    todo = [node for node in made.get_ordered_ops() if node.get_type_name() == "Log"]
    seen: dict[str, Any] = {}
    while todo:
        node = todo.pop()
        if node.get_friendly_name() not in seen:
            seen[node.get_friendly_name()] = node
            todo.extend(value.get_node() for value in node.input_values())
    return {name for name, node in seen.items() if node.get_type_name() in PRODUCTS}


def weights_of(node: Any) -> str | None:
    """In what the weights of a product are stored: ``f32``, ``f16``, ``i8`` ...; None where both sides are computed."""
    for value in node.input_values():
        found = value.get_node()
        while found.get_type_name() in ON_THE_WAY:
            found = found.input_value(0).get_node()
        if found.get_type_name() == "Constant":
            return str(found.get_element_type().get_type_name())
    return None


def dynamic_group(made: Any) -> int:
    """In groups of how many the inputs of products are to be quantised at run time; 0 where no product has enough."""
    widths = [
        node.get_input_partial_shape(0)[-1].get_length()
        for node in products(made)
        if node.get_type_name() == "MatMul" and weights_of(node) in INTEGERS
    ]
    return next((group for group in GROUPS if max(widths, default=0) >= group), 0)


def write(made: Any, precision: str, form: Interface, file: Path, metadata: Mapping[str, str]) -> Written:
    """Save the model with its metadata under ``edgecompress``, and say what was written."""
    openvino = runtime()
    for key, value in metadata.items():
        made.set_rt_info(value, ["edgecompress", key.removeprefix("edgecompress.")])
    made.set_rt_info(COMPUTED_IN, ["edgecompress", "inference_precision"])
    group = dynamic_group(made) if precision == "int8" else 0
    made.set_rt_info(str(group), ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
    openvino.save_model(made, str(file), compress_to_fp16=precision == "fp16")
    nodes = made.get_ops()
    lineage: dict[str, Any] = {
        "opset": max(
            int(node.get_type_info().version_id.removeprefix("opset") or 0) for node in nodes if _numbered(node)
        ),
        "nodes": len(nodes),
        "inference_precision": COMPUTED_IN,
    }
    if group:
        lineage["dynamic_quantization_group_size"] = group
    if "-static" in precision:
        lineage["fake_quantize"] = sum(node.get_type_name() == "FakeQuantize" for node in nodes)
    counted = sum(weights_of(node) in INTEGERS for node in products(made))
    return Written(
        model_file=file.name,
        inputs=[_tensor(made.input(port.name), port.shape) for port in form.inputs],
        outputs=[_tensor(made.output(port.name), port.shape) for port in form.outputs],
        quantized_nodes=counted or None,
        lineage=lineage,
    )


def _numbered(node: Any) -> bool:
    return str(node.get_type_info().version_id).removeprefix("opset").isdigit()


def _tensor(port: Any, names: Sequence[int | str]) -> Tensor:
    """A port of the model: numbers where it is fixed, the form's names where not."""
    found = port.get_partial_shape()
    shape = [size.get_length() if size.is_static else name for size, name in zip(found, names, strict=True)]
    return Tensor(name=port.get_any_name(), dtype=str(port.get_element_type().to_dtype()), shape=shape)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice, and without its bars and tables."""
    with quiet(), redirect_stdout(io.StringIO()):
        yield
