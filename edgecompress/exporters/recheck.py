"""Checks of a file that is there already: against its golden files, and against torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgecompress.errors import ParityError, RecipeError, RecordError
from edgecompress.exporters import parity
from edgecompress.exporters.compare import size_of
from edgecompress.exporters.opened import Opened
from edgecompress.exporters.order import Written
from edgecompress.model.forms import form_by_inputs
from edgecompress.records import Artifact, Parity, ParityCase, Tensor, file_sha256

if TYPE_CHECKING:
    from edgecompress.model import Model


def golden(artifact: Artifact, folder: Path, opened: Opened) -> list[ParityCase]:
    """An artifact's golden input through its file, here: one case for each output.

    Raises:
        RecordError: a file is not there, or is not what the record says.
        ParityError: the file answers another shape.
        ExportError: it does not run.
    """
    for name, known in artifact.files.items():
        if not (folder / name).is_file():
            raise RecordError(f"{folder / name}: no such file, though the artifact names it", hint="export it again")
        if file_sha256(folder / name) != known.sha256:
            raise RecordError(
                f"{folder / name}: has changed since it was exported (wrong hash)", hint="export it again"
            )
    feeds = {name: np.load(folder / file, allow_pickle=False) for name, file in artifact.golden.inputs.items()}
    described = [each for each in opened.inputs if each["name"] in feeds]
    batch, length = size_of(described, feeds)
    said = opened.run(feeds)
    found = []
    for name, file in artifact.golden.outputs.items():
        wanted = np.load(folder / file, allow_pickle=False)
        if name not in said or said[name].shape != wanted.shape:
            shape = list(said[name].shape) if name in said else None
            raise ParityError(
                f"{name}: the file answers {shape} to its golden input, which should be {list(wanted.shape)}",
                hint="export it again",
            )
        apart = parity.distances(said[name], wanted)
        found.append(ParityCase(batch=batch, length=length, output=name, signal="golden", **apart))
    return found


def with_torch(
    opened: Opened,
    model: Model,
    precision: str,
    clips: Sequence[np.ndarray] | None = None,
    artifact: Artifact | None = None,
) -> Parity:
    """A file made anywhere against the same model in torch, at all lengths that the file takes.

    ``artifact`` tells of the file where there is a record: one that pads to some lengths does not show it in its shapes.

    Raises:
        RecipeError: the model has no form with these inputs and outputs.
        ParityError: outside the precision's tolerance.
    """
    form = form_by_inputs(model, [each["name"] for each in opened.inputs])
    for word, ours, theirs in (("inputs", form.inputs, opened.inputs), ("outputs", form.outputs, opened.outputs)):
        names = {port.name for port in ours}, {each["name"] for each in theirs}
        if names[0] != names[1] if word == "inputs" else not names[0] <= names[1]:
            raise RecipeError(
                f"{opened.file.name} has {word} {', '.join(sorted(names[1]))}; {model.architecture} has {', '.join(sorted(names[0]))}",
                hint="is the source the model that the file was made of?",
            )
    written = Written(opened.file.name, _tensors(opened.inputs), _tensors(opened.outputs))
    if artifact is not None:
        lengths = tuple(artifact.audio.lengths) if artifact.audio else ()
        written = Written(opened.file.name, artifact.inputs, artifact.outputs, lengths=lengths)
    conditions = {"version": opened.version, **opened.conditions}
    return parity.check(model, opened.run, precision, opened.runtime, clips, form, written, conditions)


def _tensors(described: Sequence[dict[str, object]]) -> list[Tensor]:
    """A dimension that may vary gets a name where it has none."""
    found = []
    for each in described:
        sizes: list[object] = list(each["shape"])  # type: ignore[call-overload]
        shape: list[int | str] = [size if isinstance(size, int) and size > 0 else str(size) for size in sizes]
        found.append(Tensor(name=str(each["name"]), dtype=str(each["dtype"]), shape=shape))
    return found
