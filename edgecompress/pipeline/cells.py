"""The cells of a run: a checkpoint a recipe, its artifacts, their scores, their measurements."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress import __version__, records
from edgecompress.errors import (
    EdgeCompressError,
    HostKeyChanged,
    HostKeyUnknown,
    Refused,
    RuntimeMissing,
    Unreachable,
)
from edgecompress.job import Recipe, describe
from edgecompress.pipeline.state import Say, State
from edgecompress.records import Artifact, Checkpoint, Score

if TYPE_CHECKING:
    from edgecompress.audio import Clips
    from edgecompress.model import Model
    from edgecompress.session import Plan
    from edgecompress.tasks import Subject

TOOL = f"edgecompress {__version__}"
# What is wrong with a device and not with the artifact on it: asking again for every artifact would only take time.
DEVICE_IS_OUT = (Unreachable, HostKeyUnknown, HostKeyChanged, Refused, RuntimeMissing)


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


def checkpoint_of(state: State, recipe: Recipe) -> Path | None:
    """The folder of a compressed model, or None if it failed."""
    from edgecompress.techniques import needs_clips

    techniques = [describe(technique) for technique in recipe.techniques]
    clips = state.clips[0] if needs_clips(recipe.techniques) else None
    key = records.content_key([state.source.sha256, techniques, clips.keys if clips else [], state.job.seed])
    folder = state.folder / "checkpoints" / f"{recipe.name}-{key}"
    if state.there(folder):
        return folder
    with state.cell(folder.name, stage="compress", recipe=recipe.name):
        write_checkpoint(
            state.source_model,
            recipe,
            folder,
            clips=clips,
            seed=state.job.seed,
            progress=state.say,
        )
        return folder
    return None


def write_checkpoint(
    source: Model,
    recipe: Recipe,
    folder: Path,
    *,
    clips: Clips | None = None,
    seed: int = 0,
    progress: Say | None = None,
) -> Checkpoint:
    """Compress a copy of ``source`` by a recipe and write it whole or not at all.

    Raises:
        TechniqueError: a technique could not be carried out.
    """
    from edgecompress import cost, model, techniques

    small = source.clone()
    context = techniques.Context(clips=clips.arrays if clips else (), seed=seed)
    steps = techniques.compress(small, recipe.techniques, context, progress)
    with records.whole_folder(folder) as beside:
        model.save(small, beside)
        checkpoint = Checkpoint(
            recipe=recipe.name,
            family=small.family,
            source=small.origin.source,
            techniques=[describe(technique) for technique in recipe.techniques],
            steps=steps,
            cost=cost.measure(small),
            calibration=[clip.name for clip in clips or () if techniques.needs_clips(recipe.techniques)],
            files={file.name: records.file_sha256(file) for file in sorted(beside.iterdir())},
            tool=TOOL,
            versions=_versions("torch", "transformers"),
        )
        checkpoint.write(beside / "checkpoint.json")
    return checkpoint


def artifacts_of(state: State, checkpoint: Path) -> list[Made]:
    """All artifacts of one checkpoint that could be made."""
    made = []
    record = Checkpoint.read(checkpoint / "checkpoint.json")
    small: Model | None = None
    for export in state.job.exports:
        full: Path | None = None
        for precision in export.precisions:
            key = records.content_key([checkpoint.name, export.format, precision, state.probe.keys])
            folder = state.folder / "artifacts" / f"{record.recipe}-{export.format}-{precision}-{key}"
            where = {"recipe": record.recipe, "format": export.format, "precision": precision}
            if not state.there(folder):
                with state.cell(folder.name, stage="export", **where):
                    small = small or _load(checkpoint)
                    _export(state, small, checkpoint, record, folder, export.format, precision, full)
            if (folder / "artifact.json").exists():
                made.append(Made(folder, Artifact.read(folder / "artifact.json"), checkpoint))
                full = folder if precision == "fp32" else full
    return made


def _export(
    state: State,
    small: Model,
    checkpoint: Path,
    record: Checkpoint,
    folder: Path,
    format: str,
    precision: str,
    full: Path | None,
) -> None:
    from edgecompress import exporters

    exporters.export(
        small, format, folder, precision=precision, recipe=record.recipe, clips=state.probe.arrays or None,
        techniques=record.techniques, checkpoint=checkpoint.name, calibration=record.calibration, reuse=full,
    )  # fmt: skip


def score_all(state: State, made: Made) -> None:
    subject: Subject | None = None
    for task in state.job.scores:
        truths = _truths(state, task)
        key = records.content_key([made.folder.name, describe(task), state.clips[1].keys, truths])
        file = state.folder / "scores" / f"{made.folder.name}-{task.kind}-{key}.json"
        if state.there(file):
            continue
        with state.cell(file.stem, stage="score", **made.where):
            subject = subject or subject_of_artifact(made.folder, made.artifact, _load(made.checkpoint))
            record = score(
                subject,
                state.source_subject,
                task,
                state.clips[1],
                state.audio_folder,
                made.artifact,
                made.folder.name,
                state.say,
            )
            record.write(file)


def score(
    subject: Subject,
    source: Subject,
    task: Any,
    clips: Clips,
    folder: str | None,
    artifact: Artifact | None,
    name: str,
    say: Say | None = None,
) -> Score:
    """Score a subject on a task, as a record. ``artifact`` is None for a model in torch; ``name`` is its folder's.

    Raises:
        EdgeCompressError: the task does not fit the model, or its truths are missing.
    """
    result = task.score(subject, source, clips.items, folder, say)
    return Score(
        subject=name,
        recipe=artifact.recipe if artifact else name,
        format=artifact.format if artifact else None,
        precision=artifact.precision if artifact else None,
        task=task.kind,
        metric=result.metric,
        higher_is_better=result.higher_is_better,
        items=result.items,
        skipped={**clips.skipped, **result.skipped},
        conditions={"task": describe(task), **result.conditions},
        tool=TOOL,
    )


def subject_of_artifact(folder: Path, artifact: Artifact, around: Model) -> Subject:
    """An exported encoder, run by its runtime here, inside the model ``around`` it.

    Raises:
        ExportError: this machine cannot run that format.
    """
    from edgecompress import exporters, tasks

    run = exporters.runner(artifact.format, folder / artifact.model_file)
    return tasks.of_runner(around, run, artifact.inputs[0].name, artifact.outputs[0].name)


def _truths(state: State, task: Any) -> list[str]:
    """Hashes of the files beside the audio that hold a task's truths: a mended label is another score."""
    names = getattr(task, "truth_files", ())
    files = [Path(state.audio_folder or "") / name for name in names]
    return [records.file_sha256(file) for file in files if file.is_file()]


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
        for file, one in waiting:
            with state.cell(file.stem, stage="measure", device=name, **one.where):
                if out is not None:
                    raise out
                try:
                    measured = session.measure(device, one.artifact, one.folder, plan, state.say)
                except DEVICE_IS_OUT as error:
                    out = error
                    raise
                measured.model_copy(update={"artifact": one.folder.name}).write(file)


def _load(checkpoint: Path) -> Model:
    from edgecompress import model

    return model.load(checkpoint)


def _versions(*names: str) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in names}
