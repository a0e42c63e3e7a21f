"""Reading a run folder: every record in it that is whole, and the names of those that are not.

A report must never be lost to one bad file: a record that cannot be read becomes a warning on the page.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from edgecompress.errors import RecordError
from edgecompress.records import Artifact, Checkpoint, Failure, Measurement, Record, Run, Score

RecordT = TypeVar("RecordT", bound=Record)
BENCH = "bench-"  # how ``bench -o`` begins the names of its files: they belong to no job, and are always shown


@dataclass(frozen=True)
class RunFolder:
    """What one run folder holds. Checkpoints and artifacts are keyed by their folder's name, the rest by file name.

    Of two scores of the same thing the one over more clips comes later, and the later one is shown.
    """

    path: Path
    run: Run | None
    checkpoints: dict[str, Checkpoint]
    artifacts: dict[str, Artifact]
    scores: dict[str, Score]
    measurements: dict[str, Measurement]
    failures: dict[str, Failure]
    unreadable: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The run's name, or the folder's when there is no ``run.json``."""
        return self.run.name if self.run else self.path.name

    @property
    def random_weights(self) -> bool:
        """Whether any model here was never trained."""
        sources = [self.run.source] if self.run else []
        sources += [checkpoint.source for checkpoint in self.checkpoints.values()]
        sources += [artifact.source for artifact in self.artifacts.values()]
        return any(source.random_weights for source in sources)

    @property
    def reference(self) -> str:
        """Name of the recipe that everything is compared with: ``dense``, else the first of the run."""
        recipes = self.run.recipes if self.run else []
        return recipes[0] if recipes and "dense" not in recipes else "dense"


def read(path: Path) -> RunFolder:
    """Read everything a report needs from ``path``.

    Where ``run.json`` names the cells of the last run, those that an earlier form of the job left are passed over.

    Raises:
        RecordError: no such folder, or nothing in it that a report could show.
    """
    path = Path(path).resolve()
    if not path.is_dir():
        raise RecordError(f"{path}: no such folder", hint="give the folder that `edgecompress run` or `bench -o` wrote")
    unreadable: list[str] = []
    run_file = path / "run.json"
    run = _one(Run, run_file, path, unreadable) if run_file.is_file() else None
    cells = set(run.cells) if run else set()
    scores = {file.stem: record for file, record in _all(Score, path, "scores/*.json", unreadable, cells)}
    found = RunFolder(
        path=path,
        run=run,
        checkpoints={
            file.parent.name: record
            for file, record in _all(Checkpoint, path, "checkpoints/*/checkpoint.json", unreadable, cells)
        },
        artifacts={
            file.parent.name: record
            for file, record in _all(Artifact, path, "artifacts/*/artifact.json", unreadable, cells)
        },
        scores=dict(sorted(scores.items(), key=lambda item: len(item[1].items))),
        measurements={file.stem: record for file, record in _measurements(path, unreadable, cells)},
        failures={file.stem: record for file, record in _all(Failure, path, "failures/*.json", unreadable)},
        unreadable=unreadable,
    )
    if not any(
        (found.run, found.checkpoints, found.artifacts, found.scores, found.measurements, found.failures, unreadable)
    ):
        raise RecordError(
            f"{path}: nothing to report", hint="no run.json and no measurements here; is it a run folder?"
        )
    return found


def _one(kind: type[RecordT], file: Path, root: Path, unreadable: list[str]) -> RecordT | None:
    try:
        return kind.read(file)
    except RecordError as fault:
        unreadable.append(fault.message.replace(f"{root}/", ""))
        return None


def _all(
    kind: type[RecordT], root: Path, pattern: str, unreadable: list[str], cells: Collection[str] = ()
) -> Iterator[tuple[Path, RecordT]]:
    """Records in order of their names; of a run's only those that ``cells`` names, if it names any."""
    for file in sorted(root.glob(pattern)):
        if any(part.startswith(".") for part in file.relative_to(root).parts):
            continue  # what a writer has not finished yet
        name = file.parent.name if pattern.count("/") == 2 else file.stem
        if cells and name not in cells and not (kind is Measurement and name.startswith(BENCH)):
            continue
        record = _one(kind, file, root, unreadable)
        if record is not None:
            yield file, record


def _measurements(root: Path, unreadable: list[str], cells: Collection[str]) -> Iterator[tuple[Path, Measurement]]:
    """Those of a run, those that ``bench -o`` wrote, and those that lie loose in a folder."""
    yield from _all(Measurement, root, "measurements/*.json", unreadable, cells)
    loose = [file for file in sorted(root.glob("*.json")) if file.name != "run.json" and _is_measurement(file)]
    for file in loose:
        record = _one(Measurement, file, root, unreadable)
        if record is not None:
            yield file, record


def _is_measurement(file: Path) -> bool:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and str(data.get("schema", "")).startswith("edgecompress.measurement/")
