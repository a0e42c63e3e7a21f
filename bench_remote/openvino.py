"""OpenVINO on the CPU, by the contract of ``bench_remote.runtimes``: an ``.xml`` with its ``.bin`` beside it, or ``.onnx``."""

from __future__ import annotations

import sys
import time
from typing import Any, Dict, Tuple

Loaded = Tuple[Any, Dict[str, Any]]

# Read back after compiling: what was asked for is not always what is done (threads above the number of cores).
_TOLD = (
    "INFERENCE_NUM_THREADS",
    "NUM_STREAMS",
    "INFERENCE_PRECISION_HINT",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE",
    "PERFORMANCE_HINT",
    "EXECUTION_MODE_HINT",
    "ENABLE_CPU_PINNING",
    "ENABLE_HYPER_THREADING",
    "SCHEDULING_CORE_TYPE",
    "CPU_DENORMALS_OPTIMIZATION",
    "EXECUTION_DEVICES",
)


def openvino(path: str, options: dict[str, Any]) -> Loaded:
    """``threads``; ``inference_precision`` ("f32": by itself the plug-in computes in bf16 or f16 where it can).

    ``cpu_pinning``: whether threads are bound to cores; the plug-in's default unless given. One request at a time, whose
    tensors are the arrays that go in and come out: an answer lasts until the next run.
    """
    started = time.perf_counter()
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # else the import calls home
    import openvino as ov

    import_s = time.perf_counter() - started
    about: dict[str, Any] = {"version": ov.get_version(), "import_s": import_s}
    if not path:
        return None, about
    settings = {
        "INFERENCE_NUM_THREADS": int(options["threads"]),
        "NUM_STREAMS": "1",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": str(options.get("inference_precision", "f32")),
    }
    if "cpu_pinning" in options:
        settings["ENABLE_CPU_PINNING"] = bool(options["cpu_pinning"])
    if options.get("profile"):
        settings["PERF_COUNT"] = True
    compiled = ov.Core().compile_model(path, "CPU", settings)
    about["options"] = {name.lower(): _told(compiled, name) for name in _TOLD}
    about["inputs"] = [_described(port, "input", place) for place, port in enumerate(compiled.inputs)]
    about["outputs"] = [_described(port, "output", place) for place, port in enumerate(compiled.outputs)]
    given = [tensor["name"] for tensor in about["inputs"]]
    answered = [tensor["name"] for tensor in about["outputs"]]
    request = compiled.create_infer_request()
    profiled: list[list[dict[str, Any]]] = []
    if options.get("profile"):
        about["operators"] = lambda: profiled

    def run(feeds: dict[str, Any]) -> dict[str, Any]:
        request.infer([feeds[name] for name in given], share_inputs=True, share_outputs=True)
        if options.get("profile"):
            profiled.append(_operators(request))
        return {name: request.get_output_tensor(place).data for place, name in enumerate(answered)}

    return run, about


def _operators(request: Any) -> list[dict[str, Any]]:
    """What the last run executed, by the plug-in's own counters (whole microseconds)."""
    ran = [each for each in request.profiling_info if each.status.name == "EXECUTED"]
    return [
        {"op": each.node_type, "name": each.node_name, "ns": round(each.real_time.total_seconds() * 1e9)}
        for each in ran
    ]


def _told(compiled: Any, name: str) -> Any:
    """A property as JSON has it; None where this version does not know it."""
    try:
        value = compiled.get_property(name)
    except RuntimeError:
        return None
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple, set)):
        return [str(one) for one in value]
    if hasattr(value, "get_type_name"):
        return value.get_type_name()
    return getattr(value, "name", str(value))


def _described(port: Any, kind: str, place: int) -> dict[str, Any]:
    """A port without a name is called by its place. A free dimension has the name that the layout gives it, or none."""
    names = sorted(port.get_names())
    element = port.get_element_type()
    try:
        dtype = str(element.to_dtype())
    except (RuntimeError, KeyError):  # bfloat16 and what else numpy does not have
        dtype = element.get_type_name()
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        return {"name": names[0] if names else f"{kind}_{place}", "dtype": dtype, "shape": []}
    words = _words(port, len(shape))
    sizes = [one.get_length() if one.is_static else words[axis] for axis, one in enumerate(shape)]
    return {"name": names[0] if names else f"{kind}_{place}", "dtype": dtype, "shape": sizes}


def _words(port: Any, rank: int) -> list[Any]:
    """Names of dimensions from a port's layout, ``[N,SAMPLES]`` (what OpenVINO makes of batch and samples); None without."""
    layout = getattr(port.get_node(), "layout", None)
    words = str(layout.to_string() if layout is not None else "").strip("[]").split(",")
    if len(words) != rank:
        return [None] * rank
    return [{"N": "batch", "": None, "?": None, "...": None}.get(word, word.lower()) for word in words]
