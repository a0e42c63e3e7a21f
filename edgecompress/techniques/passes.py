"""Calibration audio, batch by batch, with what of it is audio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

    from edgecompress.model import Model


def passes(model: Model, clips: Sequence[np.ndarray]) -> Iterator[tuple[torch.Tensor, list[int | None]]]:
    """Inputs of the clips, in order, and how many frames each clip of the batch fills (None: all)."""
    start = 0
    for inputs in model.batches(clips):
        yield inputs, [model.filled_frames(clip) for clip in clips[start : start + inputs.shape[0]]]
        start += inputs.shape[0]
