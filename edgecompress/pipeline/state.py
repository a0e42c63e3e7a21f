"""A run under way: what its cells share, who may work in its folder, and what becomes of a cell that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress import records, sources
from edgecompress.errors import Busy, EdgeCompressError
from edgecompress.job import AudioSource, Job
from edgecompress.paths import existing, expand
from edgecompress.records import Failure, Source

if TYPE_CHECKING:
    from edgecompress.audio import Clips
    from edgecompress.model import Model
    from edgecompress.session import Plan
    from edgecompress.tasks import Subject

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
        return Plan(**asked.model_dump(exclude={"devices"})) if asked else Plan()

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
            self.say(f"failed: {name}: {text}")
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


def _model_folder(text: str) -> Path:
    """A model's folder on this machine; a hub id is fetched first."""
    path = expand(text)
    if path.is_dir() or "${" in text or not sources.is_hub_id(text):
        return existing(text, "model folder")
    from edgecompress.model.storage import find_folder

    return find_folder(text)
