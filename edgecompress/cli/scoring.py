"""What ``score`` does: a checkpoint or an artifact becomes a subject, a task scores it, a record says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.errors import AudioError, ModelError
from edgecompress.job import DENSE
from edgecompress.records import Artifact, Checkpoint, Score

if TYPE_CHECKING:
    from edgecompress.audio import Clips
    from edgecompress.model import Model
    from edgecompress.tasks import Subject, Task

POSITIONS_PER_SECOND = 50  # of Whisper's encoder


def task(text: str) -> Task:
    """A task by name, with its fields if any: ``fidelity`` or ``fidelity:metric=relative_error``.

    Raises:
        RecipeError: no such task, no such field, or a value it cannot have.
    """
    import tomllib

    from edgecompress.faults import Faults, step_of

    name, _, settings = text.partition(":")
    fields: dict[str, Any] = {}
    for pair in filter(None, settings.split(",")):
        key, _, value = pair.partition("=")
        try:
            fields[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            fields[key] = value
    faults = Faults("--task")
    found = step_of(faults, "tasks", {**fields, "task": name}, "", key="task")
    faults.raise_if_any()
    return found


def unseen(target: str, clips: Clips, limit: int | None) -> Clips:
    """The clips (at most ``limit``) that the target was not calibrated on; the others are named as skipped.

    Raises:
        AudioError: none is left.
    """
    from edgecompress.audio import Clips

    place = Path(target)
    seen: list[str] = []
    if (place / "artifact.json").is_file():
        seen = Artifact.read(place / "artifact.json").lineage.get("calibration", [])
    elif (place / "checkpoint.json").is_file():
        seen = Checkpoint.read(place / "checkpoint.json").calibration
    left = [clip for clip in clips if clip.name not in set(seen)]
    if not left:
        raise AudioError("every clip was used to calibrate this model", hint="score it on other recordings")
    skipped = {clip.name: "the model was calibrated on it" for clip in clips if clip.name in set(seen)}
    return Clips(tuple(left[:limit]), {**clips.skipped, **skipped})


def score(
    target: str, asked: Task, clips: Clips, folder: Path, source: str | None, progress: Callable[[str], None]
) -> Score:
    """Score ``target`` against ``source`` (the same model, where none is given and none is needed).

    Raises:
        ModelError: the source is needed and not given, or is another model than the one that was compressed.
    """
    from edgecompress import pipeline

    place = Path(target)
    if (place / "artifact.json").is_file():
        artifact = Artifact.read(place / "artifact.json")
        subject, reference = _artifact(place, artifact, source)
        return pipeline.score(subject, reference, asked, clips, str(folder), artifact, artifact.name, progress)
    subject, reference, recipe = _checkpoint(target, source)
    name = place.resolve().name
    record = pipeline.score(subject, reference, asked, clips, str(folder), None, name, progress)
    return record.model_copy(update={"recipe": recipe})


def score_checkpoint(target: str, asked: Any, folder: Path, progress: Callable[[str], None]) -> Score:
    """Score a checkpoint by a task that scores only these, on the recordings that it finds in ``folder``.

    Raises:
        ModelError: the target is an artifact.
    """
    from edgecompress import model as models
    from edgecompress import pipeline

    place = Path(target)
    if (place / "artifact.json").is_file():
        raise ModelError(f"{asked.kind} scores checkpoints, and {place} is an artifact", hint="give its checkpoint")
    record = place / "checkpoint.json"
    recipe = Checkpoint.read(record).recipe if record.is_file() else DENSE
    result = asked.score_model(models.load(target), str(folder), progress)
    return pipeline.record_of(asked, result, place.resolve().name, recipe)


def _checkpoint(path: str, source: str | None) -> tuple[Subject, Subject, str]:
    """A model in torch, its source, and the recipe's name."""
    from edgecompress import model as models
    from edgecompress.tasks import in_torch

    model = models.load(path)
    record = Path(path) / "checkpoint.json"
    recipe = Checkpoint.read(record).recipe if record.is_file() else DENSE
    if source is not None:
        return in_torch(model), in_torch(_the_source(source, model.origin.source.sha256)), recipe
    if recipe != DENSE or model.edits:
        hint = "add --source with the model it was made from"
        raise ModelError(f"{path} is a changed model: its source is needed too", hint=hint)
    same = in_torch(model)
    return same, same, recipe


def _artifact(folder: Path, artifact: Artifact, source: str | None) -> tuple[Subject, Subject]:
    """An artifact holds an encoder, or a network with its head: the source lends it the rest."""
    from edgecompress import pipeline
    from edgecompress.tasks import in_torch

    if source is None:
        hint = "add --source with the model it was made from"
        raise ModelError(f"{folder} holds only what runs on the device: its source is needed too", hint=hint)
    original = around = _the_source(source, artifact.source.sha256)
    seconds = artifact.audio.max_seconds if artifact.audio else None
    if seconds and original.max_seconds and seconds < original.max_seconds:
        around = original.clone()
        around.keep_context(round(seconds * POSITIONS_PER_SECOND))
    return pipeline.subject_of_artifact(folder, artifact, around), in_torch(original)


def _the_source(path: str, sha256: str) -> Model:
    """The untouched model, which must be the one that was compressed."""
    from edgecompress import model as models

    found = models.load(path)
    if found.origin.source.sha256 != sha256:
        hint = "give its source model"
        raise ModelError(f"{path} is not the model that this was made from (its files have another hash)", hint=hint)
    return found
