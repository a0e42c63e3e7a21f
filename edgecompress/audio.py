"""Audio in: any file that libsndfile reads, as 16 kHz mono float32; what cannot be used is named and counted."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from edgecompress.errors import AudioError
from edgecompress.records import content_key

SAMPLE_RATE = 16000
MINIMUM_SAMPLES = 400  # 25 ms: the receptive field of the convolutional front ends
SUFFIXES = frozenset(
    (".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64")
)


@dataclass(frozen=True)
class Clip:
    """One recording: its name (path below the folder it was read from) and samples (n,), float32, 16 kHz."""

    name: str
    samples: np.ndarray

    @property
    def seconds(self) -> float:
        return self.samples.size / SAMPLE_RATE

    @cached_property
    def key(self) -> str:
        """A hash of name and samples: another recording under the same name is another clip. Every cell asks for it."""
        return content_key([self.name, hashlib.sha256(self.samples.tobytes()).hexdigest()])


@dataclass(frozen=True)
class Clips:
    """Recordings that could be used, and the reason for each that could not."""

    items: tuple[Clip, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Clip]:
        return iter(self.items)

    @property
    def keys(self) -> list[str]:
        """What each clip is, in order."""
        return [clip.key for clip in self.items]

    @property
    def arrays(self) -> list[np.ndarray]:
        """The samples of all clips, in order."""
        return [clip.samples for clip in self.items]


def read_clip(path: Path, name: str = "") -> Clip:
    """Read one file: channels are averaged, other rates are resampled.

    Raises:
        AudioError: not audio, damaged, cut off, or shorter than 25 ms; the message is the reason.
    """
    import soundfile

    try:
        with soundfile.SoundFile(str(path)) as stream:
            promised, rate = stream.frames, stream.samplerate
            values = stream.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, ValueError) as cause:
        reason = "the file is empty" if path.is_file() and path.stat().st_size == 0 else _reason(cause, path)
        raise AudioError(f"{name or path.name}: {reason}", hint="replace the file, or leave it out") from cause
    if len(values) < promised:
        raise AudioError(
            f"{name or path.name}: cut off after {len(values)} of {promised} frames", hint="copy the file again"
        )
    samples = resample(values.mean(axis=1), rate)
    if samples.size < MINIMUM_SAMPLES:
        raise AudioError(
            f"{name or path.name}: only {samples.size} samples at 16 kHz", hint="25 ms is the shortest a model can see"
        )
    if not np.isfinite(samples).all():
        raise AudioError(f"{name or path.name}: samples that are not finite", hint="write the file again")
    return Clip(name or path.name, samples)


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Mono samples (n,) at ``rate`` Hz as float32 at 16 kHz."""
    if rate != SAMPLE_RATE and samples.size:
        import soxr

        samples = soxr.resample(samples, rate, SAMPLE_RATE, quality="HQ")
    return np.ascontiguousarray(samples, dtype=np.float32)


def read_folder(folder: Path, *, limit: int | None = None, seed: int | None = None) -> Clips:
    """All audio files below ``folder`` in sorted order, or ``limit`` of them chosen by ``seed``.

    Raises:
        AudioError: no such folder, or no usable audio in it.
    """
    if not folder.is_dir():
        raise AudioError(f"no such audio folder: {folder}", hint="give a folder of recordings")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    names = [path.relative_to(folder).as_posix() for path in found]
    return _usable(folder, chosen(names, seed), limit)


def read_manifest(
    manifest: Path, *, dataset: str | None = None, limit: int | None = None, seed: int | None = None
) -> Clips:
    """The files that a ``manifest.csv`` lists (columns ``dataset,path,...``, paths beside the manifest).

    Raises:
        AudioError: no such manifest or columns, a dataset it does not list, or no usable audio.
    """
    return _usable(manifest.parent, chosen(manifest_names(manifest, dataset), seed), limit)


def manifest_names(manifest: Path, dataset: str | None = None) -> list[str]:
    """Paths in a manifest, sorted; of one dataset, if given. Raises AudioError as :func:`read_manifest` does."""
    return sorted({row["path"] for row in manifest_rows(manifest, () if dataset is None else (dataset,))})


def manifest_rows(
    manifest: Path, datasets: Collection[str] = (), where: Mapping[str, str] | None = None
) -> list[dict[str, str]]:
    """Rows of a manifest that have a path, in its order, a value in every column: of ``datasets`` (none: all), and with
    the values of ``where`` in those columns, for example ``{"split": "train"}``.

    Raises:
        AudioError: not readable, a column missing, or nothing that fits; the hint says what there is.
    """
    where = dict(where or {})
    try:
        with manifest.open(newline="", encoding="utf-8") as stream:
            table = csv.DictReader(stream)
            columns = list(table.fieldnames or ())
            rows = [{key: value or "" for key, value in row.items() if key is not None} for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as cause:
        raise AudioError(
            f"{manifest}: not readable ({_reason(cause, manifest)})",
            hint="a manifest is a CSV file with a column 'path'",
        ) from cause
    lacking = [name for name in ("path", *(["dataset"] if datasets else []), *where) if name not in columns]
    if lacking:
        raise AudioError(f"{manifest}: no column {lacking[0]!r}", hint=f"there are: {', '.join(columns) or 'none'}")
    rows = [row for row in rows if row["path"]]
    for name in sorted(datasets):
        if not any(row["dataset"] == name for row in rows):
            raise AudioError(f"{manifest} lists nothing of dataset {name!r}", hint=_values(rows, "dataset"))
    fit = [row for row in rows if not datasets or row["dataset"] in datasets]
    for name, value in where.items():
        if not any(row[name] == value for row in fit):
            raise AudioError(
                f"{manifest} lists nothing of {name} {value!r}: there is no row with it", hint=_values(fit, name)
            )
    fit = [row for row in fit if where.items() <= row.items()]
    if not fit:
        asked = " and ".join(f"{name} {value!r}" for name, value in where.items())
        raise AudioError(
            f"{manifest} has no row with {asked}" if asked else f"{manifest} lists nothing", hint="add rows"
        )
    return fit


def _values(rows: list[dict[str, str]], column: str) -> str:
    return f"there are: {', '.join(sorted({row[column] for row in rows} - {''})) or 'none'}"


def chosen(names: list[str], seed: int | None) -> list[str]:
    """Names in a seeded order, or as they are when ``seed`` is None."""
    if seed is None:
        return names
    return [names[i] for i in np.random.default_rng(seed).permutation(len(names))]


def split(clips: Clips, *, evaluation: int, calibration: int) -> tuple[Clips, Clips]:
    """Disjoint (calibration, evaluation) clips: the first ``evaluation`` are scored, the next ones calibrate.

    So a job that changes its calibration is still scored on the same clips. Both keep all that was skipped.

    Raises:
        AudioError: fewer usable clips than asked for.
    """
    if evaluation + calibration > len(clips):
        raise AudioError(
            f"{len(clips)} usable clips, but {calibration} for calibration and {evaluation} for evaluation are asked for"
            + (f" ({len(clips.skipped)} files were skipped)" if clips.skipped else ""),
            hint=f"ask for at most {len(clips)} in all, or give more audio",
        )
    scored, rest = clips.items[:evaluation], clips.items[evaluation : evaluation + calibration]
    return Clips(rest, clips.skipped), Clips(scored, clips.skipped)


def synthetic(count: int, seconds: float, seed: int = 0) -> Clips:
    """Clips like speech, made in code: harmonics of a moving pitch under moving formants, noise bursts, pauses.

    Named ``synthetic-000`` and on. They say nothing, so only scores that compare with the source model mean something.
    """
    generator = np.random.default_rng(seed)
    length = round(seconds * SAMPLE_RATE)
    if length < MINIMUM_SAMPLES:
        raise AudioError(f"{seconds} s is too short for a clip", hint="25 ms is the shortest a model can see")
    return Clips(tuple(Clip(f"synthetic-{i:03d}", _utterance(generator, length)) for i in range(count)))


# --- synthesis -------------------------------------------------------------------------------------------------------
# First three formants of five vowels, Hz (averages of men's voices in textbooks).
_VOWELS = np.array([[730, 1090, 2440], [270, 2290, 3010], [530, 1840, 2480], [570, 840, 2410], [300, 870, 2240]], float)


def _utterance(generator: np.random.Generator, length: int) -> np.ndarray:
    """Syllables (burst, then vowel) with pauses between, at an RMS of 0.05."""
    base_pitch = generator.uniform(90, 210)
    pieces: list[np.ndarray] = []
    made = 0
    while made < length:
        pieces += [_burst(generator), _vowel(generator, base_pitch)]
        if generator.random() < 0.3:
            pieces.append(np.zeros(int(generator.uniform(0.05, 0.25) * SAMPLE_RATE)))
        made = sum(piece.size for piece in pieces)
    wave = np.concatenate(pieces)[:length] + generator.normal(0, 1e-4, length)
    return (0.05 * wave / np.sqrt(np.mean(wave**2))).astype(np.float32)


def _vowel(generator: np.random.Generator, base_pitch: float) -> np.ndarray:
    """Harmonics of a gliding pitch, each as strong as the gliding formants let it through."""
    n = int(generator.uniform(0.12, 0.3) * SAMPLE_RATE)
    glide = np.linspace(0, 1, n)[:, None]
    first, last = _VOWELS[generator.integers(len(_VOWELS), size=2)] * generator.uniform(0.95, 1.15)
    formants = first * (1 - glide) + last * glide
    pitch = base_pitch * (1 + generator.uniform(-0.15, 0.15) * glide[:, 0])
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    wave = np.zeros(n)
    for harmonic in range(1, int(4000 / base_pitch)):
        distance = (harmonic * pitch[:, None] - formants) / np.array([80.0, 110.0, 160.0])
        wave += (1 / (1 + distance**2)).sum(1) / np.sqrt(harmonic) * np.sin(harmonic * phase)
    return wave * np.hanning(n)


def _burst(generator: np.random.Generator) -> np.ndarray:
    """A fricative: noise whose spectrum rises with frequency."""
    n = int(generator.uniform(0.03, 0.09) * SAMPLE_RATE)
    return 0.25 * np.diff(generator.normal(size=n + 1)) * np.hanning(n)


# --- reading many ----------------------------------------------------------------------------------------------------
def _usable(folder: Path, names: Iterable[str], limit: int | None) -> Clips:
    """Read files in order until ``limit`` of them could be used."""
    items: list[Clip] = []
    skipped: dict[str, str] = {}
    for name in names:
        if limit is not None and len(items) >= limit:
            break
        try:
            items.append(read_clip(folder / name, name))
        except AudioError as fault:
            skipped[name] = fault.message.removeprefix(f"{name}: ")
    if not items:
        first = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
        said = f"all {len(skipped)} files were skipped ({first})" if skipped else "no audio file is there"
        raise AudioError(
            f"no usable audio in {folder}: {said}", hint="give WAV, FLAC, OGG or MP3 recordings of at least 25 ms"
        )
    return Clips(tuple(items), skipped)


def _reason(cause: BaseException, path: Path) -> str:
    """The cause in one line, without the path that the caller names anyway."""
    text = " ".join(str(cause).split()).replace(f"Error opening {str(path)!r}: ", "")
    return text.rstrip(".") or type(cause).__name__
