"""Labelled recordings of a manifest, read once; and which of them train a probe and which it is scored on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from edgecompress.audio import Clip, manifest_rows, read_clip
from edgecompress.errors import AudioError
from edgecompress.paths import expand


@dataclass(frozen=True)
class Labelled:
    """A recording of one dataset: what it says (``label``), who says it (``group``), and its split ("" if not told)."""

    clip: Clip
    label: str
    group: str
    split: str


@dataclass(frozen=True)
class Labels:
    """All usable recordings of a dataset, sorted by name, and why each of the others is left out."""

    rows: tuple[Labelled, ...]
    skipped: dict[str, str]

    @property
    def classes(self) -> list[str]:
        """Every label there is, sorted."""
        return sorted({row.label for row in self.rows})

    @property
    def groups(self) -> list[str]:
        """Every group there is, sorted."""
        return sorted({row.group for row in self.rows})


@dataclass(frozen=True)
class Fold:
    """One probe: row numbers it is trained on, and row numbers it is scored on; no row is in both."""

    name: str
    train: np.ndarray
    test: np.ndarray


def place_of(manifest: str, folder: str | None) -> Path:
    """Where a manifest lies: in the audio ``folder``, unless it says more than a name (``${EDGECOMPRESS_SPEECH}/...``)."""
    path = expand(manifest)
    return path if path.is_absolute() or len(path.parts) > 1 or folder is None else Path(folder) / path


def read_labels(
    manifest: str, folder: str | None, *, dataset: str, label: str, group: str | None, at_most: int | None = None
) -> Labels:
    """The recordings of ``dataset`` ("" means all) with the columns ``label`` and ``group`` of the manifest.

    Rows without a label are left out; of more than ``at_most`` so many are taken, evenly spread by name. A damaged file
    is skipped and named; a missing one is an error, for with half of the recordings the score would be of another thing.

    Raises:
        AudioError: no such manifest, dataset or column, missing files, or nothing that can be used.
    """
    path = place_of(manifest, folder)
    try:
        stamp = path.stat().st_mtime_ns
    except OSError as cause:
        raise AudioError(
            f"{path}: no such manifest of labelled recordings",
            hint="set EDGECOMPRESS_SPEECH, or the task's key manifest",
        ) from cause
    return _read(path, stamp, dataset, label, group, at_most)


@lru_cache(maxsize=4)  # every model of a job is scored on the same recordings: 4 s of decoding for each 90 minutes
def _read(path: Path, stamp: int, dataset: str, label: str, group: str | None, at_most: int | None) -> Labels:
    entries = _entries(path, dataset, label, group)
    if at_most is not None and len(entries) > at_most:
        entries = [entries[int(at)] for at in np.linspace(0, len(entries) - 1, at_most)]
    missing = [entry["path"] for entry in entries if not (path.parent / entry["path"]).is_file()]
    if missing:
        raise AudioError(
            f"{path}: {len(missing)} of {len(entries)} recordings are not there, the first is {missing[0]}",
            hint="the paths are relative to the manifest's folder",
        )
    rows, skipped = [], {}
    for entry in entries:
        try:
            clip = read_clip(path.parent / entry["path"], entry["path"])
        except AudioError as fault:
            skipped[entry["path"]] = fault.message.removeprefix(f"{entry['path']}: ")
            continue
        rows.append(Labelled(clip, entry[label], entry[group] if group else "", entry.get("split") or ""))
    if not rows:
        raise AudioError(f"{path}: none of {len(entries)} recordings can be used", hint=next(iter(skipped.values())))
    return Labels(tuple(rows), skipped)


def _entries(path: Path, dataset: str, label: str, group: str | None) -> list[dict[str, str]]:
    """Rows of the manifest that are asked for, sorted by path."""
    rows = manifest_rows(path, [dataset] if dataset else ())
    lacking = [name for name in (label, *([group] if group else [])) if name not in rows[0]]
    if lacking:
        raise AudioError(f"{path} has no column {', '.join(lacking)}", hint=f"its columns are: {', '.join(rows[0])}")
    chosen = {row["path"]: row for row in rows if row[label]}
    if not chosen:
        raise AudioError(
            f"{path} lists nothing of dataset {dataset!r} with a value of {label}",
            hint="fill the column, or name another",
        )
    return [chosen[name] for name in sorted(chosen)]


# --- who trains, who is scored ---------------------------------------------------------------------------------------
def leave_one_group_out(
    rows: Sequence[Labelled], train_split: str | None, test_split: str | None, folds: int | None = None
) -> Iterator[Fold]:
    """One fold for each group (or the first ``folds`` of them): it is scored, all the others train.

    Raises:
        AudioError: fewer than two groups, or a fold with nothing to train on or to score.
    """
    groups = sorted({row.group for row in rows})
    if len(groups) < 2 or "" in groups:
        raise AudioError(
            f"leaving one group out needs two groups and a group for every recording; there are: {groups}",
            hint='choose another column as group, or protocol = "few_takes"',
        )
    of = np.array([row.group for row in rows])
    trains, tests = _in_split(rows, train_split), _in_split(rows, test_split)
    for name in groups[:folds]:
        yield _fold(name, np.flatnonzero((of != name) & trains), np.flatnonzero((of == name) & tests))


def few_takes(
    rows: Sequence[Labelled], train_split: str | None, test_split: str | None, takes: int, draws: int, seed: int
) -> Iterator[Fold]:
    """``draws`` folds: ``takes`` recordings of each class of the split ``train`` train, those of ``test`` are scored.

    Raises:
        AudioError: a class has fewer takes, or nothing is there to score.
    """
    labels = np.array([row.label for row in rows])
    trains, tests = _in_split(rows, train_split or "train"), _in_split(rows, test_split or "test")
    for draw in range(draws):
        generator = np.random.default_rng([seed, draw])
        chosen = []
        for label in np.unique(labels):
            there = np.flatnonzero((labels == label) & trains)
            if len(there) < takes:
                raise AudioError(
                    f"{label!r} has {len(there)} recordings to train on, {takes} are asked for",
                    hint="ask for fewer takes, or look at the manifest's column split",
                )
            chosen.append(generator.choice(there, takes, replace=False))
        train = np.sort(np.concatenate(chosen))
        yield _fold(f"draw {draw}", train, np.setdiff1d(np.flatnonzero(tests), train))


def held_back(rows: Sequence[Labelled], fold: Fold, parts: int = 5) -> list[Fold]:
    """Folds within a fold's training recordings, to choose a setting by: nothing of what is scored is looked at.

    Each group is held back once where there are groups (in ``parts`` lots where they are more), else each third of the
    recordings of every label. A single group held back would let its own oddities choose. What leaves nothing to train
    on or to look at is no fold.
    """
    names = [rows[row].group for row in fold.train.tolist()]
    groups = {name: number for number, name in enumerate(sorted(set(names)))}
    if len(groups) > 1:
        parts = min(parts, len(groups))
        lots = np.array([groups[name] % parts for name in names])
    else:
        parts, seen = 3, Counter[str]()
        lots = np.zeros(len(fold.train), dtype=int)
        for place, row in enumerate(fold.train.tolist()):
            lots[place] = seen[rows[row].label] % parts
            seen[rows[row].label] += 1
    held = [lots == part for part in range(parts)]
    return [Fold(fold.name, fold.train[~out], fold.train[out]) for out in held if out.any() and not out.all()]


def _in_split(rows: Sequence[Labelled], split: str | None) -> np.ndarray:
    return np.array([split is None or row.split == split for row in rows])


def _fold(name: str, train: np.ndarray, test: np.ndarray) -> Fold:
    if not len(train) or not len(test):
        raise AudioError(
            f"{name}: {len(train)} recordings to train on and {len(test)} to score",
            hint="look at the manifest's column split, and at train_split and test_split of the task",
        )
    return Fold(name, train, test)
