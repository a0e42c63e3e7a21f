"""What a model is traced with, what its shapes are called, and eval mode around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from edgecompress.model import Model

WAVEFORM_TRACE_SAMPLES = 8000
WHISPER_TRACE_POSITIONS = 50


def noise(model: Model, batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Seeded noise as input: (batch, samples) or (batch, mel bins, frames), on the model's device."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, length) if model.context_positions is None else (batch, int(model.config.num_mel_bins), length)
    return torch.randn(shape, generator=generator).to(next(model.network.parameters()).device)


def trace_inputs(model: Model) -> torch.Tensor:
    """What to trace with: batch 2, since a batch of 1 would be baked in; half a second, or 1 s of mel frames."""
    positions = model.context_positions
    return noise(model, 2, WAVEFORM_TRACE_SAMPLES if positions is None else 2 * min(WHISPER_TRACE_POSITIONS, positions))


def input_shape(model: Model) -> list[int | str]:
    """The input's shape, with names for the dimensions that may vary."""
    if model.context_positions is None:
        return ["batch", "samples"]
    return ["batch", int(model.config.num_mel_bins), "frames"]


def output_shape(model: Model, traced: torch.Tensor) -> list[int | str]:
    """The output's shape, with names; ``traced`` is what the core answered, (batch, width) or (batch, time, width)."""
    time = "frames" if model.context_positions is None else "positions"
    return ["batch", *([time] if traced.dim() == 3 else []), int(traced.shape[-1])]


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Eval mode and no gradients inside; afterwards every part is in the mode it was in."""
    with torch.no_grad(), model.evaluating():
        yield
