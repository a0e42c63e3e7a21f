"""The audio of a training: recordings with their labels, kept in memory as 16-bit numbers while they fit."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np

from edgecompress import audio
from edgecompress.errors import AudioError
from edgecompress.records import content_key

SAMPLE_RATE = audio.SAMPLE_RATE
KEEP_BYTES = 2 * 1024**3  # 18 hours of audio in memory; what is beyond it is decoded when its turn comes
RECENT_CLIPS = 64  # decoded clips of that rest which stay at hand
AT_ONCE = 64  # files that are decoded before the memory they take is counted


@dataclass(frozen=True)
class _Kept:
    """A clip in memory: whole numbers and what one of them is worth, or the float32 samples themselves (scale None).

    16-bit audio at 16 kHz keeps its very samples; other audio (resampled, 24-bit) is scaled to its own peak, which puts
    the rounding 96 dB below it.
    """

    values: np.ndarray
    scale: np.float32 | None

    @classmethod
    def of(cls, samples: np.ndarray) -> _Kept:
        whole = samples * np.float32(32768)
        scale = np.float32(1 / 32768)
        if np.abs(whole).max(initial=0) > 32767 or not np.array_equal(whole, np.rint(whole)):
            scale = np.float32(np.abs(samples).max() / 32767)
            whole = np.rint(samples / scale)
        return cls(whole.astype(np.int16), scale)

    def clip(self) -> np.ndarray:
        if self.scale is None:
            return np.asarray(self.values, dtype=np.float32)
        return self.values * self.scale

    @property
    def mark(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.values).tobytes() + str(self.scale).encode()).hexdigest()


@dataclass(frozen=True)
class _OnDisk:
    """A clip that is decoded when it is asked for."""

    path: Path
    bytes: int

    def clip(self) -> np.ndarray:
        return _recent(self.path)

    @property
    def mark(self) -> str:
        return str(self.bytes)


@lru_cache(maxsize=RECENT_CLIPS)
def _recent(path: Path) -> np.ndarray:
    samples = _Kept.of(audio.read_clip(path).samples).clip()  # the same numbers as if it had been kept
    samples.setflags(write=False)
    return samples


@dataclass
class Corpus:
    """Recordings to train on, 16 kHz mono; the place of one in these lists is its row.

    ``names`` are paths below the folder they came from, ``samples`` their lengths, ``labels`` the columns of the
    manifest for each (empty where there is none). ``skipped`` says of each file that cannot be used why; of what does
    not fit into memory only the beginning of the file is looked at first, and it joins ``skipped`` when it fails later.
    """

    names: list[str]
    samples: list[int]
    labels: list[dict[str, str]]
    skipped: dict[str, str] = field(default_factory=dict)
    _sources: list[_Kept | _OnDisk] = field(default_factory=list, repr=False)

    # --- where it comes from ---
    @classmethod
    def from_folder(cls, folder: Path, *, keep_bytes: int = KEEP_BYTES) -> Corpus:
        """All audio files below a folder, in sorted order.

        Raises:
            AudioError: no such folder, or no usable audio in it.
        """
        if not folder.is_dir():
            raise AudioError(f"no such audio folder: {folder}", hint="give a folder of recordings")
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in audio.SUFFIXES and path.is_file())
        return cls._read(folder, [(path.relative_to(folder).as_posix(), {}) for path in found], keep_bytes)

    @classmethod
    def from_manifest(
        cls,
        manifest: Path,
        datasets: Collection[str] = (),
        where: Mapping[str, str] | None = None,
        *,
        keep_bytes: int = KEEP_BYTES,
    ) -> Corpus:
        """The files that a manifest (CSV with a column ``path``, paths beside it) lists, in its order.

        Args:
            manifest: the CSV file; its columns become the labels.
            datasets: only rows whose column ``dataset`` is one of these; empty: all.
            where: only rows that have these values, for example ``{"split": "train"}``.
            keep_bytes: decoded audio that is kept in memory at most.

        Raises:
            AudioError: not readable, columns missing, nothing that fits, or no usable audio.
        """
        rows = audio.manifest_rows(manifest, datasets, where)
        return cls._read(manifest.parent, [(row["path"], row) for row in rows], keep_bytes)

    @classmethod
    def from_arrays(cls, arrays: Sequence[np.ndarray], names: Sequence[str] | None = None) -> Corpus:
        """Clips that are in memory already, 16 kHz mono float32; they are not copied.

        Raises:
            AudioError: there are none.
        """
        if not len(arrays):
            raise AudioError("no clips to train on", hint="give training audio")
        chosen = list(names) if names is not None else [f"clip-{number:05d}" for number in range(len(arrays))]
        return cls(
            names=chosen,
            samples=[int(array.size) for array in arrays],
            labels=[{} for _ in arrays],
            _sources=[_Kept(array, None) for array in arrays],
        )

    @classmethod
    def from_files(
        cls, folder: Path, entries: Sequence[tuple[str, dict[str, str]]], *, keep_bytes: int = KEEP_BYTES
    ) -> Corpus:
        """Files that were chosen already: (path below ``folder``, labels) of each.

        Raises:
            AudioError: no usable audio among them.
        """
        return cls._read(folder, list(entries), keep_bytes)

    @classmethod
    def _read(cls, folder: Path, entries: list[tuple[str, dict[str, str]]], keep_bytes: int) -> Corpus:
        corpus, held, at = cls([], [], []), 0, 0
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # libsndfile lets go of Python's lock
            while at < len(entries):
                chunk = entries[at : at + AT_ONCE]
                look = _decoded if held < keep_bytes else _header
                for (name, labels), found in zip(chunk, pool.map(_looker(look, folder), chunk), strict=True):
                    if isinstance(found, str):
                        corpus.skipped[name] = found
                        continue
                    source, samples = found
                    held += source.values.nbytes if isinstance(source, _Kept) else 0
                    corpus.names.append(name)
                    corpus.samples.append(samples)
                    corpus.labels.append(labels)
                    corpus._sources.append(source)
                at += len(chunk)
        if not corpus.names:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in islice(corpus.skipped.items(), 3))
            said = f"all {len(corpus.skipped)} files were skipped ({reasons})" if reasons else "no audio file is there"
            raise AudioError(f"no usable audio in {folder}: {said}", hint="give recordings of at least 25 ms")
        return corpus

    # --- what is in it ---
    def __len__(self) -> int:
        return len(self.names)

    @property
    def seconds(self) -> list[float]:
        """Length of each recording."""
        return [samples / SAMPLE_RATE for samples in self.samples]

    def clip(self, row: int) -> np.ndarray:
        """The samples of one recording, (n,) float32 at 16 kHz. Any thread may ask.

        Raises:
            AudioError: the file was only looked at so far, and cannot be decoded; it is in ``skipped`` from then on.
        """
        try:
            return self._sources[row].clip()
        except AudioError as fault:
            self.skipped[self.names[row]] = fault.message
            raise

    def label(self, row: int, column: str = "label") -> str:
        """A label of one recording, "" where there is none."""
        return self.labels[row].get(column, "")

    @property
    def fingerprint(self) -> str:
        """12 hex digits of names, labels and audio: another corpus has others."""
        marks = [source.mark for source in self._sources]
        return content_key([self.names, self.samples, self.labels, marks])

    # --- less of it ---
    def only(self, datasets: Collection[str]) -> Corpus:
        """The recordings of these datasets (column ``dataset``), or all where none are named.

        Raises:
            AudioError: nothing is left.
        """
        if not datasets:
            return self
        return self._chosen(row for row in range(len(self)) if self.label(row, "dataset") in datasets)

    def without(self, names: Collection[str]) -> Corpus:
        """All recordings but those of these names.

        Raises:
            AudioError: nothing is left.
        """
        out = frozenset(names)
        return self._chosen(row for row, name in enumerate(self.names) if name not in out)

    def _chosen(self, rows: Iterable[int]) -> Corpus:
        chosen = list(rows)
        if not chosen:
            raise AudioError("no training audio is left of what was chosen", hint="choose other datasets or names")
        return Corpus(
            [self.names[row] for row in chosen],
            [self.samples[row] for row in chosen],
            [self.labels[row] for row in chosen],
            self.skipped,
            [self._sources[row] for row in chosen],
        )

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.clip(row) for row in range(len(self)))


# --- files -----------------------------------------------------------------------------------------------------------
Look = Callable[[Path, str], tuple["_Kept | _OnDisk", int]]


def _looker(look: Look, folder: Path) -> Callable[[tuple[str, dict[str, str]]], tuple[_Kept | _OnDisk, int] | str]:
    """``look`` for one entry of a list, with the reason where a file cannot be used."""

    def at(entry: tuple[str, dict[str, str]]) -> tuple[_Kept | _OnDisk, int] | str:
        try:
            return look(folder / entry[0], entry[0])
        except AudioError as fault:
            return fault.message.removeprefix(f"{entry[0]}: ")

    return at


def _decoded(path: Path, name: str) -> tuple[_Kept | _OnDisk, int]:
    samples = audio.read_clip(path, name).samples
    return _Kept.of(samples), samples.size


def _header(path: Path, name: str) -> tuple[_Kept | _OnDisk, int]:
    """Look at the beginning of a file only: how long it says it is."""
    import soundfile

    try:
        info = soundfile.info(str(path))
        samples = round(info.frames * SAMPLE_RATE / info.samplerate)
    except (soundfile.SoundFileError, OSError, ValueError, ZeroDivisionError) as cause:
        raise AudioError(f"{name}: {' '.join(str(cause).split())}", hint="replace the file, or leave it out") from cause
    if samples < audio.MINIMUM_SAMPLES:
        raise AudioError(f"{name}: only {samples} samples at 16 kHz", hint="25 ms is the shortest a model can see")
    return _OnDisk(path, path.stat().st_size), samples
