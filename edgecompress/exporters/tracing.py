"""Eval mode around whatever is done to a model while it is exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.model.forms import Form


def trace_inputs(model: Model, form: Form) -> tuple[torch.Tensor, ...]:
    """What to trace with where batch and time stay free: batch 2, since a batch of 1 would be baked in."""
    return form.example(model, 2, form.trace_length(model))


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Eval mode and no gradients inside; afterwards every part is in the mode it was in."""
    with torch.no_grad(), model.evaluating():
        yield
