"""Model files that somebody else made: which runtime runs one, what belongs to it, and which file a folder means."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgecompress.errors import RecipeError


@dataclass(frozen=True)
class Kind:
    """A kind of file: the exporter's name for the format, and the runtime that runs it."""

    format: str
    runtime: str


KINDS = {
    ".onnx": Kind("onnx", "onnxruntime"),
    ".xml": Kind("openvino", "openvino"),
    ".tflite": Kind("tflite", "tflite"),
}
# Optimum's names (optimum-onnx, optimum-intel), the whole model first. Of Whisper's files we know the encoder.
USUAL_NAMES = ("model.onnx", "openvino_model.xml", "model.xml", "model.tflite", "encoder_model.onnx")


def kind_of(file: Path) -> Kind:
    """The kind of a file, by its suffix.

    Raises:
        RecipeError: no runtime of ours runs such a file.
    """
    if file.suffix.lower() not in KINDS:
        raise RecipeError(f"{file}: which runtime runs this?", hint=f"known are {', '.join(KINDS)}; else say --runtime")
    return KINDS[file.suffix.lower()]


def weights_of(file: Path) -> Path | None:
    """The file that an ``.xml`` keeps its weights in; None for other kinds.

    Raises:
        RecipeError: it is not there.
    """
    if file.suffix.lower() != ".xml":
        return None
    beside = file.with_suffix(".bin")
    if not beside.is_file():
        raise RecipeError(f"{file}: its weights, {beside.name}, are not beside it", hint="copy both files")
    return beside


def model_file(path: Path) -> Path:
    """A file as it is; of a folder that another exporter wrote, the model in it.

    Raises:
        RecipeError: there is no such file, or no one model in the folder.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise RecipeError(f"{path}: no such file", hint="a path to a model file, or an artifact's folder")
    for name in USUAL_NAMES:
        if (path / name).is_file():
            return path / name
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in KINDS)
    if len(found) != 1:
        what = f"{len(found)} model files" if found else "neither an artifact.json nor a model file"
        raise RecipeError(f"{path}: {what} in it", hint="give the file itself")
    return found[0]


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays by name from a folder of ``.npy`` files or an ``.npz``; nothing pickled is ever read.

    Raises:
        RecipeError: nothing there, or a file that is not an array.
    """
    import zipfile
    import zlib

    hint = "a folder of <input>.npy files, or an .npz; no pickles"
    if path.suffix == ".npy" and path.is_file():
        raise RecipeError(f"{path}: one array does not say which input it is for", hint=hint)
    try:
        if path.is_dir():
            found = {file.stem: np.load(file, allow_pickle=False) for file in sorted(path.glob("*.npy"))}
        else:
            with np.load(path, allow_pickle=False) as archive:
                found = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, AttributeError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as cause:
        raise RecipeError(f"{path}: not readable as arrays: {cause}", hint=hint) from cause
    if not found:
        raise RecipeError(f"{path}: no arrays in it", hint=hint)
    return found
