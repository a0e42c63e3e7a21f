"""Exporters turn a model into an artifact: one file in one format at one precision, with proof that it says the same.

The contract. An exporter is a class, found by an entry point of the group ``edgecompress.exporters``; it writes one
file and can run it (:class:`Exporter`). Everything else is the same for all formats and happens here, in this order:
the file is written, parity with torch is checked in the runtime that will run it, golden input and output are
stored, and ``artifact.json`` says what is there. The folder appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgecompress import plugins, records
from edgecompress.errors import ExportError, ParityError
from edgecompress.exporters.converting import converting, written_and_opened
from edgecompress.exporters.order import Options, Order, Written
from edgecompress.records import Artifact, Parity

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.exporters.accuracy import Judge, Say
    from edgecompress.exporters.parity import Runner
    from edgecompress.model import Model
    from edgecompress.transcript import Rules

WRITES_TEXT = ("step", "fixed_step")  # forms whose file needs rules and a tokenizer beside it to become words
WORDS = ("rules.json", "tokenizer.json")

__all__ = ["Exporter", "Options", "Order", "Written", "export", "runner"]


class Exporter(Protocol):
    """One format. ``runtime`` names the runtime that runs it, here and on the device.

    ``always_padded``: the file has a lengths input whether asked for or not, where the family can have one.
    """

    format: str
    runtime: str
    precisions: tuple[str, ...]
    always_padded: bool

    def write(self, order: Order) -> Written:
        """Write the model that an order describes into its folder.

        Raises:
            ExportError: this model cannot be written so.
        """
        ...

    def open(self, file: Path) -> Runner:
        """A function from named inputs to named outputs that runs the file in the runtime, held to float32.

        It has an attribute ``conditions`` where there is more to say of how it runs than the runtime's name.
        """
        ...

    def quantizable(self, file: Path) -> list[str]:
        """Names of the parts of an fp32 file that quantisation may leave in fp32: ``Options.float_nodes``."""
        ...


def runner(format: str, file: Path) -> Runner:
    """A function from named inputs to named outputs that runs an exported file here.

    Raises:
        PluginNotFound: no such format.
        ExportError: its runtime is not installed on this machine, or cannot open or run the file.
    """
    exporter: Exporter = plugins.find("exporters", format)()
    what, hint = f"{file} does not run in {exporter.runtime}", "is the runtime installed, and the file whole?"
    with converting(what, hint):
        opened = exporter.open(file)

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with converting(what, hint):
            return opened(inputs)

    return run


def export(
    model: Model,
    format: str = "onnx",
    folder: str | Path = "artifact",
    *,
    precision: str = "fp32",
    input: str | None = None,
    options: Options | None = None,
    recipe: str = "",
    name: str = "",
    clips: Sequence[np.ndarray] | None = None,
    calibration_clips: Sequence[np.ndarray] = (),
    calibration_feeds: Sequence[Mapping[str, np.ndarray]] = (),
    techniques: Sequence[Mapping[str, Any]] = (),
    checkpoint: str = "",
    calibration: Sequence[str] = (),
    reuse: str | Path | None = None,
    exporter: Exporter | None = None,
    judge: Judge | None = None,
    say: Say | None = None,
) -> Artifact:
    """Write ``model`` as an artifact folder and return its record.

    Args:
        model: waveform families are exported with their task head; Whisper as its encoder, or as a classifier.
        format: name of an exporter.
        folder: where the artifact goes; an old one is replaced, and stays if this fails.
        precision: ``fp32``, or what else the exporter offers: ``fp16``, ``int8`` (dynamic), ``int8-static``,
            ``int8-weights``, ``int4-weights``; ``int8-naive``, ``int8-static-naive`` (a library's defaults, to compare with).
        input: ``waveform`` or ``features``, where a family has both forms: MelHuBERT makes its log-mel frames inside
            unless told otherwise.
        options: fixed lengths, a lengths input, what stays in fp32, an older runtime to be read by.
        recipe: name of the recipe, for the record; empty for the untouched model.
        name: of the artifact; made of recipe (or source), format and precision if empty.
        clips: 16 kHz mono float32 audio for parity and the golden input; a synthetic clip is used without any.
        calibration_clips: audio that ``int8-static`` takes the ranges of activations from. Not that which is scored.
        calibration_feeds: inputs by name to calibrate with, for what takes no audio.
        techniques: the recipe's techniques as tables, for the record and the file's metadata.
        checkpoint: name of the folder that the model was loaded from, for the record.
        calibration: names of the clips that the techniques looked at, for the record: they are not to be scored.
        reuse: an fp32 artifact of this model in the same format, to start from instead of exporting again. Ignored
            when it is missing, of other weights, or of other inputs.
        exporter: an exporter that is not installed as a plug-in.
        judge: scores the file beside torch; where it tolerates a drop, what costs more stays in fp32.
        say: told what is done where that takes long.

    Raises:
        PluginNotFound: no such format.
        ParityError: the file does not say what torch says; output, length and error are named.
        ExportError: no such precision, or the exporter failed; the cause is chained.
        ModelError: the family has no such form.
    """
    from edgecompress import cost
    from edgecompress.exporters import golden, lineage
    from edgecompress.exporters.tracing import evaluating
    from edgecompress.model.decoding import rules
    from edgecompress.model.forms import can_be_padded, form_of

    exporter = exporter or plugins.find("exporters", format)()
    options = options or Options()
    if precision not in exporter.precisions:
        raise ExportError(
            f"{exporter.format} has no precision {precision!r}",
            hint=plugins.nearest(precision, list(exporter.precisions)),
        )
    form = form_of(model, input, padded=options.padded or (exporter.always_padded and can_be_padded(model)))
    words = rules(model) if form.takes in WRITES_TEXT else None
    facts = lineage.facts(model, recipe, techniques)
    asked = lineage.shape_options(options)
    full = lineage.matching_fp32(
        reuse, exporter.format, facts["weights_sha256"], [port.name for port in form.inputs], asked
    )
    with evaluating(model), records.whole_folder(Path(folder)) as beside:
        order = Order(
            model, form, precision, beside, lineage.metadata(facts, precision), full, options,
            tuple(calibration_clips), tuple(calibration_feeds),
        )  # fmt: skip
        order, written, checked = _proven(exporter, order, clips or (), judge, say)
        bytes_written = sum(file.stat().st_size for file in beside.rglob("*") if file.is_file())
        kept = golden.write(model, precision, beside, clips, form, written)
        if words is not None:
            _carry_words(words, model, beside)
        seconds = kept.audio.golden_seconds if kept.audio else None
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
            cost=cost.of_export(model, seconds, bytes_written, form.takes),
            source=model.origin.source,
            lineage={
                **facts, **written.lineage, "form": form.takes, "checkpoint": checkpoint, "calibration": list(calibration),
                **({"options": asked} if asked else {}), **({"float_nodes": list(kept_float)} if (kept_float := order.options.float_nodes) else {}),
            },
            tool=lineage.tool(),
        )  # fmt: skip
        artifact.write(beside / "artifact.json")
    return artifact


def _proven(
    exporter: Exporter, order: Order, clips: Sequence[np.ndarray], judge: Judge | None, say: Say | None
) -> tuple[Order, Written, Parity]:
    """Write what is ordered and compare it with torch: the order as it was carried out, what it wrote, the certificate.

    Where a quantised file is too far from torch, its front end is written in fp32 and it is compared once more: before
    the first norm quiet frames and loud ones share one scale.
    """
    import torch

    from edgecompress.exporters import accuracy, parity

    opened = written_and_opened(exporter, order)
    scores = []
    if judge is not None:
        order, opened, value = accuracy.controlled(exporter, order, opened, judge, say)
        scores.append(judge.record(value))
    why: dict[str, str] = {}

    def certificate() -> Parity:
        written, run = opened
        conditions = {"threads": torch.get_num_threads(), **getattr(run, "conditions", {}), **why}
        return parity.check(order.model, run, order.precision, exporter.runtime, clips, order.form, written, conditions)

    try:
        checked = certificate()
    except ParityError as refused:
        retreated = accuracy.front_end_in_fp32(exporter, order)
        if retreated is None:
            raise
        if say:
            say(f"the front end stays in fp32: {refused}")
        order, opened = retreated
        why["front_end_in_fp32"] = str(refused)
        checked = certificate()
        scores = [judge.record(judge.value(opened[1]))] if judge is not None else []
    if judge is None and order.precision != "fp32" and (told := accuracy.fidelity(order, opened, clips)):
        scores.append(told)
    return order, opened[0], checked.model_copy(update={"scores": scores})


def _carry_words(words: Rules, model: Model, folder: Path) -> None:
    """What an app needs to turn a decoder's answers into text: how a transcript starts and ends, and the tokenizer."""
    from dataclasses import asdict

    records.write_text(folder / WORDS[0], records.canonical_json(asdict(words)) + "\n")
    tokenizer = model.origin.extra_files.get(WORDS[1])
    if tokenizer is not None:
        records.write_text(folder / WORDS[1], tokenizer)
