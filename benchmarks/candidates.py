"""Who runs in ``export_speed``: files of one HuBERT base, made by us and by others, each in a process of its own.

    python -m benchmarks.candidates RECIPE WORK

makes ``WORK/RECIPE``: a file, and ``made.json`` with its path, seconds, peak memory and what it was made with. What a
recipe needs must have been made. Weights are random (seed 0) and the same for all: ``WORK/model/hf`` is a Hugging Face
folder that everybody loads. The input is five seconds of synthetic voice, ``reference.npy`` what torch says to it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SECONDS, RATE = 5.0, 16_000
CALIBRATION_CLIPS = 8  # noise and random weights: more would only take longer
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "tflite": "tflite"}
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "int8-static", "int8-weights", "int4-weights")
TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "litert-torch",
         "ai-edge-litert", "ai-edge-quantizer")  # fmt: skip
# What those packages need that optimum's exporters came in last; torch in the same command, or pip brings another one.
OPTIMUM = ("torch==2.13.0", "optimum-onnx==0.1.0", "transformers<4.58", "onnx", "onnxruntime")
Facts = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """How a file is made. ``make(work, folder)`` answers ``file`` (relative to the folder) and more to keep.

    ``timed``: nothing else may run meanwhile. ``ours``: made by the code of this tree.
    """

    make: Callable[[Path, Path], Facts]
    needs: tuple[str, ...] = ("model",)
    timed: bool = False
    ours: bool = False


@dataclass(frozen=True)
class Candidate:
    """One row: a recipe's file in a runtime. ``precision`` says what it computes with, or how weights are kept.

    ``judged``: whether the checks are about it. ``which``: under what name the recipe's facts have the file.
    """

    runtime: str
    precision: str
    label: str
    recipe: str
    ours: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    judged: bool = True
    which: str = "file"

    @property
    def name(self) -> str:
        return f"{self.runtime} {self.precision} {self.label}"


def candidates(optimum: Path | None = None) -> tuple[list[Candidate], dict[str, Recipe]]:
    """All rows, and the recipes that make their files; ``optimum`` is the environment that has optimum-onnx."""
    from edgecompress import plugins

    rows = [
        Candidate("torch", "fp32", "eager", "model"),
        Candidate("onnxruntime", "fp32", "plain", "plain"),
        Candidate("onnxruntime", "fp32", "plain dynamo", "plain-dynamo"),
        Candidate("onnxruntime", "fp32", "onnxruntime.transformers", "ort-optimised"),
        Candidate("onnxruntime", "fp32", "optimum-onnx", "optimum"),
        Candidate("onnxruntime", "int8", "naive quantize_dynamic", "ort-naive"),
        Candidate("openvino", "fp32", "plain", "ov-plain"),
        Candidate("openvino", "bf16", "plain, its default", "ov-plain", settings={"precision": None}),
        Candidate("openvino", "int8-static", "nncf default", "nncf-default"),
        Candidate("tflite", "fp32", "litert-torch plain", "litert-plain"),
        Candidate("tflite", "int8", "ai-edge-quantizer default", "aeq-default"),
    ]
    recipes = {
        "model": Recipe(model, ()),
        "plain": Recipe(plain),
        "plain-dynamo": Recipe(plain_dynamo),
        "ort-optimised": Recipe(ort_optimised, ("plain",)),
        "optimum": Recipe(partial(from_optimum, optimum)),
        "ort-naive": Recipe(ort_naive, ("plain",)),
        "ov-plain": Recipe(ov_plain, ("plain",)),
        "nncf-default": Recipe(nncf_default, ("ov-plain",)),
        "litert-plain": Recipe(litert_plain),
        "aeq-default": Recipe(aeq_default, ("litert-plain",)),
    }
    for format in plugins.names("exporters"):
        if format not in RUNTIMES:
            continue
        for precision in plugins.find("exporters", format).precisions:
            if precision not in PRECISIONS:  # a library's defaults stand here under their own name
                continue
            recipe, full = f"ours-{format}-{precision}", precision == "fp32"
            rows.append(Candidate(RUNTIMES[format], precision, "ours", recipe, ours=True))
            needs = ("model",) if full else ("model", f"ours-{format}-fp32")
            recipes[recipe] = Recipe(partial(ours, format, precision), needs, timed=full, ours=True)
    runtimes = ["torch", *RUNTIMES.values()]
    rows.sort(key=lambda row: (runtimes.index(row.runtime), PRECISIONS.index(row.precision), row.ours))
    return rows, recipes


# --- what goes in ----------------------------------------------------------------------------------------------------
def model(work: Path, folder: Path) -> Facts:
    """The weights, the input and torch's answer."""
    import torch
    import transformers

    from edgecompress import cost
    from edgecompress.exporters.golden import synthetic_clip
    from edgecompress.model import load

    torch.manual_seed(0)
    network = transformers.HubertModel(transformers.HubertConfig()).eval()
    network.save_pretrained(folder / "hf")
    samples = synthetic_clip()[None, : round(SECONDS * RATE)]
    with torch.inference_mode():
        answer = network(torch.from_numpy(samples)).last_hidden_state.numpy()
    np.save(folder / "input.npy", samples)
    np.save(folder / "reference.npy", answer)
    return {"file": "hf/model.safetensors", "macs": sum(cost.macs(load(folder / "hf"), samples.shape[1]).values())}


def input_of(work: Path) -> np.ndarray:
    """(1, samples) float32."""
    return np.load(work / "model" / "input.npy", allow_pickle=False)


def network_of(work: Path) -> Any:
    """The library's own model with the weights of all, in eval mode."""
    import transformers

    return transformers.HubertModel.from_pretrained(work / "model" / "hf").eval()


def calibration_clips() -> Sequence[np.ndarray]:
    from edgecompress import audio

    return audio.synthetic(CALIBRATION_CLIPS, SECONDS, seed=1).arrays


def wrapped(work: Path) -> Any:
    """As a plain user exports it: samples in, the last hidden state out."""
    import torch

    network = network_of(work)

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, input_values: torch.Tensor) -> torch.Tensor:
            state: torch.Tensor = self.network(input_values).last_hidden_state
            return state

    return Plain().eval()


# --- others' files ---------------------------------------------------------------------------------------------------
def plain(work: Path, folder: Path) -> Facts:
    import torch

    axes = {"input_values": {0: "batch", 1: "samples"}, "last_hidden_state": {0: "batch", 1: "frames"}}
    with torch.no_grad():
        torch.onnx.export(
            wrapped(work), (torch.from_numpy(input_of(work)),), str(folder / "model.onnx"), dynamo=False,
            opset_version=17, input_names=list(axes)[:1], output_names=list(axes)[1:], dynamic_axes=axes,
        )  # fmt: skip
    return {"file": "model.onnx"}


def plain_dynamo(work: Path, folder: Path) -> Facts:
    import torch

    twice = torch.from_numpy(np.repeat(input_of(work), 2, axis=0))  # a batch of one would be taken for a constant
    free = {"input_values": {0: torch.export.Dim("batch"), 1: torch.export.Dim("samples", min=400)}}
    with torch.no_grad():
        torch.onnx.export(
            wrapped(work), (twice,), str(folder / "model.onnx"), dynamo=True, dynamic_shapes=free,
            input_names=["input_values"], output_names=["last_hidden_state"],
        )  # fmt: skip
    return {"file": "model.onnx"}


def ort_optimised(work: Path, folder: Path) -> Facts:
    from onnxruntime.transformers import optimizer

    source = str(work / "plain" / "model.onnx")
    graph = optimizer.optimize_model(source, model_type="bert", num_heads=12, hidden_size=768)
    graph.save_model_to_file(str(folder / "model.onnx"))
    return {"file": "model.onnx", "fused": graph.get_fused_operator_statistics()}


def ort_naive(work: Path, folder: Path) -> Facts:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(work / "plain" / "model.onnx", folder / "model.onnx")
    return {"file": "model.onnx"}


def from_optimum(environment: Path | None, work: Path, folder: Path) -> Facts:
    """Exported there, offline; run here. The environment is made if it is not there."""
    if environment is None:
        raise RuntimeError("not asked for: --optimum-env DIR makes an environment of its own, or uses the one there")
    python = environment / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        pip = [str(python), "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--quiet"]
        subprocess.run([*pip, *OPTIMUM], check=True)
    code = (
        "import sys; from optimum.exporters.onnx import main_export; "
        "main_export(sys.argv[1], output=sys.argv[2], task='feature-extraction', do_validation=False)"
    )
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    line = [str(python), "-c", code, str(work / "model" / "hf"), str(folder)]
    subprocess.run(line, check=True, env=offline, cwd=folder)
    return {"file": "model.onnx"}


def ov_plain(work: Path, folder: Path) -> Facts:
    openvino = without_telemetry()
    made = openvino.convert_model(str(work / "plain" / "model.onnx"))
    openvino.save_model(made, str(folder / "model.xml"), compress_to_fp16=False)
    return {"file": "model.xml"}


def nncf_default(work: Path, folder: Path) -> Facts:
    openvino = without_telemetry()
    import nncf

    made = openvino.Core().read_model(str(work / "ov-plain" / "model.xml"))
    clips = nncf.Dataset([clip[None] for clip in calibration_clips()])
    openvino.save_model(nncf.quantize(made, clips), str(folder / "model.xml"), compress_to_fp16=False)
    return {"file": "model.xml"}


def without_telemetry() -> Any:
    """The package ``openvino``; its telemetry would call home."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def litert_plain(work: Path, folder: Path) -> Facts:
    import litert_torch
    import torch

    litert_torch.convert(wrapped(work), (torch.from_numpy(input_of(work)),)).export(str(folder / "model.tflite"))
    return {"file": "model.tflite"}


def aeq_default(work: Path, folder: Path) -> Facts:
    from ai_edge_quantizer import quantizer, recipe

    work_on = quantizer.Quantizer(str(work / "litert-plain" / "model.tflite"), recipe.dynamic_wi8_afp32())
    work_on.quantize().export_model(str(folder / "model.tflite"), overwrite=True)
    return {"file": "model.tflite"}


# --- our files -------------------------------------------------------------------------------------------------------
class Timed:
    """An exporter that notes how long it writes (the rest of an export is proof and record), and keeps its first file."""

    def __init__(self, exporter: Any, kept: Path) -> None:
        self.exporter, self.kept, self.write_s, self.file = exporter, kept, 0.0, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.exporter, name)

    def write(self, order: Any) -> Any:
        started = time.perf_counter()
        written = self.exporter.write(order)
        self.write_s += time.perf_counter() - started
        if not self.file:
            shutil.copytree(order.folder, self.kept, copy_function=os.link)
            self.file = f"{self.kept.name}/{written.model_file}"
        return written


def ours(format: str, precision: str, work: Path, folder: Path) -> Facts:
    """By ``export``. What parity refuses is no artifact, but runs as fast: ``refused`` says why, ``first`` is that file."""
    from edgecompress import exporters, plugins
    from edgecompress.errors import ParityError
    from edgecompress.model import load

    exporter = Timed(plugins.find("exporters", format)(), folder / "first")
    loaded = load(work / "model" / "hf")
    clips = calibration_clips() if precision == "int8-static" else ()
    full = None if precision == "fp32" else work / f"ours-{format}-fp32" / "artifact"
    facts: Facts = {}
    started = time.perf_counter()
    try:
        artifact = exporters.export(
            loaded, format, folder / "artifact", precision=precision, calibration_clips=clips, reuse=full,
            exporter=exporter,
        )  # fmt: skip
    except ParityError as refused:
        facts |= {"file": exporter.file, "refused": f"{refused}; no artifact"}
    else:
        facts |= {"file": f"artifact/{artifact.model_file}", "quantized_nodes": artifact.quantized_nodes}
        retreat = artifact.parity.conditions.get("front_end_in_fp32")
        facts |= {"first": exporter.file, "refused": f"{retreat}; its front end stays in fp32"} if retreat else {}
    facts |= {"write_s": exporter.write_s, "export_s": time.perf_counter() - started}
    if "refused" not in facts:
        shutil.rmtree(exporter.kept)
    return facts


# --- making ----------------------------------------------------------------------------------------------------------
def stamp(recipe: Recipe) -> dict[str, str]:
    """What a file was made with: it is made again when this changes. Ours also hang on the sources of this tree."""
    found = dict(_versions())
    if recipe.ours:
        digest = hashlib.sha256()
        for room in ("exporters", "model"):
            for source in sorted((ROOT / "edgecompress" / room).rglob("*.py")):
                digest.update(source.read_bytes())
        found["sources"] = digest.hexdigest()[:16]
    return found


def _versions() -> Iterator[tuple[str, str]]:
    for tool in TOOLS:
        try:
            yield tool, version(tool)
        except PackageNotFoundError:
            continue


def memory(word: str) -> int:
    """Memory of this process, bytes: ``VmRSS`` now, ``VmHWM`` at most so far. Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(word))


def file_bytes(file: Path) -> int:
    """The file and what belongs to it: weights beside the graph."""
    return sum(each.stat().st_size for each in file.parent.glob(f"{file.stem}.*") if each.is_file())


def made(work: Path, name: str, recipe: Recipe) -> Facts | None:
    """What is said of a file that was made already with the same tools; None if there is none."""
    told = work / name / "made.json"
    facts: Facts = json.loads(told.read_text()) if told.is_file() else {}
    there = facts.get("stamp") == stamp(recipe) and (work / name / facts["file"]).is_file()
    return facts if there else None


def write_facts(folder: Path, recipe: Recipe, facts: Facts) -> None:
    """Put ``made.json`` beside a file that was made: from now on it is there."""
    facts = {
        **facts, "bytes": {which: file_bytes(folder / facts[which]) for which in ("file", "first") if which in facts}, "stamp": stamp(recipe),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    (folder / "made.json").write_text(json.dumps(facts, indent=1) + "\n")


def main() -> None:
    name, work = sys.argv[1], Path(sys.argv[2])
    recipe = candidates(Path(sys.argv[3]) if len(sys.argv) > 3 else None)[1][name]
    load, started = os.getloadavg()[0], time.perf_counter()
    facts = recipe.make(work, work / name)
    took = {"seconds": time.perf_counter() - started, "cpu_s": time.process_time(), "load_1min": load}
    took["peak_rss_bytes"] = memory("VmHWM")
    write_facts(work / name, recipe, {**facts, **took})


if __name__ == "__main__":
    main()
