"""The audio that a job trains on: which files, who they are without decoding them, and that none of them is scored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress import records
from edgecompress.audio import SUFFIXES, chosen, manifest_rows
from edgecompress.errors import AudioError
from edgecompress.job import TrainingSource
from edgecompress.paths import existing
from edgecompress.records import TrainingAudio

if TYPE_CHECKING:
    from edgecompress.training.data import Corpus

HEAD_BYTES = 65536  # of each file, besides its size: enough to tell recordings apart, and 10,000 files take a second

Entry = tuple[str, dict[str, str]]  # a path below the folder, and the columns of its row


@dataclass(frozen=True)
class Chosen:
    """Files to train on, not yet decoded. ``sha256`` is a hash of their names, rows and contents."""

    folder: Path
    entries: tuple[Entry, ...]
    sha256: str
    excluded: int = 0

    def read(self) -> Corpus:
        """The audio itself.

        Raises:
            AudioError: none of it is usable.
        """
        from edgecompress.training.data import Corpus

        return Corpus.from_files(self.folder, self.entries)

    def record(self, corpus: Corpus) -> TrainingAudio:
        """What a checkpoint's record says of it, once it has been read."""
        return TrainingAudio(
            clips=len(corpus.names), sha256=self.sha256, excluded=self.excluded, skipped=len(corpus.skipped)
        )


def choose(asked: TrainingSource, kept: Iterable[Path] = ()) -> Chosen:
    """The files that ``asked`` names, without those in ``kept`` and without copies of them.

    Raises:
        RecipeError: no such folder.
        AudioError: a manifest without the columns it needs, an exclusion of what is not there, or nothing is left.
    """
    folder = existing(asked.folder, "training audio folder")
    entries = _of_manifest(folder / asked.manifest, asked) if asked.manifest else _of_folder(folder)
    listed = len(entries)
    for name in asked.exclude:  # a misspelt name would train on what was to be left out
        if not (folder / name).exists() and not any(_excluded(entry, [name]) for entry, _ in entries):
            raise AudioError(f"{folder}: there is no {name!r} to exclude", hint="a path below the training folder")
    entries = [entry for entry in entries if not _excluded(entry[0], asked.exclude)]
    # A file that is not there is counted as skipped when the audio is read.
    marks = {name: mark(folder.resolve() / name) for name, _ in entries}
    paths = {path.resolve() for path in kept}
    copies = {mark for mark in map(mark, paths) if mark}
    free = [
        (name, row)
        for name, row in entries
        if marks[name] not in copies and (folder.resolve() / name).resolve() not in paths
    ]
    if not free:
        raise AudioError(
            f"no training audio is left in {folder} ({listed} files were found)",
            hint="choose other datasets or another split, or exclude less",
        )
    excluded = len(entries) - len(free)
    if asked.limit is not None:
        names = sorted(chosen([name for name, _ in free], asked.seed)[: asked.limit])
        free = [entry for entry in free if entry[0] in set(names)]
    digest = hashlib.sha256(records.canonical_json([[name, row, marks[name]] for name, row in free]).encode())
    return Chosen(folder, tuple(free), digest.hexdigest(), excluded)


def mark(path: Path) -> str:
    """Size and a hash of the beginning of a file; "" where there is none."""
    try:
        with path.open("rb") as stream:
            return f"{path.stat().st_size}-{hashlib.sha256(stream.read(HEAD_BYTES)).hexdigest()}"
    except OSError:
        return ""


def _excluded(name: str, exclude: Sequence[str]) -> bool:
    """Whether a path, or a folder that it lies in, is named."""
    return any(name == one or name.startswith(f"{one.rstrip('/')}/") for one in exclude)


def _of_folder(folder: Path) -> list[Entry]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return [(name, {}) for name in sorted(path.relative_to(folder).as_posix() for path in found)]


def _of_manifest(manifest: Path, asked: TrainingSource) -> list[Entry]:
    """Rows that are asked for, each path once."""
    rows = manifest_rows(manifest, asked.datasets, {} if asked.split is None else {"split": asked.split})
    return list({row["path"]: (row["path"], row) for row in rows}.values())
