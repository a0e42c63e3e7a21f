"""A run under way: what its cells share, who may work in its folder, and what becomes of a cell that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress import records
from edgecompress.errors import Busy, EdgeCompressError
from edgecompress.job import AudioSource, Job
from edgecompress.paths import existing
from edgecompress.pipeline.corpus import Chosen, choose
from edgecompress.pipeline.places import given_model, given_source
from edgecompress.pipeline.steps import Ingredients, made_source
from edgecompress.records import Failure, Source

if TYPE_CHECKING:
    from edgecompress.audio import Clips
    from edgecompress.model import Model
    from edgecompress.session import Plan
    from edgecompress.tasks import Subject
    from edgecompress.training.data import Corpus

Say = Callable[[str], None]


@dataclass
class State:
    """A run under way: what is shared between its cells, each made when first needed."""

    job: Job
    folder: Path
    say: Say
    filled: int = 0
    skipped: int = 0
    failed: int = 0
    failures: set[str] = field(default_factory=set)
    cells: list[str] = field(default_factory=list)

    @cached_property
    def given(self) -> Source:
        """Who the model is that the job names, from its files."""
        return given_source(self.job)

    @cached_property
    def given_model(self) -> Model:
        """That model, loaded."""
        self.say(f"loading {self.given.name}")
        return given_model(self.job, self.given)

    @cached_property
    def source(self) -> Source:
        """Who the source model is: the given one, or what the job makes of it first."""
        steps = self.job.source_techniques
        return made_source(self.of_given, steps) if steps else self.given

    @property
    def source_folder(self) -> Path | None:
        """Where the source model lies that the job makes; None where it takes the given one."""
        steps = self.job.source_techniques
        return self.folder / f"source-{self.of_given.key(steps)}" if steps else None

    @cached_property
    def source_model(self) -> Model:
        """The source model, loaded (and made already, where the job makes it)."""
        if self.source_folder is None:
            return self.given_model
        from edgecompress import model

        return model.load(self.source_folder)

    @cached_property
    def of_given(self) -> Ingredients:
        """What goes into a source model that is made."""
        return Ingredients(self.given, self.job.seed, self.clips[0], self.chosen)

    @cached_property
    def of_source(self) -> Ingredients:
        """What goes into every recipe's model."""
        return Ingredients(self.source, self.job.seed, self.clips[0], self.chosen)

    @cached_property
    def chosen(self) -> Chosen | None:
        """The audio to train on, not yet read: never what calibrates or is scored."""
        if self.job.training is None:
            return None
        folder = Path(self.audio_folder) if self.audio_folder else None
        kept = [folder / clip.name for clips in self.clips for clip in clips] if folder else []
        return choose(self.job.training, kept)

    @cached_property
    def corpus(self) -> Corpus | None:
        """The audio to train on."""
        if self.chosen is None:
            return None
        self.say(f"reading {len(self.chosen.entries)} recordings to train on")
        corpus = self.chosen.read()
        if corpus.skipped:
            self.say(f"{len(corpus.skipped)} of them cannot be used and were skipped")
        return corpus

    @cached_property
    def source_subject(self) -> Subject:
        """The source model in torch, asked once for each clip."""
        from edgecompress.tasks import in_torch

        return in_torch(self.source_model)

    @cached_property
    def clips(self) -> tuple[Clips, Clips]:
        """(calibration, evaluation) clips."""
        return read_clips(self.job.audio)

    @property
    def probe(self) -> Clips:
        """The clips that parity is checked on; the first is the golden input."""
        from edgecompress.audio import Clips

        calibration, evaluation = self.clips
        return Clips((evaluation.items or calibration.items)[:2])

    @cached_property
    def plan(self) -> Plan:
        """How to measure.

        Raises:
            RecipeError: the job asks for what no plan can be.
        """
        from edgecompress.session import Plan

        asked = self.job.measure
        return Plan.of(**asked.model_dump(exclude={"devices"})) if asked else Plan()

    @cached_property
    def devices(self) -> dict[str, dict[str, Any]]:
        """What each of the job's devices is, by name: another host under the same name is another device.

        Its port, key and settings on the way there are not: a forwarded port may change between two tries.

        Raises:
            PluginNotFound: no such device.
        """
        from edgecompress import devices

        found = {}
        for name in self.job.measure.devices if self.job.measure else ():
            with devices.open_device(name) as device:  # nothing is connected by that
                found[name] = {
                    "name": name,
                    **device.config.model_dump(mode="json", include={"transport", "host", "profile"}),
                }
        return found

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
            self.say(f"failed: {name}: {text}{f' ({error.hint})' if error.hint else ''}")
        else:
            self.filled += 1

    def sweep_failures(self) -> None:
        """Failures of cells that are no longer failing, or no longer asked for, are gone."""
        for file in (self.folder / "failures").glob("*.json"):
            if file.name not in self.failures:
                file.unlink()

    def there(self, cell: Path) -> bool:
        """Whether a cell (a folder with its record in it, or a record) is finished already; counts it."""
        self.cells.append(cell.name.removesuffix(".json"))
        if cell.exists():
            self.skipped += 1
            return True
        return False


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
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
