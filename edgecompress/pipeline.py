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
from edgecompress.errors import (
    Busy,
    EdgeCompressError,
    HostKeyChanged,
    HostKeyUnknown,
    Refused,
    RuntimeMissing,
    Unreachable,
)
from edgecompress.job import AudioSource, Job, Recipe, describe
from edgecompress.paths import existing, expand
from edgecompress.records import Artifact, Checkpoint, Failure, Run, Score, Source

if TYPE_CHECKING:
    from edgecompress.audio import Clips
    from edgecompress.model import Model
    from edgecompress.session import Plan
    from edgecompress.tasks import Subject

Say = Callable[[str], None]
# What is wrong with a device and not with the artifact on it: asking again for every artifact would only take time.
DEVICE_IS_OUT = (Unreachable, HostKeyUnknown, HostKeyChanged, Refused, RuntimeMissing)
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
    record = Run(name=job.name, source=state.source, job=job.model_dump(mode="json"), recipes=recipes, tool=TOOL)
    state.say(
        f"{len(state.clips[0])} clips calibrate, {len(state.clips[1])} are scored, {len(state.clips[0].skipped)} were skipped"
    )
    with _only_run(state.folder):
        record.write(state.folder / "run.json")
        checkpoints = [_checkpoint(state, recipe) for recipe in job.recipes]
        made = [one for checkpoint in checkpoints if checkpoint for one in _artifacts(state, checkpoint)]
        for one in made:
            _scores(state, one)
        _measurements(state, made)
        _sweep_failures(state)
        state.say("writing the report")
        return RunResult(report.write(state.folder), state.filled, state.skipped, state.failed)


@contextmanager
def _only_run(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: two runs at once would sweep away each other's unfinished cells. The kernel frees it.

    Raises:
        Busy: another run has it.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            raise Busy(
                f"another run is working in {folder}", hint="wait for it, or give the job another output"
            ) from cause
        yield


@dataclass(frozen=True)
class _Made:
    """An artifact, its folder, and the checkpoint it was made of."""

    folder: Path
    artifact: Artifact
    checkpoint: Path

    @property
    def where(self) -> dict[str, str]:
        """The fields of a Failure that name the artifact."""
        return {"recipe": self.artifact.recipe, "format": self.artifact.format, "precision": self.artifact.precision}


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
            state.source_model,
            recipe,
            folder,
            clips=state.clips[0] if calibration else None,
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
            files={file.name: records.file_sha256(file) for file in sorted(beside.iterdir())},
            tool=TOOL,
            versions=_versions("torch", "transformers"),
        )
        checkpoint.write(beside / "checkpoint.json")
    return checkpoint


def _artifacts(state: _Run, checkpoint: Path) -> list[_Made]:
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
                    _export(state, small, checkpoint, record, folder, export.format, precision, full)
            if (folder / "artifact.json").exists():
                made.append(_Made(folder, Artifact.read(folder / "artifact.json"), checkpoint))
                full = folder if precision == "fp32" else full
    return made


def _export(
    state: _Run,
    small: Model,
    checkpoint: Path,
    record: Checkpoint,
    folder: Path,
    format: str,
    precision: str,
    full: Path | None,
) -> None:
    from edgecompress import exporters

    calibration, evaluation = state.clips
    clips = (evaluation.arrays or calibration.arrays)[:2]
    exporters.export(
        small, format, folder, precision=precision, recipe=record.recipe, clips=clips or None,
        techniques=record.techniques, checkpoint=checkpoint.name, reuse=full,
    )  # fmt: skip


def _scores(state: _Run, made: _Made) -> None:
    subject: Subject | None = None
    for task in state.job.scores:
        names = [clip.name for clip in state.clips[1]]
        key = records.content_key([made.folder.name, describe(task), names])
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


def _measurements(state: _Run, made: list[_Made]) -> None:
    """One device after the other, one artifact at a time: nothing else of ours runs meanwhile."""
    from edgecompress import session

    asked = state.job.measure
    if asked is None:
        return
    values = asked.model_dump(exclude={"devices"})
    for name in asked.devices:
        waiting = []
        for one in made:
            key = records.content_key([one.folder.name, name, values])
            file = state.folder / "measurements" / f"{one.folder.name}-{name}-{key}.json"
            if not state.there(file):
                waiting.append((file, one))
        _measure_on(state, name, session.Plan(**values), waiting)


def _measure_on(state: _Run, name: str, plan: Plan, waiting: list[tuple[Path, _Made]]) -> None:
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
