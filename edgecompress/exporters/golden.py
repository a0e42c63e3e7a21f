"""The golden input and torch's answer to it: what a device must reproduce before its time counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgecompress.exporters.order import Written
from edgecompress.exporters.parity import fitted, tolerance_of
from edgecompress.exporters.preparation import preparation
from edgecompress.model.forms import form_of
from edgecompress.records import AudioShape, Golden

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.model.forms import Form

SAMPLE_RATE = 16000
GOLDEN_SECONDS = 5.0


@dataclass(frozen=True)
class Kept:
    """What the artifact's record says about the golden files, and how audio becomes the input, where it does."""

    golden: Golden
    audio: AudioShape | None


def write(
    model: Model,
    precision: str,
    folder: Path,
    clips: Sequence[np.ndarray] | None = None,
    form: Form | None = None,
    written: Written | None = None,
) -> Kept:
    """Write ``golden/<tensor>.npy`` for every input and output of one case.

    The input is the first five seconds of the first clip (all of it if shorter), or of a synthetic one; for Whisper
    the clip's mel frames over the whole context; seeded noise where no audio goes in.
    """
    form = form or form_of(model)
    feeds = _feeds(model, form, clips, written)
    (folder / "golden").mkdir()
    answer = form.answer(model, feeds)
    for name, array in {**feeds, **answer}.items():
        np.save(folder / "golden" / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
    golden = Golden(
        inputs={name: f"golden/{name}.npy" for name in feeds},
        outputs={name: f"golden/{name}.npy" for name in answer},
        tolerance=tolerance_of(precision, "golden"),
    )
    if form.per_second is None:
        return Kept(golden, None)
    audio = AudioShape(
        input=form.input_name,
        unit=form.unit,
        per_second=form.per_second,
        golden_seconds=feeds[form.input_name].shape[form.time_axis] / form.per_second,
        max_seconds=model.max_seconds,
        lengths=list(written.lengths) if written else [],
        layout=[str(size) for size in form.inputs[0].shape],
        preparation=preparation(model, form),
    )
    return Kept(golden, audio)


def _feeds(
    model: Model, form: Form, clips: Sequence[np.ndarray] | None, written: Written | None
) -> dict[str, np.ndarray]:
    if form.per_second is None:
        return form.noise(model, 1, form.trace_length(model))
    clip = clips[0] if clips else synthetic_clip()
    cut = clip[: round(GOLDEN_SECONDS * SAMPLE_RATE)] if model.max_seconds is None else clip
    return fitted(model, form, cut, written)


def synthetic_clip() -> np.ndarray:
    """Five seconds of voice-like sound, float32, the same every time: a gliding pulse with syllables, and some noise."""
    time = np.arange(round(GOLDEN_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    voice = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 12))
    syllables = 0.5 + 0.5 * np.sin(2 * np.pi * 4 * time)
    noise = np.random.default_rng(0).standard_normal(time.size)
    return np.asarray(0.1 * syllables * voice + 0.01 * noise, dtype=np.float32)
