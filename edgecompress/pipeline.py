"""The only place where rooms meet: a job carried out one guarded cell at a time, and gone on with where it was.

A cell is a folder or file named by a hash of all that went into it. A finished one is skipped without loading
anything; an unfinished one never appears (it is written beside its place and renamed). A cell that raises an
EdgeCompressError becomes a Failure and the rest goes on; anything else is a bug, and stops with its traceback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress import __version__, records, sources
from edgecompress.errors import EdgeCompressError, ExportError
from edgecompress.job import AudioSource, Job, Recipe, describe
from edgecompress.paths import existing, expand
from edgecompress.records import Artifact, Checkpoint, Failure, Run, Score, Source

if TYPE_CHECKING:
    from edgecompress.audio import Clips
    from edgecompress.model import Model
    from edgecompress.tasks import Subject

Say = Callable[[str], None]
TOOL = f"edgecompress {__version__}"


@dataclass(frozen=True)
class RunResult:
    """The report of a run, and how many cells were filled now, were there already, and failed."""

    report: Path
    filled: int
    skipped: int
    failed: int


@dataclass
class _Run:
    """A run under way: what is shared between its cells, each made when first needed."""

    job: Job
    folder: Path
    say: Say
    filled: int = 0
    skipped: int = 0
    failed: int = 0
    failures: set[str] = field(default_factory=set)

    @cached_property
    def source(self) -> Source:
        """Who the source model is, from its files."""
        given = self.job.model
        if given.random is not None:
            config = sources.read_json(self.job.file.parent / given.random.config)
            return sources.of_random(config, given.random.seed, f"random {config.get('model_type', 'model')}")
        return sources.of_folder(_model_folder(given.path or ""))

    @cached_property
    def source_model(self) -> Model:
        """The source model, loaded."""
        from edgecompress import model

        self.say(f"loading {self.source.name}")
        given = self.job.model
        if given.random is None:
            return model.load(_model_folder(given.path or ""))
        config = sources.read_json(self.job.file.parent / given.random.config)
        return model.from_config_values(config, seed=given.random.seed, source=self.source)

    @cached_property
    def source_subject(self) -> Subject:
        """The source model in torch, asked once for each clip."""
        from edgecompress.tasks import in_torch

        return in_torch(self.source_model)

    @cached_property
    def clips(self) -> tuple[Clips, Clips]:
        """(calibration, evaluation) clips."""
        return read_clips(self.job.audio)

    @cached_property
    def audio_folder(self) -> str | None:
        audio = self.job.audio
        return str(existing(audio.folder, "audio folder")) if audio is not None and audio.folder is not None else None

    @contextmanager
    def cell(self, name: str, **where: Any) -> Iterator[None]:
        """Count a cell; turn an EdgeCompressError into a Failure on disk, and drop the Failure of an earlier try."""
        file = self.folder / "failures" / f"{name}.json"
        self.say(f"{where['stage']}: {name}")
        try:
            yield
        except EdgeCompressError as error:
            kind, text = type(error).__name__, error.message
            Failure(cell=name, kind=kind, error=text, hint=error.hint, when=records.now(), **where).write(file)
            self.failed += 1
            self.failures.add(file.name)
            self.say(f"failed: {name}: {text}")
        else:
            self.filled += 1

    def there(self, finished: Path) -> bool:
        """Whether a cell is finished already; counts it."""
        if finished.exists():
            self.skipped += 1
            return True
        return False


def run(job: Job, progress: Say | None = None) -> RunResult:
    """Carry out a job: compress, export, score, measure, report; what is finished is skipped.

    Raises:
        EdgeCompressError: nothing could start (no model, no audio).
    """
    from edgecompress import report

    state = _Run(job, expand(job.output), progress or (lambda text: None))
    recipes = [recipe.name for recipe in job.recipes]
    asked = job.model_dump(mode="json")
    Run(name=job.name, source=state.source, job=asked, recipes=recipes, tool=TOOL).write(state.folder / "run.json")
    checkpoints = [_checkpoint(state, recipe) for recipe in job.recipes]
    artifacts = [pair for checkpoint in checkpoints if checkpoint for pair in _artifacts(state, checkpoint)]
    for folder, artifact in artifacts:
        _scores(state, folder, artifact)
    _measurements(state, artifacts)
    _sweep_failures(state)
    state.say("writing the report")
    return RunResult(report.write(state.folder), state.filled, state.skipped, state.failed)


# --- cells -----------------------------------------------------------------------------------------------------------
def _checkpoint(state: _Run, recipe: Recipe) -> Path | None:
    """The folder of a compressed model, or None if it failed."""
    from edgecompress.techniques import needs_clips

    techniques = [describe(technique) for technique in recipe.techniques]
    calibration = [clip.name for clip in state.clips[0]] if needs_clips(recipe.techniques) else []
    key = records.content_key([state.source.sha256, techniques, calibration, state.job.seed])
    folder = state.folder / "checkpoints" / f"{recipe.name}-{key}"
    if state.there(folder / "checkpoint.json"):
        return folder
    with state.cell(folder.name, stage="compress", recipe=recipe.name):
        write_checkpoint(
            state.source_model, recipe, folder, clips=state.clips[0] if calibration else None, seed=state.job.seed, progress=state.say
        )
        return folder
    return None


def write_checkpoint(
    source: Model, recipe: Recipe, folder: Path, *, clips: Clips | None = None, seed: int = 0, progress: Say | None = None
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
            files={file.name: records.file_sha256(file) for file in sorted(beside.iterdir())},
            tool=TOOL,
            versions=_versions("torch", "transformers"),
        )
        checkpoint.write(beside / "checkpoint.json")
    return checkpoint


def _artifacts(state: _Run, checkpoint: Path) -> list[tuple[Path, Artifact]]:
    """All artifacts of one checkpoint that could be made."""
    made = []
    record = Checkpoint.read(checkpoint / "checkpoint.json")
    small: Model | None = None
    for export in state.job.exports:
        full: Path | None = None
        for precision in export.precisions:
            key = records.content_key([checkpoint.name, export.format, precision])
            folder = state.folder / "artifacts" / f"{record.recipe}-{export.format}-{precision}-{key}"
            where = {"recipe": record.recipe, "format": export.format, "precision": precision}
            if not state.there(folder / "artifact.json"):
                with state.cell(folder.name, stage="export", **where):
                    small = small or _load(checkpoint)
                    _export(state, small, record, folder, export.format, precision, full)
            if (folder / "artifact.json").exists():
                made.append((folder, Artifact.read(folder / "artifact.json")))
                full = folder if precision == "fp32" else full
    return made


def _export(
    state: _Run, small: Model, record: Checkpoint, folder: Path, format: str, precision: str, full: Path | None
) -> None:
    from edgecompress import exporters

    calibration, evaluation = state.clips
    clips = (evaluation.arrays or calibration.arrays)[:2]
    exporters.export(
        small, format, folder, precision=precision, recipe=record.recipe, clips=clips or None, techniques=record.techniques, reuse=full
    )


def _scores(state: _Run, folder: Path, artifact: Artifact) -> None:
    subject: Subject | None = None
    for task in state.job.scores:
        names = [clip.name for clip in state.clips[1]]
        key = records.content_key([folder.name, describe(task), names])
        file = state.folder / "scores" / f"{folder.name}-{task.kind}-{key}.json"
        if state.there(file):
            continue
        where = {"recipe": artifact.recipe, "format": artifact.format, "precision": artifact.precision}
        with state.cell(file.stem, stage="score", **where):
            subject = subject or _subject(state, folder, artifact)
            score(subject, state.source_subject, task, state.clips[1], state.audio_folder, artifact, folder.name, state.say).write(file)


def score(
    subject: Subject, source: Subject, task: Any, clips: Clips, folder: str | None, artifact: Artifact | None, name: str, say: Say | None = None
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


def _subject(state: _Run, folder: Path, artifact: Artifact) -> Subject:
    """An artifact with its checkpoint's model around it, for features and decoder."""
    return subject_of_artifact(folder, artifact, _load(_checkpoint_of(state, artifact)))


def subject_of_artifact(folder: Path, artifact: Artifact, around: Model) -> Subject:
    """An exported encoder, run by its runtime here, inside the model ``around`` it.

    Raises:
        ExportError: this machine cannot run that format.
    """
    from edgecompress import tasks

    if artifact.runtime != "onnxruntime":
        raise ExportError(f"cannot score {artifact.format}: no scorer runs {artifact.runtime} here", hint="score the checkpoint instead")
    return tasks.in_onnxruntime(around, str(folder / artifact.model_file))


def _checkpoint_of(state: _Run, artifact: Artifact) -> Path:
    for folder in sorted((state.folder / "checkpoints").glob(f"{artifact.recipe}-*")):
        if Checkpoint.read(folder / "checkpoint.json").recipe == artifact.recipe:
            return folder
    raise ExportError(f"the checkpoint of {artifact.name} is gone", hint="remove the artifact; the next run makes both")


def _measurements(state: _Run, artifacts: list[tuple[Path, Artifact]]) -> None:
    """One device after the other, one artifact at a time: nothing else of ours runs meanwhile."""
    from edgecompress import session

    asked = state.job.measure
    if asked is None:
        return
    values = asked.model_dump(exclude={"devices"})
    for name in asked.devices:
        waiting = []
        for folder, artifact in artifacts:
            file = state.folder / "measurements" / f"{folder.name}-{name}-{records.content_key([folder.name, name, values])}.json"
            if not state.there(file):
                waiting.append((file, folder, artifact))
        _measure_on(state, name, session.Plan(**values), waiting)


def _measure_on(state: _Run, name: str, plan: Any, waiting: list[tuple[Path, Path, Artifact]]) -> None:
    from edgecompress import devices, session

    if not waiting:
        return
    with devices.open_device(name) as device:
        for file, folder, artifact in waiting:
            where = {"recipe": artifact.recipe, "format": artifact.format, "precision": artifact.precision, "device": name}
            with state.cell(file.stem, stage="measure", **where):
                session.measure(device, artifact, folder, plan, state.say).model_copy(update={"artifact": folder.name}).write(file)


# --- small things ----------------------------------------------------------------------------------------------------
def read_clips(audio: AudioSource | None) -> tuple[Clips, Clips]:
    """(calibration, evaluation) clips of a job's ``[audio]``; both empty without one.

    Raises:
        AudioError: no usable audio, or fewer clips than asked for.
    """
    from edgecompress import audio as room

    if audio is None:
        return room.Clips(), room.Clips()
    wanted = audio.calibration + audio.evaluation
    if audio.synthetic is not None:
        made = room.synthetic(audio.synthetic.clips, audio.synthetic.seconds, audio.synthetic.seed)
    elif audio.manifest is not None:
        folder = existing(audio.folder or "", "audio folder")
        made = room.read_manifest(folder / audio.manifest, dataset=audio.dataset, limit=wanted)
    else:
        made = room.read_folder(existing(audio.folder or "", "audio folder"), limit=wanted)
    return room.split(made, calibration=audio.calibration, evaluation=audio.evaluation)


def _model_folder(text: str) -> Path:
    """A model's folder on this machine; a hub id is fetched first."""
    path = expand(text)
    if path.is_dir() or "${" in text or text.count("/") != 1 or text.startswith((".", "/", "~")):
        return existing(text, "model folder")
    from edgecompress.model.storage import find_folder

    return find_folder(text)


def _load(checkpoint: Path) -> Model:
    from edgecompress import model

    return model.load(checkpoint)


def _sweep_failures(state: _Run) -> None:
    """Failures of cells that are no longer failing, or no longer asked for, are gone."""
    for file in (state.folder / "failures").glob("*.json"):
        if file.name not in state.failures:
            file.unlink()


def _versions(*names: str) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in names}
