"""What a model is traced with, what its shapes are called, and eval mode around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.model.forms import Form

TRACE_SECONDS = {"samples": 0.5, "mel_frames": 1.0}


def noise(model: Model, form: Form, batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Seeded noise as an input of the form's shape, ``length`` steps of time long, on the model's device."""
    generator = torch.Generator().manual_seed(seed)
    shape = [batch, *(length if isinstance(size, str) else size for size in form.shape[1:])]
    return torch.randn(shape, generator=generator).to(model.device)


def trace_inputs(model: Model, form: Form) -> torch.Tensor:
    """What to trace with: batch 2, since a batch of 1 would be baked in; half a second, or 1 s of mel frames."""
    length = round(TRACE_SECONDS[form.unit] * form.per_second)
    whole = None if model.context_positions is None else 2 * model.context_positions
    return noise(model, form, 2, length if whole is None else min(length, whole))


def output_shape(model: Model, traced: torch.Tensor) -> list[int | str]:
    """The output's shape, with names; ``traced`` is what the core answered, (batch, width) or (batch, time, width)."""
    time = "frames" if model.context_positions is None else "positions"
    return ["batch", *([time] if traced.dim() == 3 else []), int(traced.shape[-1])]


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Eval mode and no gradients inside; afterwards every part is in the mode it was in."""
    with torch.no_grad(), model.evaluating():
        yield
