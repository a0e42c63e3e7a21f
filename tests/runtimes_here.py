"""A torch module in the runtimes themselves: traced or converted by the plainest call, and a runner by names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgecompress.transcript import Runner

Ports = Sequence[Any]  # with .name and .shape, whose words are what may vary


def in_onnxruntime(
    module: torch.nn.Module, example: Sequence[torch.Tensor], inputs: Ports, outputs: Ports, folder: Path
) -> Runner:
    """Exported with opset 17, axes free as the ports say, and run by ONNX Runtime."""
    import onnxruntime

    file = str(folder / f"{type(module).__name__}.onnx")
    axes = {
        port.name: {axis: size for axis, size in enumerate(port.shape) if isinstance(size, str)}
        for port in (*inputs, *outputs)
    }
    names = [port.name for port in outputs]
    torch.onnx.export(
        module, tuple(example), file, dynamo=False, opset_version=17, input_names=[port.name for port in inputs],
        output_names=names, dynamic_axes=axes,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))


def in_openvino(module: torch.nn.Module, example: Sequence[torch.Tensor], inputs: Ports, outputs: Ports) -> Runner:
    """Converted from torch, axes free as the ports say, and run in float32."""
    openvino = pytest.importorskip("openvino")
    shapes = [openvino.PartialShape([-1 if isinstance(size, str) else size for size in port.shape]) for port in inputs]
    graph = openvino.convert_model(module, example_input=tuple(example), input=shapes)
    compiled = openvino.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        said = compiled([feeds[port.name] for port in inputs])
        return {port.name: said[place] for place, port in enumerate(outputs)}

    return run


def in_litert(parts: Mapping[str, tuple[torch.nn.Module, Sequence[torch.Tensor], Ports, Ports]], file: Path) -> Any:
    """One TFLite file with a signature for each part, of the example's shapes; a function from its name to a runner."""
    litert_torch = pytest.importorskip("litert_torch")
    interpreter_class = pytest.importorskip("ai_edge_litert.interpreter").Interpreter
    converter: Any = litert_torch
    for signature, (module, example, _, _) in parts.items():
        converter = converter.signature(signature, module, tuple(example))
    converter.convert().export(str(file))
    interpreter = interpreter_class(str(file), num_threads=1)

    def runner(signature: str) -> Runner:
        _, _, inputs, outputs = parts[signature]
        call = interpreter.get_signature_runner(signature)

        def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            said = call(**{f"args_{place}": feeds[port.name] for place, port in enumerate(inputs)})
            return {port.name: said[f"output_{place}"] for place, port in enumerate(outputs)}

        return run

    return runner
