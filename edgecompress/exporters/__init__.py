"""Exporters turn a model into an artifact: one file in one format at one precision, with proof that it says the same.

The contract. An exporter is a class, found by an entry point of the group ``edgecompress.exporters``; it writes one
file and can run it (:class:`Exporter`). Everything else is the same for all formats and happens here, in this order:
the file is written, parity with torch is checked in the runtime that will run it, golden input and output are
stored, and ``artifact.json`` says what is there. The folder appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgecompress import plugins, records
from edgecompress.errors import EdgeCompressError, ExportError
from edgecompress.records import Artifact, Tensor

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.exporters.parity import Runner
    from edgecompress.model import Model
    from edgecompress.model.forms import Form

__all__ = ["Exporter", "Written", "export", "runner"]


@dataclass(frozen=True)
class Written:
    """What an exporter wrote into the folder it was given; names are relative to it.

    ``lineage`` is whatever the format adds to the record: the operator set, versions of the tools.
    """

    model_file: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    quantized_nodes: int | None = None
    lineage: dict[str, Any] = field(default_factory=dict)


class Exporter(Protocol):
    """One format. ``runtime`` names the runtime that runs it, here and on the device."""

    format: str
    runtime: str
    precisions: tuple[str, ...]

    def write(
        self, model: Model, precision: str, folder: Path, metadata: Mapping[str, str], full: Path | None, form: Form
    ) -> Written:
        """Write the model at one of ``precisions`` into ``folder``, to be fed as ``form`` says; it is in eval mode.

        ``metadata`` goes into the file where the format can hold it. ``full`` is the fp32 file of the same weights in
        this format, where one has been made already; its metadata is of another artifact.

        Raises:
            ExportError: this model cannot be written so.
        """
        ...

    def open(self, file: Path) -> Runner:
        """A function from named inputs to named outputs that runs the file in the runtime."""
        ...


def runner(format: str, file: Path) -> Runner:
    """A function from named inputs to named outputs that runs an exported file here.

    Raises:
        PluginNotFound: no such format.
        ExportError: its runtime is not installed on this machine, or cannot open or run the file.
    """
    exporter: Exporter = plugins.find("exporters", format)()
    what, hint = f"{file} does not run in {exporter.runtime}", "is the runtime installed, and the file whole?"
    with _converting(what, hint):
        opened = exporter.open(file)

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with _converting(what, hint):
            return opened(inputs)

    return run


@contextmanager
def _converting(what: str, hint: str) -> Iterator[None]:
    """Whatever a converter or runtime raises, it means: this model, this format, not today."""
    try:
        yield
    except EdgeCompressError:
        raise
    except Exception as cause:
        first = (str(cause).strip() or type(cause).__name__).splitlines()[0][:300]
        raise ExportError(f"{what}: {first}", hint=hint) from cause


def export(
    model: Model,
    format: str = "onnx",
    folder: str | Path = "artifact",
    *,
    precision: str = "fp32",
    input: str | None = None,
    recipe: str = "",
    name: str = "",
    clips: Sequence[np.ndarray] | None = None,
    techniques: Sequence[Mapping[str, Any]] = (),
    checkpoint: str = "",
    calibration: Sequence[str] = (),
    reuse: str | Path | None = None,
    exporter: Exporter | None = None,
) -> Artifact:
    """Write ``model`` as an artifact folder and return its record.

    Args:
        model: waveform families are exported with their task head; Whisper as its encoder, or as a classifier.
        format: name of an exporter.
        folder: where the artifact goes; an old one is replaced, and stays if this fails.
        precision: ``fp32`` or ``int8``, or what else the exporter offers.
        input: ``waveform`` or ``features``, where a family has both forms: MelHuBERT makes its log-mel frames inside
            unless told otherwise.
        recipe: name of the recipe, for the record; empty for the untouched model.
        name: of the artifact; made of recipe (or source), format and precision if empty.
        clips: 16 kHz mono float32 audio for parity and the golden input; a synthetic clip is used without any.
        techniques: the recipe's techniques as tables, for the record and the file's metadata.
        checkpoint: name of the folder that the model was loaded from, for the record.
        calibration: names of the clips that the techniques looked at, for the record: they are not to be scored.
        reuse: an fp32 artifact of this model in the same format, to start from instead of exporting again. Ignored
            when it is missing or of other weights.
        exporter: an exporter that is not installed as a plug-in.

    Raises:
        PluginNotFound: no such format.
        ParityError: the file does not say what torch says; output, length and error are named.
        ExportError: no such precision, or the exporter failed; the cause is chained.
        ModelError: the family has no such form.
    """
    from edgecompress import cost
    from edgecompress.exporters import golden, lineage, parity
    from edgecompress.exporters.tracing import evaluating
    from edgecompress.model.forms import form_of

    exporter = exporter or plugins.find("exporters", format)()
    if precision not in exporter.precisions:
        raise ExportError(
            f"{exporter.format} has no precision {precision!r}",
            hint=plugins.nearest(precision, list(exporter.precisions)),
        )
    form = form_of(model, input)
    facts = lineage.facts(model, recipe, techniques)
    full = lineage.matching_fp32(reuse, exporter.format, facts["weights_sha256"], form.input_name)
    with evaluating(model), records.whole_folder(Path(folder)) as beside:
        with _converting(f"{exporter.format} {precision}", "try another format or precision"):
            metadata = lineage.metadata(facts, precision)
            written = exporter.write(model, precision, beside, metadata, full, form)
            bytes_written = sum(file.stat().st_size for file in beside.rglob("*") if file.is_file())
            run = exporter.open(beside / written.model_file)
        checked = parity.check(model, run, precision, exporter.runtime, clips, form)
        kept = golden.write(model, precision, beside, clips, form)
        del run
        artifact = Artifact(
            name=name or f"{recipe or model.origin.source.name}-{exporter.format}-{precision}",
            recipe=recipe,
            family=model.family,
            format=exporter.format,
            precision=precision,
            runtime=exporter.runtime,
            model_file=written.model_file,
            files=lineage.files(beside),
            inputs=written.inputs,
            outputs=written.outputs,
            golden=kept.golden,
            parity=checked,
            quantized_nodes=written.quantized_nodes,
            audio=kept.audio,
            cost=cost.of_export(model, kept.audio.golden_seconds, bytes_written, form.takes),
            source=model.origin.source,
            lineage={**facts, **written.lineage, "checkpoint": checkpoint, "calibration": list(calibration)},
            tool=lineage.tool(),
        )
        artifact.write(beside / "artifact.json")
    return artifact
