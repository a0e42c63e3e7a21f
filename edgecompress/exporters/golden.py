"""The golden input and torch's answer to it: what a device must reproduce before its time counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgecompress.exporters.parity import GOLDEN_TOLERANCES, tolerance_of, torch_answer
from edgecompress.model.forms import form_of
from edgecompress.records import AudioShape, Golden

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.model.forms import Form

SAMPLE_RATE = 16000
GOLDEN_SECONDS = 5.0


@dataclass(frozen=True)
class Kept:
    """What the artifact's record says about the golden files, and how audio becomes the input."""

    golden: Golden
    audio: AudioShape


def write(
    model: Model, precision: str, folder: Path, clips: Sequence[np.ndarray] | None = None, form: Form | None = None
) -> Kept:
    """Write ``golden/<tensor>.npy`` for one input and one output, float32.

    The input is the first five seconds of the first clip (all of it if shorter), or of a synthetic one; for Whisper
    the clip's mel frames over the whole context.
    """
    clip = clips[0] if clips else synthetic_clip()
    form = form or form_of(model)
    cut = clip[: round(GOLDEN_SECONDS * SAMPLE_RATE)] if model.max_seconds is None else clip
    given = model.export_input(cut, form.takes)
    names = (form.input_name, model.anatomy.output_name(model.architecture))
    (folder / "golden").mkdir()
    for name, array in zip(names, (given.numpy(), torch_answer(model, given, form)), strict=True):
        np.save(folder / "golden" / f"{name}.npy", np.ascontiguousarray(array, dtype=np.float32), allow_pickle=False)
    golden = Golden(
        inputs={names[0]: f"golden/{names[0]}.npy"},
        outputs={names[1]: f"golden/{names[1]}.npy"},
        tolerance=tolerance_of(precision, GOLDEN_TOLERANCES),
    )
    audio = AudioShape(
        input=names[0],
        unit=form.unit,
        per_second=form.per_second,
        golden_seconds=given.shape[form.time_axis] / form.per_second,
        max_seconds=model.max_seconds,
    )
    return Kept(golden, audio)


def synthetic_clip() -> np.ndarray:
    """Five seconds of voice-like sound, float32, the same every time: a gliding pulse with syllables, and some noise."""
    time = np.arange(round(GOLDEN_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    voice = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 12))
    syllables = 0.5 + 0.5 * np.sin(2 * np.pi * 4 * time)
    noise = np.random.default_rng(0).standard_normal(time.size)
    return np.asarray(0.1 * syllables * voice + 0.01 * noise, dtype=np.float32)
