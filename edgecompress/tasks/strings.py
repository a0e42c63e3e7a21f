"""Strings of digits made of single recordings: one speaker, random gaps, a room that hums; the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgecompress.audio import Clip
from edgecompress.errors import AudioError
from edgecompress.tasks.labelled import Labelled

SAMPLE_RATE = 16000
SHORTEST, LONGEST = 5, 8  # digits in a string
GAP_S = (0.05, 0.4)  # between two digits, and before the first and after the last
NOISE_DB = (10.0, 30.0)  # speech above noise
LEVEL = 0.05  # root mean square of each digit: takes recorded at other levels stand beside each other
FADE_S = 0.005  # a recording that starts in the middle of a hum would click, and a click tells where a digit begins
BANDS = 257  # of a noise's spectrum, 0 to 8 kHz


@dataclass(frozen=True)
class DigitString:
    """A string as one clip, what is said in it, by whom (its group), and the part of the recordings it is made of.

    ``recordings`` are the names of those that were joined.
    """

    clip: Clip
    labels: tuple[str, ...]
    group: str
    part: str
    recordings: tuple[str, ...] = ()


def make_strings(
    rows: Sequence[Labelled], per_group: int, seed: int, part: str, rooms: np.ndarray
) -> list[DigitString]:
    """``per_group`` strings of each group's own recordings, drawn at random, no take twice in one string.

    ``part`` names the draw ("all", "train" ...), which has its own chance. ``rooms`` (rooms, ``BANDS``) are noise spectra.

    Raises:
        AudioError: a group has fewer recordings than a string has digits.
    """
    strings = []
    for number, group in enumerate(sorted({row.group for row in rows})):
        own = [row for row in rows if row.group == group]
        if len(own) < LONGEST:
            raise AudioError(
                f"{group!r} has {len(own)} recordings, a string takes up to {LONGEST}",
                hint="give more takes, or no split",
            )
        for index in range(per_group):
            generator = np.random.default_rng([seed, *part.encode(), number, index])
            count = int(generator.integers(SHORTEST, LONGEST + 1))
            chosen = [own[at] for at in generator.choice(len(own), count, replace=False)]
            samples = joined([row.clip.samples for row in chosen], rooms[generator.integers(len(rooms))], generator)
            name = f"{group}/{part}-string-{index:03d}"
            labels, names = tuple(row.label for row in chosen), tuple(row.clip.name for row in chosen)
            strings.append(DigitString(Clip(name, samples), labels, group, part, names))
    return strings


def joined(digits: Sequence[np.ndarray], room: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Recordings one after the other at one level, with gaps, and a room's noise under all of it; float32."""
    pieces = [_gap(generator)]
    for digit in digits:
        pieces += [_levelled(digit), _gap(generator)]
    speech = np.concatenate(pieces)
    noise = coloured(room, speech.size, generator) * LEVEL * 10 ** (-generator.uniform(*NOISE_DB) / 20)
    return (speech + noise).astype(np.float32)


def coloured(spectrum: np.ndarray, samples: int, generator: np.random.Generator) -> np.ndarray:
    """Noise with this magnitude spectrum (``BANDS``,), root mean square 1."""
    length = 1 << (samples - 1).bit_length()  # a Fourier transform of prime length is four times slower
    white = np.fft.rfft(generator.standard_normal(length))
    at = np.linspace(0, len(spectrum) - 1, len(white))
    noise = np.fft.irfft(white * np.interp(at, np.arange(len(spectrum)), spectrum), length)[:samples]
    return np.asarray(noise / max(float(np.sqrt(np.mean(noise**2))), 1e-12))


def shaped_rooms(count: int, seed: int) -> np.ndarray:
    """Spectra (``count``, ``BANDS``) between flat and steeply falling, each with a hum or none: rooms nobody recorded."""
    generator = np.random.default_rng([seed, 1])
    hertz = np.linspace(0, SAMPLE_RATE / 2, BANDS)
    slopes = generator.uniform(0.0, 1.0, (count, 1))
    hum = generator.uniform(0, 2, (count, 1)) * np.exp(-(((hertz - generator.uniform(60, 300, (count, 1))) / 60) ** 2))
    return np.asarray((100 / (100 + hertz)) ** slopes + hum)


def quiet_rooms(clips: Sequence[Clip]) -> np.ndarray:
    """Spectra (clips, ``BANDS``) of the quietest tenth of each recording: what its room sounds like between words.

    Recordings with digital silence there have no room, and are left out.

    Raises:
        AudioError: none of them has one.
    """
    width = 2 * (BANDS - 1)
    spectra = []
    for clip in clips:
        whole = clip.samples[: clip.samples.size // width * width].reshape(-1, width)
        energy = (whole**2).mean(axis=1)
        quiet = whole[np.argsort(energy, kind="stable")[: max(1, len(whole) // 10)]]
        if len(whole) and quiet.any(axis=1).all():
            spectra.append(np.sqrt((np.abs(np.fft.rfft(quiet * np.hanning(width))) ** 2).mean(axis=0)))
    if not spectra:
        raise AudioError("no recording has a quiet part with noise in it", hint='leave the task\'s key "noise" out')
    return np.stack(spectra)


def _gap(generator: np.random.Generator) -> np.ndarray:
    return np.zeros(round(generator.uniform(*GAP_S) * SAMPLE_RATE))


def _levelled(digit: np.ndarray) -> np.ndarray:
    """A digit at the common level, faded in and out."""
    fade = min(round(FADE_S * SAMPLE_RATE), digit.size // 2)
    slope = np.minimum(1.0, np.minimum(np.arange(digit.size), np.arange(digit.size)[::-1]) / max(fade, 1))
    loud = max(float(np.sqrt(np.mean(digit.astype(np.float64) ** 2))), 1e-6)
    return np.asarray(digit * slope * (LEVEL / loud))
