"""Any model file, opened: described and run here by the function that would run it on a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress import plain, plugins
from edgecompress.errors import EdgeCompressError, ExportError
from edgecompress.exporters.converting import first_line

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Opened:
    """A file that can be run. Inputs and outputs are as a runtime tells of them: name, dtype, and shape, in which a
    dimension that may vary is its name or None. ``scales`` are (scale, zero point) of tensors that are quantised values.
    """

    file: Path
    format: str
    runtime: str
    version: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    answer: Any
    conditions: dict[str, Any] = field(default_factory=dict)
    scales: dict[str, tuple[float, int]] = field(default_factory=dict)

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """All outputs by name. Whatever the runtime raises is an ExportError that names the file and the shapes."""
        try:
            return {
                name: np.array(array) for name, array in self.answer(dict(feeds)).items()
            }  # some runtimes lend theirs
        except EdgeCompressError:
            raise
        except Exception as cause:
            shapes = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in feeds.items())
            raise ExportError(
                f"{self.file.name} fails in {self.runtime} on {shapes}: {first_line(cause)}",
                hint="choose sizes that the model takes (--dim), or give inputs (--inputs)",
            ) from cause


def opened(file: Path, runtime: str = "") -> Opened:
    """Open a file in the runtime of its suffix, or the named one, held to float32 and one thread.

    Raises:
        RecipeError: no such file, no known suffix, or an ``.xml`` without its ``.bin``.
        ExportError: the runtime is not installed, or refuses the file.
    """
    file = plain.model_file(file)
    plain.weights_of(file)
    kind = plain.KINDS.get(file.suffix.lower()) if runtime else plain.kind_of(file)
    name = runtime or (kind.runtime if kind else "")
    function = plugins.find("runtimes", name)
    try:
        answer, about = function(str(file), {"threads": 1, "inference_precision": "f32"})
        scales = _scales(file) if file.suffix.lower() == ".tflite" else {}
    except ImportError as cause:
        raise ExportError(
            f"{name} is not installed here: {cause}", hint="is the format's extra installed? `edgecompress doctor` says"
        ) from cause
    except Exception as cause:  # every runtime has kinds of its own
        raise ExportError(
            f"{file.name} does not open in {name}: {first_line(cause)}",
            hint="is it whole, and not made for a newer runtime?",
        ) from cause
    return Opened(
        file, kind.format if kind else file.suffix.removeprefix("."), name, str(about["version"]),
        about["inputs"], about["outputs"], answer, dict(about.get("options", {})), scales,
    )  # fmt: skip


def _scales(file: Path) -> dict[str, tuple[float, int]]:
    """Scale and zero point of the inputs and outputs of a TFLite file that are bytes."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(file))
    found: dict[str, Any] = {}
    for name in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(name)
        found |= {**runner.get_input_details(), **runner.get_output_details()}
    if not found:
        tensors = [*interpreter.get_input_details(), *interpreter.get_output_details()]
        found = {each["name"]: each for each in tensors}
    return {
        name: (float(each["quantization"][0]), int(each["quantization"][1]))
        for name, each in found.items()
        if np.dtype(each["dtype"]).itemsize == 1 and each["quantization"][0]
    }
