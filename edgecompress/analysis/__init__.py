"""What the heads and layers of a model do on audio, and in which order each pruning score would remove the heads.

:func:`analyze` looks and returns a record of numbers; what they mean (categories, rank correlations, sentences) is computed
when they are read (``relations``); :func:`write` makes ``analysis.json``, ``heads.csv`` and ``index.html`` of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.errors import AudioError, ModelError

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.analysis.record import Analysis
    from edgecompress.model import Model

__all__ = ["analyze", "write"]

SAMPLE_RATE = 16000
LEAST_S = 0.1  # fewer than five frames: nothing to attend to
MOST_S = 30.0  # an attention map grows with the square of the length: 12 heads at 30 s are 108 MB, at 5 min 10 GB


def _silent(text: str) -> None:
    pass


def analyze(
    model: Model, clips: Sequence[np.ndarray], *, seed: int = 0, say: Callable[[str], None] = _silent
) -> Analysis:
    """Look at ``clips`` (16 kHz mono float32 each) through ``model``, which stays as it is.

    Clips below 0.1 s are left out; of longer ones than 30 s the first 30 s are looked at. ``seed`` is that of the
    first-order score; ``say`` takes lines of progress.

    Raises:
        AudioError: no clip is long enough.
        ModelError: no attention head is left.
    """
    from edgecompress import __version__
    from edgecompress.analysis.attention import look
    from edgecompress.analysis.record import Analysis, Head
    from edgecompress.analysis.similarity import similarities
    from edgecompress.analysis.survival import ORDERS, survival
    from edgecompress.techniques import Context

    if not any(layer.heads for layer in model.layers):
        raise ModelError("this model has no attention heads left", hint="analyze an earlier checkpoint")
    used = [clip[: round(MOST_S * SAMPLE_RATE)] for clip in clips if clip.size >= LEAST_S * SAMPLE_RATE]
    if not used:
        raise AudioError(f"none of {len(clips)} clips is {LEAST_S} s long", hint="give longer recordings")
    context = Context(clips=used, seed=seed)
    with model.evaluating():
        seen = look(model, used, say)
        say("comparing layers")
        alike = similarities(seen.states)
        lives = {}
        for place, (score, scope) in enumerate(ORDERS, start=1):
            say(f"pruning order {place} of {len(ORDERS)}: {score}, {scope}")
            lives[f"{score}_{scope}"] = survival(model, context, score, scope)
    heads = [
        Head(
            layer=layer.number,
            head=head,
            **{name: float(values[place]) for name, values in seen.heads[layer.number].items()},
            survival={order: life.rounds_of[layer.number, head] for order, life in lives.items()},
        )
        for layer in model.layers
        for place, head in enumerate(layer.heads)
    ]
    return Analysis(
        source=model.origin.source,
        family=model.family,
        clips=len(used),
        seconds=round(sum(clip.size for clip in used) / SAMPLE_RATE, 3),
        frames=seen.frames,
        width=int(seen.states[0].shape[1]),
        compared_frames=int(seen.states[0].shape[0]),
        layers=[layer.number for layer in model.layers],
        heads=heads,
        rounds={order: life.rounds for order, life in lives.items()},
        similarity=alike,
        tool=f"edgecompress {__version__}",
    )


def write(found: Analysis, folder: Path) -> Path:
    """Write ``folder`` whole (what was there is replaced) and return the path of its ``index.html``."""
    from edgecompress import records
    from edgecompress.analysis import page

    with records.whole_folder(folder) as beside:
        found.write(beside / "analysis.json")
        records.write_text(beside / "heads.csv", page.csv_table(found))
        records.write_text(beside / "index.html", page.html(found))
    return folder / "index.html"
