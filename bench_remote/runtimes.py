"""Runtimes by name, each one function: ``(path, options) -> (run, about)``.

``run`` takes ``{input: array}`` and answers ``{output: array}``. ``about`` says ``version``, ``import_s``, ``options``
(what was really set), ``inputs`` and ``outputs`` (lists of ``{"name", "dtype", "shape"}``; a dimension that may vary is
its name, or null). ``options`` holds ``threads``. Where it also holds ``profile``, the beginning of a file's name to
write to, ``about["operators"]`` is a function that ends the profile and answers ``[{"op", "name", "ns"}]`` of each run so
far, a list a run; a runtime that cannot says why in ``operators_absent``, or nothing. An empty ``path`` only imports and answers ``(None, about)``.
ImportError says that the device does not have the runtime. To add one, write one such function.
"""

from __future__ import annotations

import json
import time
from typing import Any, Dict, Tuple

Loaded = Tuple[Any, Dict[str, Any]]

# onnxruntime's own names of element types, as numpy spells them
_KERNEL = "_kernel_time"
_ONNX_DTYPES = {"float": "float32", "double": "float64"}


def onnxruntime(path: str, options: dict[str, Any]) -> Loaded:
    """ONNX models on the CPU: ``threads`` inside an operator, one operator at a time."""
    started = time.perf_counter()
    import onnxruntime as ort

    import_s = time.perf_counter() - started
    about: dict[str, Any] = {"version": ort.__version__, "import_s": import_s}
    if not path:
        return None, about
    spinning = bool(options.get("spinning", True))
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = int(options["threads"])
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3  # on a board without a known CPU it warns at every load
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    if options.get("profile"):
        settings.enable_profiling = True
        settings.profile_file_prefix = str(options["profile"])
    session = ort.InferenceSession(path, sess_options=settings, providers=["CPUExecutionProvider"])
    about["options"] = {
        "intra_op_num_threads": settings.intra_op_num_threads,
        "inter_op_num_threads": 1,
        "spinning": spinning,
        "execution_mode": "sequential",
        "graph_optimization": "all",
        "providers": session.get_providers(),
    }
    about["inputs"] = _described(session.get_inputs())
    about["outputs"] = _described(session.get_outputs())
    names = [output["name"] for output in about["outputs"]]

    def run(feeds: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(names, session.run(names, feeds)))

    if options.get("profile"):
        about["operators"] = lambda: _onnx_operators(session.end_profiling())
    return run, about


def _onnx_operators(path: str) -> list[list[dict[str, Any]]]:
    """Runs of a profile that onnxruntime wrote: a run's nodes, then its ``model_run``. It counts whole microseconds."""
    runs: list[list[dict[str, Any]]] = []
    rows: list[dict[str, Any]] = []
    with open(path, encoding="utf-8") as stream:
        for event in json.load(stream):
            name = str(event.get("name", ""))
            if event.get("cat") == "Node" and name.endswith(_KERNEL):
                op = event["args"].get("op_name", "")
                rows.append({"op": op, "name": name[: -len(_KERNEL)], "ns": int(event["dur"]) * 1000})
            elif name == "model_run":
                runs.append(rows)
                rows = []
    return runs


def _described(tensors: Any) -> list[dict[str, Any]]:
    """``tensor(float16)`` -> ``float16``; a sequence or map keeps its own spelling and is refused when it is fed."""
    described = []
    for tensor in tensors:
        kind = tensor.type[len("tensor(") : -1] if tensor.type.startswith("tensor(") else tensor.type
        described.append({"name": tensor.name, "dtype": _ONNX_DTYPES.get(kind, kind), "shape": list(tensor.shape)})
    return described
