"""The cells of a run that score: artifacts on the job's clips, checkpoints on the data that a task names itself."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgecompress import records
from edgecompress.job import LOG_MEL, UNTRAINED, describe, scores_checkpoints
from edgecompress.paths import expand
from edgecompress.pipeline.cells import Made, load
from edgecompress.pipeline.checkpoints import TOOL
from edgecompress.pipeline.corpus import mark
from edgecompress.pipeline.state import Say, State
from edgecompress.records import Artifact, Checkpoint, Score

if TYPE_CHECKING:
    from edgecompress.audio import Clips
    from edgecompress.model import Model
    from edgecompress.tasks import Result, Subject


def score_all(state: State, made: Made) -> None:
    subject: Subject | None = None
    for task, wanted in state.job.wanted_scores():
        if scores_checkpoints(task) or not wanted(made.artifact.recipe):
            continue
        truths = _truths(state, task)
        key = records.content_key([made.folder.name, describe(task), state.clips[1].keys, truths])
        file = state.folder / "scores" / f"{made.folder.name}-{task.kind}-{key}.json"
        if state.there(file):
            continue
        with state.cell(file.stem, stage="score", **made.where):
            subject = subject or subject_of_artifact(made.folder, made.artifact, load(made.checkpoint))
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
    return tasks.of_runner(around, run, [tensor.name for tensor in artifact.inputs], artifact.outputs[0].name)


def _truths(state: State, task: Any) -> list[str]:
    """Hashes of the files beside the audio that hold a task's truths: a mended label is another score."""
    names = getattr(task, "truth_files", ())
    files = [Path(state.audio_folder or "") / name for name in names]
    return [records.file_sha256(file) for file in files if file.is_file()]


# --- checkpoints -----------------------------------------------------------------------------------------------------
def score_checkpoints(state: State, checkpoints: Sequence[Path]) -> None:
    """Every task that scores checkpoints, on every checkpoint, and on what they are to be compared with."""
    records_of = {folder: Checkpoint.read(folder / "checkpoint.json") for folder in checkpoints}
    for task, wanted in state.job.wanted_scores():
        if not scores_checkpoints(task):
            continue
        data = data_of(task, state.audio_folder)
        _baselines(state, task, data, wanted)
        for folder, record in records_of.items():
            if not wanted(record.recipe):
                continue

            def score(folder: Path = folder, task: Any = task) -> Result:
                return task.score_model(load(folder), state.audio_folder, state.say)

            _score(state, task, data, folder.name, record.recipe, "checkpoint", score, record)


def _baselines(state: State, task: Any, data: list[Any], wanted: Callable[[str], bool]) -> None:
    """The task without any encoder, and with the given one where the job trains its source out of random weights."""
    if hasattr(task, "baseline") and wanted(LOG_MEL):
        _score(state, task, data, LOG_MEL, LOG_MEL, "baseline", lambda: task.baseline(state.audio_folder, state.say))
    if state.given.random_weights and state.job.source_techniques and wanted(UNTRAINED):
        name = f"{UNTRAINED}-{state.given.sha256[:12]}"
        _score(
            state, task, data, name, UNTRAINED, "baseline",
            lambda: task.score_model(state.given_model, state.audio_folder, state.say),
        )  # fmt: skip


def _score(
    state: State,
    task: Any,
    data: list[Any],
    subject: str,
    recipe: str,
    level: Literal["checkpoint", "baseline"],
    score: Callable[[], Result | None],
    made: Checkpoint | None = None,
) -> None:
    key = records.content_key([subject, describe(task), data])
    file = state.folder / "scores" / f"{subject}-{task.kind}-{key}.json"
    if state.there(file):
        return
    with state.cell(file.stem, stage="score", recipe=recipe):
        result = score()
        if result is not None:  # else this task has no such baseline
            record = record_of(task, result, subject, recipe, level)
            heard = heard_in_training(state, made, task, record) if made else None
            conditions = {**record.conditions, **({"heard_in_training": heard} if heard else {})}
            record.model_copy(update={"conditions": conditions}).write(file)


def record_of(
    task: Any, result: Result, subject: str, recipe: str, level: Literal["checkpoint", "baseline"] = "checkpoint"
) -> Score:
    """The record of what a task said of a checkpoint or a baseline."""
    return Score(
        subject=subject,
        recipe=recipe,
        format=None,
        precision=None,
        task=title_of(task),
        metric=result.metric,
        higher_is_better=result.higher_is_better,
        level=level,
        items=result.items,
        skipped=result.skipped,
        conditions={"task": describe(task), **result.conditions},
        tool=TOOL,
    )


def title_of(task: Any) -> str:
    """A task's kind and what was asked of it beyond its defaults: two probes of one job are two columns."""
    import dataclasses

    told = [str(type(task).kind)]
    for field in dataclasses.fields(task):
        value = getattr(task, field.name)
        if field.name == "manifest" or value == field.default or value in (None, ""):
            continue
        told.append(value if isinstance(value, str) else f"{field.name} {value}")
    return " ".join(told)


def data_of(task: Any, audio_folder: str | None) -> list[Any]:
    """What a task will read, told from its files: hashes of its manifests, and of the recordings that these list."""
    found: list[Any] = []
    for name in getattr(task, "truth_files", ()):
        path = _beside_audio(str(name), audio_folder)
        if path.is_file():
            datasets = [name for name in (getattr(task, "dataset", ""), getattr(task, "noise", None)) if name]
            found.append([records.file_sha256(path), _recordings(path, datasets)])
    return found


def _beside_audio(name: str, audio_folder: str | None) -> Path:
    """Where a file lies that a task names: in the audio folder, unless it says more than a name."""
    path = expand(name)
    return path if path.is_absolute() or len(path.parts) > 1 or audio_folder is None else Path(audio_folder) / path


def heard_in_training(state: State, made: Checkpoint, task: Any, record: Score) -> int:
    """How many of a score's items hold a recording that the model, or its source, was trained on."""
    chosen, given = state.chosen, made.source.lineage
    trained = made.corpus is not None or given.get("training_audio_sha256") is not None
    if chosen is None or not trained or not hasattr(task, "manifest"):
        return 0
    limits = _limits([*made.techniques, *given.get("techniques", [])])
    datasets = None if not limits or () in limits else {name for names in limits for name in names}
    folder, scored = chosen.folder.resolve(), _beside_audio(task.manifest, state.audio_folder).parent.resolve()
    heard = {folder / name for name, row in chosen.entries if datasets is None or row.get("dataset") in datasets}
    return sum(
        any(scored / name in heard for name in item.detail.get("recordings", [item.clip])) for item in record.items
    )


def _limits(value: Any) -> list[tuple[str, ...]]:
    """The ``datasets`` of every training that is named anywhere in the tables of techniques; () means all audio."""
    if isinstance(value, list):
        return [found for one in value for found in _limits(one)]
    if not isinstance(value, dict):
        return []
    own = [tuple(value["datasets"])] if "datasets" in value and "steps" in value else []
    return own + [found for one in value.values() for found in _limits(one)]


def _recordings(manifest: Path, datasets: Sequence[str]) -> list[list[str]]:
    if manifest.suffix != ".csv":
        return []
    with manifest.open(newline="", encoding="utf-8", errors="replace") as stream:
        rows = list(csv.DictReader(stream))
    names = sorted({row.get("path") or "" for row in rows if not datasets or row.get("dataset") in datasets})
    return [[name, mark(manifest.parent / name)] for name in names if name]
