"""A plain ONNX file, made by anybody, as an artifact: converted or quantised, and checked against the file itself.

What torch is to our own models the given file in ONNX Runtime is here: parity and the golden output are its answers.
How each format is written stands in ``foreign_formats``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgecompress import plugins, records
from edgecompress.errors import ExportError
from edgecompress.exporters import compare, lineage
from edgecompress.exporters.converting import converting
from edgecompress.exporters.foreign_formats import WRITERS, FileForm, FileOrder
from edgecompress.exporters.opened import Opened, opened
from edgecompress.exporters.parity import tolerance_of
from edgecompress.records import Artifact, AudioShape, FileCost, Golden, Parity, Source

REFERENCE = "onnxruntime"
SAMPLE_RATE = 16000
GOLDEN_SECONDS = 5.0


def export_file(
    file: Path,
    format: str,
    folder: Path,
    *,
    precision: str = "fp32",
    sizes: compare.Sizes | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
    clip: np.ndarray | None = None,
    calibration_clips: Sequence[np.ndarray] = (),
    name: str = "",
) -> Artifact:
    """Write an ONNX file as an artifact folder in a format and precision, and return its record.

    Args:
        file: a plain ``.onnx``; its external data, if any, beside it.
        format: ``onnx``, ``openvino`` or ``tflite``; the last holds the first of all sizes, fixed.
        folder: where the artifact goes; an old one is replaced, and stays if this fails.
        precision: one of the exporter's; of ONNX ``fp32`` (a copy), ``fp16`` and ``int8``.
        sizes: of dimensions that may vary, by name, to compare at; the golden input has the first of each.
        arrays: an input by name to compare on and keep as the golden one, instead of noise.
        clip: 16 kHz mono float32 audio to do so with, put into the one input that takes it.
        calibration_clips: audio that ``int8-static`` takes the ranges of activations from; else it is the golden input.

    Raises:
        ExportError: not an ONNX file, or it cannot be written so; the operator in the way is named.
        ParityError: the written file does not say what the given one says.
        RecipeError: sizes, arrays or audio that do not fit.
    """
    from edgecompress.exporters import onnx_cost, onnx_torch

    if format not in WRITERS:
        raise ExportError(f"a plain file cannot be exported to {format!r}", hint=plugins.nearest(format, list(WRITERS)))
    plugins.find("exporters", format)
    writer = WRITERS[format]
    if precision not in writer.precisions:
        raise ExportError(
            f"{format} of a plain file has no precision {precision!r}",
            hint=plugins.nearest(precision, list(writer.precisions)),
        )
    proto = onnx_torch.read(file)
    reference = opened(file)
    clips = [] if clip is None else [clip[: round(GOLDEN_SECONDS * SAMPLE_RATE)]]
    feeds = _feeds(reference, sizes, arrays, clips)
    said = compare.answered(reference, feeds[:1] if writer.fixed else feeds)
    fed, wanted = said[0][0].arrays, said[0][1]
    calibration = [compare.heard(reference, sizes, one)[0] for one in calibration_clips] or [fed]
    source = Source(name=file.stem, sha256=records.file_sha256(file))
    with records.whole_folder(folder) as beside:
        form = FileForm.of(reference)
        order = FileOrder(file, proto, form, precision, beside, fed, calibration, _metadata(source, precision))
        with converting(f"{file.name} to {format} {precision}", "try another format or precision"):
            written = writer.write(order)
        bytes_written = sum(each.stat().st_size for each in beside.rglob("*") if each.is_file())
        made = opened(beside / written.model_file)
        names = compare.pairs(made, reference)
        tolerance = tolerance_of(precision)
        cases = compare.compare(made, reference, said, names)
        if fault := compare.fault(cases, tolerance, file.name):
            raise fault
        seconds = fed[compare.heard(reference, sizes, clips[0])[1]].shape[-1] / SAMPLE_RATE if clips else None
        shapes = {each: list(array.shape) for each, array in fed.items()}
        artifact = Artifact(
            name=f"{name or file.stem}-{format}-{precision}",
            recipe="",
            family="",
            format=format,
            precision=precision,
            runtime=made.runtime,
            model_file=written.model_file,
            golden=_golden(beside, compare.fed(made, reference, fed, names), wanted, names, precision),
            files=lineage.files(beside),
            inputs=written.inputs,
            outputs=written.outputs,
            parity=Parity(
                reference=REFERENCE,
                runtime=made.runtime,
                tolerance=tolerance,
                cases=cases,
                conditions={"version": made.version, "reference_version": reference.version, **made.conditions},
            ),
            quantized_nodes=written.quantized_nodes,
            audio=_audio(reference, sizes, clips, seconds),
            cost=FileCost(
                parameters=onnx_cost.parameters(proto),
                bytes=bytes_written,
                macs=onnx_cost.macs(proto, shapes, seconds),
                seconds=seconds,
            ),
            source=source,
            lineage={
                "file": file.name, "producer": f"{proto.producer_name} {proto.producer_version}".strip(),
                "opset": onnx_torch.opset_of(proto), "shapes": shapes, "versions": lineage.versions(), **written.lineage,
            },
            tool=lineage.tool(),
        )  # fmt: skip
        artifact.write(beside / "artifact.json")
    return artifact


def _feeds(
    reference: Opened,
    sizes: compare.Sizes | None,
    arrays: Mapping[str, np.ndarray] | None,
    clips: Sequence[np.ndarray],
) -> list[compare.Feed]:
    """What to compare on, the golden input first."""
    if arrays is not None:
        return [compare.given_feed(reference, arrays)]
    return compare.feeds_of(reference, reference, sizes, clips[0] if clips else None)


def _golden(folder: Path, fed: compare.Arrays, wanted: compare.Arrays, names: compare.Pairs, precision: str) -> Golden:
    """Write the golden input and the reference's answer; files are numbered, since names of tensors may be anything."""
    (folder / "golden").mkdir()
    files: list[dict[str, str]] = []
    for word, arrays in (("input", fed), ("output", {names.outputs[each]: array for each, array in wanted.items()})):
        files.append({})
        for number, (each, array) in enumerate(arrays.items()):
            files[-1][each] = f"golden/{word}_{number}.npy"
            np.save(folder / files[-1][each], np.ascontiguousarray(array), allow_pickle=False)
    return Golden(inputs=files[0], outputs=files[1], tolerance=tolerance_of(precision, "golden"))


def _audio(
    reference: Opened, sizes: compare.Sizes | None, clips: Sequence[np.ndarray], seconds: float | None
) -> AudioShape | None:
    """That a file takes 16 kHz samples is known where somebody gave it a recording."""
    if seconds is None:
        return None
    name = compare.heard(reference, sizes, clips[0])[1]
    shape = next(each["shape"] for each in reference.inputs if each["name"] == name)
    return AudioShape(
        input=name,
        unit="samples",
        per_second=float(SAMPLE_RATE),
        golden_seconds=seconds,
        layout=[str(size) for size in shape],
        preparation={"kind": "none"},
    )


def _metadata(source: Source, precision: str) -> dict[str, str]:
    """For the file's own metadata, where the format has a place for it."""
    values = {"tool": lineage.tool(), "precision": precision, "source": source.name, "source_sha256": source.sha256}
    return {f"edgecompress.{key}": value for key, value in values.items()}
