"""The command ``parity``: does a file say what another one, its golden files, or torch says?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgecompress.errors import ParityError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from edgecompress.exporters.opened import Opened
    from edgecompress.records import Artifact, ParityCase, Tolerance

WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")


def parity(
    target: Annotated[
        Path, typer.Argument(metavar="FILE_OR_ARTIFACT", help="Artifact, model file, or a folder that Optimum wrote.")
    ],
    reference: Annotated[
        Path | None, typer.Argument(metavar="[REFERENCE]", help="The file that is right: .onnx, .xml or .tflite.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Compare with this model in PyTorch: checkpoint, model folder, or hub id.")
    ] = None,
    dim: Annotated[
        list[str] | None, typer.Option(help="Size of a dimension that may vary: NAME=SIZE; several to compare at each.")
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(help="Inputs: .npz, or folder of .npy, named as the reference's.")
    ] = None,
    audio: Annotated[Path | None, typer.Option(help="Recording to compare on.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="What is tolerated: fp32, fp16, int8 ...; default: the artifact's, or fp32.")
    ] = None,
    relative: Annotated[
        float | None, typer.Option(help="Tolerated difference, as a part of the greatest value.")
    ] = None,
    cosine: Annotated[float | None, typer.Option(help="Least cosine that is tolerated.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare a model file with another, with its golden files, or with PyTorch; exit status 1 if they differ."""
    from edgecompress.audio import read_clip
    from edgecompress.cli import say
    from edgecompress.cli.runs import given_inputs, sizes
    from edgecompress.exporters.parity import tolerance_of, tolerances
    from edgecompress.plugins import nearest
    from edgecompress.records import Artifact, Tolerance

    given_inputs([], inputs, audio)
    artifact = Artifact.read(target / "artifact.json") if (target / "artifact.json").is_file() else None
    _check(
        target,
        reference,
        source,
        artifact,
        {"--dim": dim, "--inputs": inputs, "--relative": relative, "--cosine": cosine},
    )
    if precision is not None and precision not in tolerances():
        raise RecipeError(f"no precision is called {precision!r}", hint=nearest(precision, list(tolerances())))
    usual = tolerance_of(precision or (artifact.precision if artifact else "fp32"))
    allowed = Tolerance(relative=relative or usual.relative, cosine=usual.cosine if cosine is None else cosine)
    clip = read_clip(audio).samples if audio else None
    told: list[tuple[str, Tolerance, Sequence[ParityCase]]] = []
    fault: ParityError | None = None
    with say.working(f"comparing {target}") as progress:
        try:
            if reference is not None:
                wanted, cases = _two_files(target, artifact, reference, sizes(dim or []), inputs, clip)
                told.append((wanted, allowed, cases))
            else:
                if artifact is not None:
                    told.append(_golden(artifact, target))
                model = source or (str(target) if artifact is None else None)
                if model is not None:
                    progress(f"comparing {target} with {model} in PyTorch")
                    told.append(_torch(target, artifact, model, precision, clip))
        except ParityError as error:
            fault = error
    fault = fault or _fault(told)
    if json:
        say.as_json(_as_data(target, told, fault))
    else:
        rows = [row for wanted, _, cases in told for row in _rows(wanted, cases)]
        columns = ("reference", "output", "signal", "length", "batch", "max", "relative", "cosine")
        say.table(columns, rows, numbers=(3, 4, 5, 6, 7))
    if fault is not None:
        say.note(f"error: {fault.message}")
        say.note(f"hint:  {fault.hint}")
        raise typer.Exit(1)


def _check(
    target: Path, reference: Path | None, source: str | None, artifact: Artifact | None, only_files: dict[str, Any]
) -> None:
    """Refuse what does not go together, before anything is opened."""
    if reference is not None and source is not None:
        raise RecipeError("a REFERENCE and --source exclude each other", hint="compare with one after the other")
    asked = [name for name, value in only_files.items() if value is not None]
    if reference is None and asked:
        raise RecipeError(
            f"{' and '.join(asked)}: only for two files", hint="the lengths of a comparison with PyTorch are known"
        )
    alone = reference is None and source is None and artifact is None
    if alone and not (target.is_dir() and any((target / name).is_file() for name in WEIGHTS)):
        raise RecipeError(
            f"{target}: compare it with what?", hint="name a reference file, or --source CHECKPOINT for PyTorch"
        )


def _two_files(
    target: Path,
    artifact: Artifact | None,
    reference: Path,
    sizes: Mapping[str, Sequence[int]],
    inputs: Path | None,
    clip: np.ndarray | None,
) -> tuple[str, list[ParityCase]]:
    from edgecompress import plain
    from edgecompress.exporters import compare
    from edgecompress.exporters.opened import opened

    file, right = _opened(target, artifact), opened(plain.model_file(reference))
    names = compare.pairs(file, right)
    if inputs is not None:
        feeds = [compare.given_feed(right, plain.arrays(inputs))]
    else:
        feeds = compare.feeds_of(file, right, sizes, clip)
    return right.file.name, compare.compare(file, right, compare.answered(right, feeds), names)


def _opened(target: Path, artifact: Artifact | None) -> Opened:
    from edgecompress.exporters.opened import opened

    return opened(target / artifact.model_file, artifact.runtime) if artifact else opened(target)


def _golden(artifact: Artifact, folder: Path) -> tuple[str, Tolerance, list[ParityCase]]:
    from edgecompress.exporters import recheck

    return "golden", artifact.golden.tolerance, recheck.golden(artifact, folder, _opened(folder, artifact))


def _torch(
    target: Path, artifact: Artifact | None, source: str, precision: str | None, clip: np.ndarray | None
) -> tuple[str, Tolerance, Sequence[ParityCase]]:
    from edgecompress import model
    from edgecompress.exporters import recheck

    precision = precision or (artifact.precision if artifact else "fp32")
    clips = None if clip is None else [clip]
    found = recheck.with_torch(_opened(target, artifact), model.load(source), precision, clips, artifact)
    return "torch", found.tolerance, found.cases


def _fault(told: Sequence[tuple[str, Tolerance, Sequence[ParityCase]]]) -> ParityError | None:
    from edgecompress.exporters import compare

    faults = (compare.fault(cases, tolerance, wanted) for wanted, tolerance, cases in told)
    return next((each for each in faults if each is not None), None)


def _rows(wanted: str, cases: Sequence[ParityCase]) -> list[tuple[object, ...]]:
    return [
        (wanted, case.output, case.signal, case.length, case.batch, f"{case.max_abs:.3g}", f"{case.relative:.3g}", f"{case.cosine:.6f}")
        for case in cases
    ]  # fmt: skip


def _as_data(
    target: Path, told: Sequence[tuple[str, Tolerance, Sequence[ParityCase]]], fault: ParityError | None
) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "file": str(target),
        "passed": fault is None,
        "error": fault.message if fault else None,
        "comparisons": [
            {
                "reference": wanted,
                "tolerance": tolerance.model_dump(mode="json"),
                "cases": [case.model_dump(mode="json") for case in cases],
            }
            for wanted, tolerance, cases in told
        ],
    }
