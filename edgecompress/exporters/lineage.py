"""Where an artifact came from: facts for its record and for the metadata inside the file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import edgecompress
from edgecompress.errors import RecordError
from edgecompress.records import Artifact, FileRecord, canonical_json, file_sha256

if TYPE_CHECKING:
    from edgecompress.exporters.order import Options
    from edgecompress.model import Model

VERSIONS = (
    "torch",
    "transformers",
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "litert-torch",
    "ai-edge-litert",
    "ai-edge-quantizer",
)


def tool() -> str:
    """Name and version of this program."""
    return f"edgecompress {edgecompress.__version__}"


def facts(model: Model, recipe: str, techniques: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the record keeps: source, recipe, techniques, edits, a hash of the weights, versions."""
    return {
        "family": model.family,
        "architecture": model.architecture,
        "source": model.origin.source.model_dump(mode="json"),
        "recipe": recipe,
        "techniques": [dict(technique) for technique in techniques],
        "edits": [edit.model_dump(mode="json") for edit in model.edits],
        "weights_sha256": weights_sha256(model),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of the packages that a file depends on, of those that are installed."""
    return {name: found for name in VERSIONS if (found := _version(name))}


def metadata(facts: Mapping[str, Any], precision: str) -> dict[str, str]:
    """The facts as text for a file's own metadata, each key with the prefix ``edgecompress.``; lists are JSON."""
    values = {
        "tool": tool(),
        "precision": precision,
        "family": facts["family"],
        "architecture": facts["architecture"],
        "source": facts["source"]["name"],
        "source_sha256": facts["source"]["sha256"],
        "random_weights": canonical_json(facts["source"]["random_weights"]),
        "recipe": facts["recipe"],
        "techniques": canonical_json(facts["techniques"]),
        "edits": canonical_json(facts["edits"]),
        "weights_sha256": facts["weights_sha256"],
    }
    return {f"edgecompress.{key}": str(value) for key, value in values.items()}


def weights_sha256(model: Model) -> str:
    """A hash of all weights with their names and shapes: two models with the same hash and edits say the same."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    digest.update(canonical_json([edit.model_dump(mode="json") for edit in model.edits]).encode())
    return digest.hexdigest()


def matching_fp32(
    folder: str | Path | None,
    format: str,
    weights: str,
    inputs: Sequence[str] = (),
    asked: Mapping[str, Any] | None = None,
) -> Path | None:
    """The model file of an fp32 artifact if it is whole, of these weights, inputs and options, else None."""
    if folder is None:
        return None
    try:
        artifact = Artifact.read(Path(folder) / "artifact.json")
    except RecordError:
        return None
    file = Path(folder) / artifact.model_file
    same = (artifact.format, artifact.precision, artifact.lineage.get("weights_sha256")) == (format, "fp32", weights)
    same = same and not (inputs and [tensor.name for tensor in artifact.inputs] != list(inputs))
    same = same and artifact.lineage.get("options", {}) == dict(asked or {})
    return file if same and file.is_file() and file_sha256(file) == artifact.files[artifact.model_file].sha256 else None


def shape_options(options: Options) -> dict[str, Any]:
    """What was asked that decides the inputs of a file, as JSON values; what was not asked is left out."""
    asked = {"seconds": list(options.seconds), "padded": options.padded, "for_runtime": options.for_runtime}
    return {name: value for name, value in asked.items() if value}


def files(folder: Path) -> dict[str, FileRecord]:
    """Hash and size of every file below ``folder``, by relative path."""
    return {
        file.relative_to(folder).as_posix(): FileRecord(sha256=file_sha256(file), bytes=file.stat().st_size)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
