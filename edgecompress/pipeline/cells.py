"""The cells of a run that are about artifacts: made of checkpoints, and measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress import records
from edgecompress.errors import (
    EdgeCompressError,
    HostKeyChanged,
    HostKeyUnknown,
    Refused,
    RuntimeMissing,
    Unreachable,
)
from edgecompress.job import Export, calibrates
from edgecompress.pipeline.state import State
from edgecompress.records import Artifact, Checkpoint

if TYPE_CHECKING:
    from edgecompress.exporters.accuracy import Judge
    from edgecompress.model import Model
    from edgecompress.session import Plan

# What is wrong with a device and not with the artifact on it: asking again for every artifact would only take time.
DEVICE_IS_OUT = (Unreachable, HostKeyUnknown, HostKeyChanged, Refused, RuntimeMissing)


def load(checkpoint: Path) -> Model:
    """The model of a checkpoint."""
    from edgecompress import model

    return model.load(checkpoint)


@dataclass(frozen=True)
class Made:
    """An artifact, its folder, and the checkpoint it was made of."""

    folder: Path
    artifact: Artifact
    checkpoint: Path

    @property
    def where(self) -> dict[str, str]:
        """The fields of a Failure that name the artifact."""
        return {"recipe": self.artifact.recipe, "format": self.artifact.format, "precision": self.artifact.precision}


def artifacts_of(state: State, checkpoint: Path) -> list[Made]:
    """All artifacts of one checkpoint that could be made."""
    made = []
    record = Checkpoint.read(checkpoint / "checkpoint.json")
    small: Model | None = None
    for export in state.job.exports:
        full: Path | None = None
        for precision in export.precisions:
            key = records.content_key(
                [checkpoint.name, export.format, precision, state.probe.keys, *_asked(state, export, precision)]
            )
            folder = state.folder / "artifacts" / f"{record.recipe}-{export.format}-{precision}-{key}"
            where = {"recipe": record.recipe, "format": export.format, "precision": precision}
            if not state.there(folder):
                with state.cell(folder.name, stage="export", **where):
                    small = small or load(checkpoint)
                    _export(state, small, checkpoint, record, folder, export, precision, full)
            if (folder / "artifact.json").exists():
                made.append(Made(folder, Artifact.read(folder / "artifact.json"), checkpoint))
                full = folder if precision == "fp32" else full
    return made


def _asked(state: State, export: Export, precision: str) -> list[object]:
    """What a file's key depends on besides checkpoint, format, precision and clips; nothing where nothing was asked."""
    form: list[object] = [export.input] if export.input else []
    plain = {"format", "precisions", "input"}
    more = export.model_dump(mode="json", exclude=plain, exclude_defaults=True)
    return [*form, *([more] if more else []), *([state.clips[0].keys] if _hears(export, precision) else [])]


def _judged(export: Export, precision: str) -> bool:
    """Whether a task judges a file: what is not quantised needs none, and a library's defaults are shown as they are."""
    return export.judge is not None and precision != "fp32" and not precision.endswith("-naive")


def _hears(export: Export, precision: str) -> bool:
    """Whether the calibration clips decide what a file is."""
    return calibrates(precision) or _judged(export, precision)


def _export(
    state: State,
    small: Model,
    checkpoint: Path,
    record: Checkpoint,
    folder: Path,
    export: Export,
    precision: str,
    full: Path | None,
) -> None:
    from edgecompress import exporters

    options = exporters.Options(export.seconds, export.padded, (), export.for_runtime)
    heard = [clip.name for clip in state.clips[0]] if _hears(export, precision) else []
    exporters.export(
        small, export.format, folder, precision=precision, recipe=record.recipe, clips=state.probe.arrays or None,
        techniques=record.techniques, checkpoint=checkpoint.name, reuse=full, input=export.input, options=options,
        calibration=sorted({*record.calibration, *heard}), calibration_clips=state.clips[0].arrays,
        judge=_judge(state, small, export, precision), say=state.say,
    )  # fmt: skip


def _judge(state: State, small: Model, export: Export, precision: str) -> Judge | None:
    if not _judged(export, precision):
        return None
    from edgecompress.model.forms import form_of
    from edgecompress.pipeline.judging import judge_of

    task = next(task for task in state.job.scores if task.kind == export.judge)
    form = form_of(small, export.input, padded=export.padded)
    return judge_of(small, form, task, state.clips[0].items, state.audio_folder, export.tolerated_drop)


def measure_all(state: State, made: list[Made]) -> None:
    """One device after the other, one artifact at a time: nothing else of ours runs meanwhile."""
    asked = state.job.measure
    if asked is None:
        return
    values = asked.model_dump(mode="json", exclude={"devices"})
    for name in asked.devices:
        waiting = []
        for one in made:
            key = records.content_key([one.folder.name, state.devices[name], values])
            file = state.folder / "measurements" / f"{one.folder.name}-{name}-{key}.json"
            if not state.there(file):
                waiting.append((file, one))
        _measure_on(state, name, state.plan, waiting)


def _measure_on(state: State, name: str, plan: Plan, waiting: list[tuple[Path, Made]]) -> None:
    from edgecompress import devices, session

    if not waiting:
        return
    out: EdgeCompressError | None = None
    with devices.open_device(name) as device:
        for number, (file, one) in enumerate(waiting):
            if number and out is None:
                session.cool_down(plan, state.say)
            with state.cell(file.stem, stage="measure", device=name, **one.where):
                if out is not None:
                    raise out
                try:
                    measured = session.measure(device, one.artifact, one.folder, plan, state.say)
                except DEVICE_IS_OUT as error:
                    out = error
                    raise
                measured.model_copy(update={"artifact": one.folder.name}).write(file)
