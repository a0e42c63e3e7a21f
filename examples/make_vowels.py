"""Make ``examples/vowels``: eight vowels by five voices, synthesised, so that the quickstart has audio it may ship.

    python examples/make_vowels.py            writes examples/vowels/*.flac and manifest.csv; the same bytes every time

A pulse train at the voice's pitch goes through three formants (Peterson and Barney, 1952, means for men and women),
scaled by the voice's tract and drawn anew for each take; breath and room noise lie 8 to 20 dB below. It is no speech,
but a probe has to look past pitch, tract and noise to name the vowel of a voice it never heard.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import soundfile

FOLDER = Path(__file__).parent / "vowels"
RATE = 16000
TAKES = 4
# F1, F2, F3 in Hz: men, women.
VOWELS = {
    "beat": ((270, 2290, 3010), (310, 2790, 3310)),
    "bit": ((390, 1990, 2550), (430, 2480, 3070)),
    "bet": ((530, 1840, 2480), (610, 2330, 2990)),
    "bat": ((660, 1720, 2410), (860, 2050, 2850)),
    "but": ((640, 1190, 2390), (760, 1400, 2780)),
    "hot": ((730, 1090, 2440), (850, 1220, 2810)),
    "book": ((440, 1020, 2240), (470, 1160, 2680)),
    "boot": ((300, 870, 2240), (370, 950, 2670)),
}
# Pitch in Hz, where the tract lies between the men's (0) and the women's (1) formants.
VOICES = {"ada": (210, 1.0), "ben": (105, 0.0), "cleo": (180, 0.8), "dan": (130, 0.25), "eve": (235, 1.15)}
BANDWIDTHS = (80.0, 110.0, 160.0)


def vowel(generator: np.random.Generator, name: str, voice: str) -> np.ndarray:
    """One take, float32, about a third of a second."""
    pitch, place = VOICES[voice]
    men, women = (np.array(formants, float) for formants in VOWELS[name])
    formants = (men + place * (women - men)) * generator.normal(1, 0.05, 3)
    length = int(generator.uniform(0.25, 0.45) * RATE)
    glide = np.linspace(0, 1, length)
    hertz = pitch * generator.normal(1, 0.06) * (1 + generator.uniform(-0.15, 0.1) * glide)
    phase = 2 * np.pi * np.cumsum(hertz) / RATE
    wave = np.zeros(length)
    for harmonic in range(1, int(5000 / pitch)):
        distance = (harmonic * hertz[:, None] - formants) / BANDWIDTHS
        wave += (1 / (1 + distance**2)).sum(1) / np.sqrt(harmonic) * np.sin(harmonic * phase)
    wave *= np.minimum(1, 12 * np.minimum(glide, 1 - glide))
    noise = np.convolve(generator.normal(size=length), generator.dirichlet(np.ones(5)), mode="same")
    wave += noise * wave.std() / noise.std() * 10 ** (-generator.uniform(8, 20) / 20)
    return (0.1 * generator.uniform(0.5, 1.5) * wave / wave.std()).clip(-1, 1).astype(np.float32)


def main() -> None:
    generator = np.random.default_rng(0)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    rows = []
    for voice in VOICES:
        for name in VOWELS:
            for take in range(TAKES):
                samples = vowel(generator, name, voice)
                path = FOLDER / f"{voice}-{name}-{take}.flac"
                soundfile.write(path, samples, RATE, subtype="PCM_16")
                rows.append(["vowels", path.name, name, voice, f"{samples.size / RATE:.3f}", RATE, "test"])
    with (FOLDER / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["dataset", "path", "label", "speaker", "seconds", "sample_rate", "split"])
        writer.writerows(rows)


if __name__ == "__main__":
    main()
