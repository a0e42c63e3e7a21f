"""``export`` of what is no model of ours: a plain ONNX file, or a folder that Optimum wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgecompress.errors import RecipeError

# What a folder holds that is loaded into torch, and not taken as a file.
OURS = ("checkpoint.json", "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")


def file_of(target: str) -> Path | None:
    """The ONNX file that is meant, if it is one: a path to it, or a folder with ONNX files and no weights for torch.

    Raises:
        RecipeError: a model file of another format, or a folder with several.
    """
    from edgecompress import plain

    path = Path(target)
    if path.is_dir() and (any((path / name).is_file() for name in OURS) or not any(path.glob("*.onnx"))):
        return None
    if not path.is_dir() and path.suffix.lower() not in plain.KINDS:
        return None
    file = plain.model_file(path)
    if plain.kind_of(file).format != "onnx":
        raise RecipeError(
            f"{file}: only ONNX files can be exported to other formats", hint="`bench` and `parity` take it as it is"
        )
    return file


def export(
    file: Path,
    format: str,
    folder: Path,
    precision: str,
    *,
    dim: list[str],
    inputs: Path | None,
    audio: Path | None,
    calibration: Path | None,
    not_for_files: dict[str, Any],
    name: str = "",
) -> None:
    """Write the artifact and tell of it; ``name`` is that of the model, if not the file's.

    Raises:
        RecipeError: options for models of ours, or ones that exclude each other.
        ExportError: see :func:`edgecompress.exporters.foreign.export_file`.
    """
    from edgecompress import plain
    from edgecompress.audio import read_clip, read_folder
    from edgecompress.cli import exporting, say
    from edgecompress.cli.runs import given_inputs, sizes
    from edgecompress.exporters.foreign import export_file

    asked = [name for name, value in not_for_files.items() if value]
    if asked:
        raise RecipeError(
            f"{' and '.join(asked)}: only for models that are loaded into PyTorch, and {file.name} is a file",
            hint="of a file say sizes (--dim), inputs (--inputs) or a recording (--audio)",
        )
    if audio is not None and audio.is_dir():
        raise RecipeError(f"{audio}: a file is compared on one recording", hint="--audio FILE.wav")
    given_inputs([], inputs, audio)
    if inputs is not None and dim:
        raise RecipeError("--inputs and --dim exclude each other", hint="given arrays have their sizes already")
    arrays = plain.arrays(inputs) if inputs else None
    clip = read_clip(audio).samples if audio else None
    heard = read_folder(calibration, limit=exporting.CALIBRATION_CLIPS).arrays if calibration else []
    with say.working(f"exporting {file.name} to {format} {precision}"):
        artifact = export_file(
            file, format, folder, precision=precision, sizes=sizes(dim), arrays=arrays, clip=clip,
            calibration_clips=heard, name=name,
        )  # fmt: skip
    for line in exporting.told(artifact):
        say.note(line)
    print(folder)
